from __future__ import annotations

import doctest
import gzip
import json

import pytest

import maw.retrieval.data.corpus_file as module
from maw.errors import MAWError
from maw.retrieval.data.beir import read_beir
from maw.retrieval.data.corpus_file import CorpusFile

RECORDS = [
    {"_id": "a", "title": "Rivers", "text": "Water flows."},
    {"_id": "b", "title": None, "text": "  spaces \u2028 and Itâs  "},
    {"_id": "c", "text": ""},
    {"_id": "d 4", "title": "Title only", "text": ""},
    {"_id": "é", "title": "", "text": "A tab\tand a line\nin it.", "url": 1},
]


def write(path, text: str | bytes):
    raw = text.encode("utf-8") if isinstance(text, str) else text
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def jsonl(records) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def read(path, **where):
    return [record for block in CorpusFile(path).blocks(lines=2, **where) for record in block.records()]


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz"])
@pytest.mark.parametrize("end", ["\n", ""])
def test_documents_are_those_that_the_beir_reader_gives(tmp_path, name, end):
    path = write(tmp_path / name, jsonl(RECORDS).removesuffix("\n") + end)
    write(tmp_path / "corpus.jsonl", jsonl(RECORDS))
    write(tmp_path / "queries.jsonl", jsonl([{"_id": "q", "text": "river"}]))
    (tmp_path / "qrels").mkdir()
    write(tmp_path / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore\nq\ta\t1\n")
    assert read(path) == list(read_beir(tmp_path).documents.items())


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz"])
def test_any_part_is_read_again(tmp_path, name):
    path = write(tmp_path / name, jsonl(RECORDS))
    offset = len(jsonl(RECORDS[:2]).encode())
    assert [identifier for identifier, _ in read(path, first=2, offset=offset, stop=4)] == ["c", "d 4"]
    with pytest.raises(MAWError, match="ends after line 5, but it had 9"):
        read(path, first=2, offset=offset, stop=9)


def test_parts_of_an_archive_are_taken_on_from_where_it_is(tmp_path, monkeypatch):
    path = write(tmp_path / "corpus.jsonl.gz", jsonl(RECORDS))
    offset = len(jsonl(RECORDS[:3]).encode())
    corpus = CorpusFile(path)
    with corpus.open() as file:
        monkeypatch.setattr(file, "rewind", pytest.fail)
        first = list(corpus.blocks(lines=9, stop=3, file=file))
        rest = list(corpus.blocks(lines=9, first=3, offset=offset, stop=5, file=file))
        assert not file.closed
    assert [name for block in first + rest for name in block.ids()] == [record["_id"] for record in RECORDS]


def test_no_block_reaches_across_a_border(tmp_path):
    path = write(tmp_path / "corpus.tsv", "".join(f"{i}\tx\n" for i in range(20)))
    blocks = list(CorpusFile(path).blocks(lines=4, border=7))
    assert [(block.first, len(block.records())) for block in blocks] == [
        *((0, 4), (4, 3), (7, 4), (11, 3), (14, 4), (18, 2)),
    ]


@pytest.mark.parametrize("name", ["collection.tsv", "collection.tsv.gz"])
def test_a_table_has_ids_and_texts(tmp_path, name):
    path = write(tmp_path / name, "0\tThe presence of it.\r\n1\t  Itâs  \n")
    assert read(path) == [("0", "The presence of it."), ("1", "Itâs")]


GOOD = jsonl(RECORDS[:2])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.jsonl", GOOD + "{'_id': 1}\n", "c.jsonl, line 3: wanted a JSON object, got \"{'_id': 1}\""),
        ("c.jsonl", GOOD + "\n" + GOOD, "line 3: wanted a JSON object, got ''"),
        ("c.jsonl", GOOD + "[1]\n", r"line 3: wanted a JSON object, got '\[1\]'"),
        ("c.jsonl", GOOD + '{"_id": "x"}\n', "line 3: wanted the field 'text', got only '_id'"),
        ("c.jsonl", GOOD + '{"text": "x"}\n', "line 3: wanted the field '_id'"),
        ("c.jsonl", GOOD + '{"_id": 7, "text": "x"}\n', "line 3: wanted text in '_id', got the number 7"),
        ("c.jsonl", GOOD + '{"_id": "x", "text": null}\n', "line 3: wanted text in 'text', got null"),
        (
            "c.jsonl",
            GOOD + '{"_id": "x", "text": "", "title": 1}\n',
            "line 3: wanted text in 'title', got the number 1",
        ),
        ("c.jsonl", GOOD + '{"_id": "", "text": "x"}\n', "line 3: an id must have a character that is no white space"),
        (
            "c.jsonl",
            GOOD + '{"_id": "a\\nb", "text": "x"}\n',
            r"line 3: an id must have no control characters, it has U.000A",
        ),
        ("c.jsonl", GOOD + '{"_id": "a\\u0000", "text": "x"}\n', r"line 3: .* no control characters, it has U.0000"),
        ("c.jsonl", GOOD + '{"_id": "x", "text": "\\ud800"}\n', "line 3: wanted text in 'text', got half of a surr"),
        ("c.jsonl", GOOD.encode() + b'{"_id": "\xff"}\n', "line 3: wanted UTF-8, got the byte 0xff as byte 10"),
        ("c.tsv", "1\tone\ntwo\n", "c.tsv, line 2: wanted 2 columns, an id, a tab and a text, got 1: 'two'"),
        ("c.tsv", "1\tone\n2\ttwo\tthree\n", "line 2: wanted 2 columns, an id, a tab and a text, got 3"),
        ("c.tsv", "1\tone\n\ttwo\n", "line 2: an id must have a character"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, name, text, message):
    with pytest.raises(MAWError, match=message):
        read(write(tmp_path / name, text))


def test_a_damaged_archive_is_named(tmp_path):
    raw = gzip.compress(jsonl(RECORDS * 100).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(raw[:-10])
    middle = bytearray(raw)
    middle[len(raw) // 2] ^= 255
    (tmp_path / "flip.jsonl.gz").write_bytes(bytes(middle))
    for name in ("cut.jsonl.gz", "flip.jsonl.gz"):
        with pytest.raises(MAWError, match=f"{name} is (damaged after line|no whole gzip file)"):
            read(tmp_path / name)


def test_a_file_that_is_not_there_or_says_nothing_of_its_layout_is_refused(tmp_path):
    with pytest.raises(MAWError, match="there is no such file"):
        CorpusFile(tmp_path / "none.jsonl")
    with pytest.raises(MAWError, match="a corpus must be a file that ends in"):
        CorpusFile(write(tmp_path / "corpus.txt", "x"))


def test_the_examples_run():
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed
