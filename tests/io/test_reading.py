"""Files as people have them: packed, marked, forbidden."""

import gzip
import os

import pytest

from maw.errors import MAWError
from maw.io.reading import BYTE_ORDER_MARK, text_lines


def read(path):
    return list(text_lines(path))


@pytest.mark.parametrize("mark", [b"", BYTE_ORDER_MARK])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("name", ["file.tsv", "file.tsv.gz"])
def test_a_packed_or_marked_file_has_the_same_lines(tmp_path, mark, pack, name):
    path = tmp_path / name
    path.write_bytes(pack(mark + b"a\tb\n\xef\xbb\xbfc\n"))
    assert read(path) == [b"a\tb\n", b"\xef\xbb\xbfc\n"], "only the mark before the first line is none of the text"


@pytest.mark.parametrize("content", [b"", b"a", BYTE_ORDER_MARK])
def test_short_files(tmp_path, content):
    path = tmp_path / "short"
    path.write_bytes(content)
    assert read(path) == [line for line in [content.removeprefix(BYTE_ORDER_MARK)] if line]


def test_a_cut_gzip_file_is_named(tmp_path):
    path = tmp_path / "cut.gz"
    path.write_bytes(gzip.compress(os.urandom(5000))[:-2000])
    with pytest.raises(MAWError, match="no whole gzip file"):
        read(path)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(MAWError, match="cannot be read"):
        read(tmp_path)
