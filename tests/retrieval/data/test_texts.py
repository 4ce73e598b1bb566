"""Stores of texts on disk: they read like the dictionary they were made of, and are made once."""

from __future__ import annotations

import doctest
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maw.errors import MAWError
from maw.retrieval.data import checks, corpora, lines, text_writer, texts
from maw.retrieval.data.checks import count_texts, lacking
from maw.retrieval.data.corpora import Origin, cache_folder, hold_file, hold_texts, keep_on_disk
from maw.retrieval.data.text_writer import build_store
from maw.retrieval.data.texts import TextStore, content_checksum

TEXTS = {
    "d2": "a river",
    "d10": "",
    "é": "Ünïcödé \u2028 in one line",
    "long id " * 40: "two\nlines",
    "d1": "a river",
    "a": "\U0001f30a",
    "ab": " ",
}


def refuse(identifier: str, first: int, second: int):
    raise MAWError(f"{identifier!r} at {first} and {second}")


def store(folder: Path, data: dict[str, str] | list[tuple[str, str]]) -> TextStore:
    return build_store(folder, data.items() if isinstance(data, dict) else data, {"from": "here"}, refuse)


@pytest.fixture
def origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Origin:
    monkeypatch.setenv("MAW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(corpora, "IN_MEMORY", 10)
    return Origin("toy", {"size": 1})


# Reading


def check_like(found: TextStore, data: dict[str, str]) -> None:
    assert dict(found) == data
    assert list(found) == list(found.keys()) == list(found.ids) == list(data)
    assert list(found.values()) == list(found.texts) == list(data.values())
    assert list(found.items()) == list(data.items())
    assert len(found) == len(data)
    assert all(found[name] == text and name in found for name, text in data.items())
    others = ["", "nothing", *(f"{name}x" for name in data)]
    assert [name in found for name in others] == [name in data for name in others]
    assert found.known([*data, *others]) == [True] * len(data) + [name in data for name in others]
    assert lacking(found, [*others, *data]) == lacking(data, [*others, *data])
    assert [found.ids[int(place)] for place in found.descending()] == sorted(data, reverse=True)
    assert found.counts == count_texts(found) == count_texts(data)
    assert content_checksum(found) == content_checksum(data)


def test_it_reads_like_the_dictionary(tmp_path: Path) -> None:
    found = store(tmp_path / "s", TEXTS)
    check_like(found, TEXTS)
    assert found.counts == {"total": 7, "empty": 1, "repeated": 1}
    assert found.manifest["stamp"] == {"from": "here"}
    assert found.get("none") is None
    assert 3 not in found
    with pytest.raises(KeyError, match="none"):
        found["none"]
    assert found.texts[-1] == " "
    assert found.texts[1:3] == ["", TEXTS["é"]]
    assert found.texts[::3] == ["a river", "two\nlines", " "]
    with pytest.raises(IndexError):
        found.texts[7]


WORDS = st.text(st.characters(codec="utf-8"), max_size=5)


@settings(deadline=None)
@given(data=st.dictionaries(WORDS.filter(lambda name: "\0" not in name), WORDS, min_size=1, max_size=30))
def test_any_texts_come_back(tmp_path_factory: pytest.TempPathFactory, data: dict[str, str]) -> None:
    check_like(store(tmp_path_factory.mktemp("stores") / "s", data), data)


@pytest.mark.parametrize("module", [texts, text_writer])
def test_equal_hashes_of_different_ids_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module) -> None:
    for each in (texts, text_writer):
        monkeypatch.setattr(each, "hash64", lambda text: len(text) % 2)
    found = store(tmp_path / "s", TEXTS)
    assert dict(found.items()) == {name: found[name] for name in TEXTS} == TEXTS
    assert found.known([*TEXTS, "x", "xx"]) == [True] * len(TEXTS) + [False] * 2
    with pytest.raises(MAWError, match="'d1' at 4 and 7"):
        store(tmp_path / "t", [*TEXTS.items(), ("d1", "again")])


def test_blocks_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {f"n{i}": f"text {i}" * (i % 5) for i in range(50)}
    found = store(tmp_path / "s", data)
    for block in (1, 7, 50, 1000):
        monkeypatch.setattr(texts, "BLOCK", block)
        check_like(found, data)


def test_long_ids_are_sorted_without_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = store(tmp_path / "s", TEXTS | {f"n{i}": "x" for i in range(20)})
    table = found.descending().tolist()
    monkeypatch.setattr(texts, "LARGEST_TABLE", 100)
    assert found.descending().tolist() == table


def test_it_can_be_pickled_and_outlives_its_folder(tmp_path: Path) -> None:
    found = store(tmp_path / "s", TEXTS)
    assert dict(pickle.loads(pickle.dumps(found))) == TEXTS
    assert "7 texts" in repr(found)
    store(tmp_path / "s", {"other": "text"})  # replaced while it is open
    assert dict(found.items()) == TEXTS
    assert dict(TextStore(tmp_path / "s")) == {"other": "text"}


def test_the_first_repeated_id_is_reported(tmp_path: Path) -> None:
    records = [("a", "1"), ("b", "2"), ("c", "3"), ("b", "4"), ("a", "5"), ("b", "6")]
    with pytest.raises(MAWError, match="'b' at 1 and 3"):
        store(tmp_path / "s", records)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["texts.bin", "ids.bin", "places.npy", "manifest.json"])
def test_a_damaged_store_is_refused_by_name(tmp_path: Path, name: str) -> None:
    folder = store(tmp_path / "s", TEXTS).folder
    os.truncate(folder / name, (folder / name).stat().st_size - 2)
    with pytest.raises(MAWError, match=name.replace(".", r"\.")):
        TextStore(folder)
    (folder / name).unlink()
    with pytest.raises(MAWError, match=name.replace(".", r"\.")):
        TextStore(folder)


@pytest.mark.parametrize(
    "name", ["ids.bin", "text_ends.npy", "id_ends.npy", "hashes.npy", "places.npy", "text_hashes.npy", "manifest.json"]
)
def test_an_edit_of_the_same_length_is_found_when_the_store_is_opened(tmp_path: Path, name: str) -> None:
    path = store(tmp_path / "s", TEXTS).folder / name
    data = bytearray(path.read_bytes())
    place = data.index(b'"total": 7') + 9 if name == "manifest.json" else len(data) - 8
    data[place] = ord("6") if name == "manifest.json" else data[place] ^ 1
    path.write_bytes(data)
    with pytest.raises(MAWError, match=f"{path.name}.*(is damaged|was changed)"):
        TextStore(path.parent)


def test_an_edited_text_is_found_when_it_is_read(tmp_path: Path) -> None:
    found = store(tmp_path / "s", TEXTS)
    path = found.folder / "texts.bin"
    path.write_bytes(path.read_bytes().replace(b"a river", b"a rivet", 1))
    assert found["d1"] == "a river", "the other texts are as they were"
    for read in (lambda: found["d2"], lambda: dict(TextStore(found.folder)), lambda: found.texts[:3]):
        with pytest.raises(MAWError, match=r"texts\.bin is damaged: text 1 of 7 .* delete the folder"):
            read()


def test_a_store_of_another_version_is_refused(tmp_path: Path) -> None:
    folder = store(tmp_path / "s", TEXTS).folder
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"version": 99}))
    with pytest.raises(MAWError, match="version 99, wanted 2"):
        TextStore(folder)


# Where texts are kept


def reading(data: dict[str, str], times: list[int]):
    def records() -> Iterator[tuple[str, str]]:
        times.append(len(data))
        yield from data.items()

    return records


def test_few_texts_stay_in_memory_and_many_are_kept_once(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[int] = []
    few = hold_texts(origin, reading({"a": "x" * 10}, times), refuse)
    assert type(few) is dict
    assert not cache_folder().exists()
    many = hold_texts(origin, reading(TEXTS, times), refuse)
    assert isinstance(many, TextStore)
    assert dict(many) == TEXTS
    assert dict(hold_texts(origin, reading({}, times), refuse)) == TEXTS
    assert times == [1, 7]
    assert {path.suffix for path in (cache_folder() / "texts").iterdir()} == {"", ".lock"}
    other = Origin("toy", {"size": 2})  # a changed file
    assert dict(hold_texts(other, reading(TEXTS | {"new": "text"}, times), refuse)) == TEXTS | {"new": "text"}
    assert times == [1, 7, 8]


def test_an_id_is_repeated_in_memory_or_on_disk(origin: Origin) -> None:
    for first, second in (("x", "y"), ("x", "y" * 20), ("x" * 20, "y")):
        with pytest.raises(MAWError, match="'a' at 0 and 1"):
            hold_texts(origin, lambda a=first, b=second: iter([("a", a), ("a", b)]), refuse)
    assert [path.suffix for path in (cache_folder() / "texts").iterdir()] == [".lock"]


def test_a_damaged_store_in_the_cache_is_made_again(origin: Origin) -> None:
    times: list[int] = []
    folder = hold_texts(origin, reading(TEXTS, times), refuse).folder  # type: ignore[attr-defined]
    os.truncate(folder / "texts.bin", 3)
    assert dict(hold_texts(origin, reading(TEXTS, times), refuse)) == TEXTS
    assert times == [7, 7]


def test_a_file_is_read_anew_when_it_changed(tmp_path: Path, origin: Origin) -> None:
    path, found = tmp_path / "corpus.tsv", []
    for content in ("a\tone one one one\n", "a\ttwo two two two\n"):
        path.write_text(content)
        os.utime(path, ns=(1, len(found) + 1))

        def records(checksums: dict[str, str]) -> Iterator[tuple[str, str]]:
            for _, line in lines.read_lines(path, checksums, "key", layout="x"):
                found.append(line)
                yield line[:1], line[2:]

        for _ in range(2):
            checksums: dict[str, str] = {}
            texts_there = hold_file(path, "layout", records, checksums, "key")
            assert dict(texts_there) == {"a": content[2:-1]}
            assert checksums == {"key": __import__("hashlib").sha256(content.encode()).hexdigest()}
    assert len(found) == 2


def test_what_reading_raises_is_not_taken_for_a_full_disk(origin: Origin) -> None:
    def records() -> Iterator[tuple[str, str]]:
        yield "a", "x" * 100
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        hold_texts(origin, records, refuse)
    assert [path.suffix for path in (cache_folder() / "texts").iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, origin: Origin, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MAW_CACHE", str(tmp_path / "file"))
    with pytest.raises(MAWError, match=r"file/texts/.* cannot|cannot write .*file/texts/.*MAW_CACHE"):
        hold_texts(origin, reading(TEXTS, []), refuse)


def run_python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_full_disk_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    """The system refuses to let a file grow beyond 20,000 bytes, as a full disk would."""
    code = """
import resource, signal, sys
from pathlib import Path
from maw.errors import MAWError
from maw.retrieval.data.text_writer import build_store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    build_store(Path(sys.argv[1]) / "s", ((str(i), "x" * 100) for i in range(1000)), {}, None)
except MAWError as error:
    print(error)
"""
    assert "cannot write the store" in (said := run_python(code, str(tmp_path)))
    assert "File too large" in said
    assert os.listdir(tmp_path) == []


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from maw.retrieval.data.corpora import Origin, keep_on_disk
def records():
    yield "a", "text"
    os.kill(os.getpid(), signal.SIGKILL)
keep_on_disk(Path(sys.argv[1]) / "s", Origin("toy", {}), records, None)
"""
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.glob(".s.*.part")
    others = [tmp_path / left.name.replace(".s.", f".{name}.", 1) for name in ("s.1", "t")]
    for other in others:
        other.mkdir()
    keep_on_disk(tmp_path / "s", Origin("toy", {}), lambda: iter([("a", "text")]), refuse)
    assert not left.exists()
    assert all(other.exists() for other in others)
    left.mkdir()
    keep_on_disk(tmp_path / "s", Origin("toy", {}), lambda: iter([]), refuse)
    assert not left.exists(), "one that is used again"


def test_several_processes_make_a_store_once(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from maw.retrieval.data.corpora import Origin, keep_on_disk
def records():
    print("reading")
    time.sleep(0.5)
    yield "a", "text"
store = keep_on_disk(Path(sys.argv[1]) / "s", Origin("toy", {}), records, None)
print(dict(store))
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert sum("reading" in one for one in said) == 1
    assert all("{'a': 'text'}" in one for one in said)


def test_negatives_and_corpora_share_the_way_of_keeping(tmp_path: Path) -> None:
    one = keep_on_disk(tmp_path / "s", Origin("a", {"n": 1}), lambda: iter([("x", "1")]), refuse)
    assert dict(one) == dict(keep_on_disk(tmp_path / "s", Origin("a", {"n": 1}), lambda: iter([]), refuse))
    assert dict(keep_on_disk(tmp_path / "s", Origin("a", {"n": 2}), lambda: iter([("x", "2")]), refuse)) == {"x": "2"}


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({"MAW_CACHE": "/a/b"}, "/a/b"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/maw"),
        ({"XDG_CACHE_HOME": "", "HOME": "/h"}, "/h/.cache/maw"),
    ],
)
def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, named: dict[str, str], expected: str) -> None:
    for name in ("MAW_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    assert str(cache_folder()) == expected


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    """Ten times the texts, 300 MB: the peak of a process that makes, searches and reads the store grows by little."""
    code = """
import sys
from pathlib import Path
from maw.retrieval.data.text_writer import build_store
n = int(sys.argv[2])
store = build_store(Path(sys.argv[1]) / f"s{n}", ((str(i), f"{i} " * 50) for i in range(n)), {}, None)
assert all(store[str(i)] == f"{i} " * 50 for i in range(0, n, 7))
assert sum(map(len, store.values())) > 50 * n
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024)
"""
    if not Path("/proc/self/status").is_file():
        pytest.skip("the peak of memory is read from /proc/self/status, which this system does not have")
    small, large = (float(run_python(code, str(tmp_path), str(n))) for n in (80_000, 800_000))
    assert large - small < 100  # MB: the index; the texts are 300 MB


def test_the_examples_run() -> None:
    for tested in (texts, text_writer, corpora, checks, lines):
        assert doctest.testmod(tested).failed == 0
