"""The embedded data set: its rules on a made-up library, and its size and splits on the real one."""

from __future__ import annotations

import ast
import doctest
import json
import platform
import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from maw.errors import MAWError
from maw.retrieval.data import pydocs
from maw.retrieval.data.dataset import RetrievalDataset
from maw.retrieval.data.loading import load_dataset
from maw.retrieval.data.report import render_report

BODY = "return [number * number for number in range(10)]"


@pytest.fixture(scope="module")
def data(build_pydocs) -> RetrievalDataset:
    return build_pydocs()


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Make a folder of three modules with one usable function each; tests add their own."""
    for number in range(3):
        add(tmp_path, f"module{number}.py", function(f"f{number}", f"Say what function number {'abc'[number]} does."))
    return tmp_path


def add(folder: Path, name: str, source: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")


def function(name: str, docstring: str, body: str = BODY) -> str:
    return f'def {name}(argument):\n    """{docstring}"""\n    {name} = 1\n    {body}\n'


# --- the real library -------------------------------------------------------------------------------------------------


def test_size_and_splits(data: RetrievalDataset):
    assert data.name == "pydocs"
    assert data.licence is not None
    assert data.licence.startswith("PSF-2.0")
    total = len(data.documents)
    assert 4000 <= total <= 5000, f"{total} pairs on Python {platform.python_version()}: mend the rules or this range"
    assert len(data.queries) == total
    sizes = {split: len(rows) for split, rows in data.qrels.items()}
    assert sum(sizes.values()) == total
    assert sizes["test"] >= 500
    assert 0.2 <= sizes["test"] / total <= 0.225
    assert 0.1 <= sizes["dev"] / total <= 0.125
    assert data.counts["source"]["python"] == platform.python_version()
    assert data.counts["dropped_train_queries"] == []
    assert data.counts["documents"]["repeated"] == data.counts["queries"]["repeated"] == 0
    assert json.loads(json.dumps(data.report())) == data.report()
    assert f"python: {platform.python_version()}" in render_report(data)


def test_no_module_is_in_two_splits(data: RetrievalDataset):
    modules = {
        split: {document.partition(":")[0] for row in rows.values() for document in row}
        for split, rows in data.qrels.items()
    }
    assert sum(map(len, modules.values())) == len(set().union(*modules.values()))
    assert {split: len(names) for split, names in modules.items()} == data.counts["source"]["modules"]


def test_every_query_has_one_document_and_another_id(data: RetrievalDataset):
    for rows in data.qrels.values():
        for query, row in rows.items():
            assert row == {query.removeprefix("q/"): 1}
    assert not data.documents.keys() & data.queries.keys()


def test_documents_are_whole_functions_without_their_docstring(data: RetrievalDataset):
    for name, source in data.documents.items():
        (node,) = ast.parse(source).body
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef), name
        assert node.name == name.rpartition(":")[2].rpartition(".")[2].rstrip("+")
        assert ast.get_docstring(node) is None, name
        assert source == source.strip()


def test_queries_are_one_line_of_prose(data: RetrievalDataset):
    for name, query in data.queries.items():
        assert "\n" not in query, name
        assert len(query.split()) >= pydocs.MIN_QUERY_WORDS, name
        assert not query.startswith(">>>"), name


def test_two_builds_are_equal(data: RetrievalDataset):
    again = load_dataset("pydocs")
    assert again == data
    assert list(again.documents) == list(data.documents)
    assert again.checksums == data.checksums
    assert len(data.checksums["pairs"]) == 64


def test_the_preset_quick_fits(data: RetrievalDataset):
    quick = data.subset(train_pairs=600, documents=1500, test_queries=500, dev_queries=100, seed=0)
    assert quick.counts["subset"]["kept"] == quick.counts["subset"]["asked"]


# --- the rules --------------------------------------------------------------------------------------------------------


def test_which_functions_count(library: Path):
    text = "Words enough to be a query"
    add(
        library,
        "package/__init__.py",
        f'''
if True:
    def below_if(x):
        """{text}, one."""
        return sorted(x, key=lambda item: -item)
else:
    def below_if(x):
        """{text}, two."""
        return sorted(x, key=lambda item: item + 1)
try:
    pass
except ImportError:
    async def below_except(x):
        """{text}, three."""
        return sorted(x, key=lambda item: item + 3)
class A:
    class B:
        @property
        @staticmethod
        def method(x):
            """{text}, four."""
            # a comment stays
            def inner(y):
                """{text}, five."""
                return sorted(y, key=lambda item: item + 5)
            return inner
def no_docstring(x):
    return sorted(x, key=lambda item: item + 6)
''',
    )
    found = pydocs.build(library)
    names = [name for name in found.documents if name.startswith("package:")]
    assert names == ["package:below_if", "package:below_if+", "package:below_except", "package:A.B.method"]
    assert found.queries["q/package:below_except"] == f"{text}, three."
    method = found.documents["package:A.B.method"]
    assert method.startswith("@property\n@staticmethod\ndef method(x):\n    # a comment stays\n    def inner(y):\n")
    assert f"{text}, four" not in method


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('def f(a):\n    "The docstring of this function."\n    return a\n', "def f(a):\n    return a"),
        (
            'def f(a):\n\n    """The docstring é\n    of it."""  # note\n    return a\n',
            "def f(a):\n\n    # note\n    return a",
        ),
        ('def f(a): "é of this"; return a\n', "def f(a): return a"),
        ('def f(a):\n    "Said" " in two"\n    return a\n', "def f(a):\n    return a"),
        ('class A:\n\tdef f(a):\n\t\t"""Said."""\n\t\treturn a\n', "def f(a):\n\treturn a"),
        ('class A:\n  def f(a):\n    """Said."""\n    return """\nx"""\n', 'def f(a):\n  return """\nx"""'),
    ],
)
def test_how_the_docstring_is_cut_out(source: str, expected: str):
    tree = ast.parse(source)
    ((_, node),) = pydocs._functions(tree.body)
    cut = pydocs._document(node, source.encode().split(b"\n"))
    assert ast.dump(ast.parse(cut)) == ast.dump(ast.parse(expected))
    assert cut == expected


@pytest.mark.parametrize(
    ("docstring", "query"),
    [
        ("One line.", "One line."),
        ("  Two\n   lines.\n\nAnother paragraph.", "Two lines."),
        ("get(k[, d]) -> value", ""),
        ("get(k) -> value\nget(k, d) --> value\n\nReturn a value.", "Return a value."),
        ("get(k) returns the value of k.", "get(k) returns the value of k."),
        ("Square it.\n>>> f(2)\n4", "Square it."),
        (">>> f(2)\n4", ""),
        ("", ""),
    ],
)
def test_what_the_query_is(docstring: str, query: str):
    assert pydocs._query(docstring) == query


@pytest.mark.parametrize(
    ("docstring", "body", "reason"),
    [
        ("Only four words here.", BODY, "short_query"),
        ("a_1 2 3 4 5 6 7", BODY, "short_query"),
        ("Words enough to be a query.", "pass", "short_body"),
        ("Words enough to be a query.", "...", "short_body"),
        ("Words enough to be a query.", "raise NotImplementedError('in every subclass, please')", "short_body"),
        ("Words enough to be a query.", "return argument", "short_body"),
        ("Words enough to be a query.", "'a constant that is longer than that'", "short_body"),
        ("say what FUNCTION number\n  a does.", BODY, "repeated_query"),
    ],
)
def test_what_is_left_out(library: Path, docstring: str, body: str, reason: str):
    add(library, "zzz.py", f'def f(argument):\n    """{docstring}"""\n    {body}\n')
    found = pydocs.build(library)
    assert found.counts["source"]["left_out"] == {reason: 1}
    assert list(found.documents) == ["module0:f0", "module1:f1", "module2:f2"]


def test_the_second_of_two_equal_documents_is_left_out(library: Path):
    add(library, "zzz.py", function("f1", "Quite another thing is said here."))
    found = pydocs.build(library)
    assert found.counts["source"]["left_out"] == {"repeated_document": 1}
    assert len(found.documents) == 3


@pytest.mark.parametrize(
    "name", ["test/a.py", "site-packages/x/a.py", "json/tests/a.py", "idlelib/a.py", "config-3.11-linux/a.py", "a.pyc"]
)
def test_which_files_do_not_count(library: Path, name: str):
    expected = pydocs.build(library)
    add(library, name, function("g", "Words enough to be a query."))
    assert pydocs.build(library) == expected


def test_the_folder_above_does_not_count(library: Path, tmp_path: Path):
    expected = pydocs.build(library)
    deeper = tmp_path / "site-packages" / "test"
    for path in list(library.glob("*.py")):
        add(deeper, path.name, path.read_text())
    assert pydocs.build(deeper) == expected


@pytest.mark.parametrize(
    "content", [b"def f(:\n", b"x = '\xff'\n", b"x = '\0'\n", b"# coding: nonsense\n", b"\n\n\n'\xff'\n"]
)
def test_a_file_that_does_not_parse_is_counted(library: Path, content: bytes):
    (library / "broken.py").write_bytes(content)
    found = pydocs.build(library)
    assert found.counts["source"]["files_not_parsed"] == ["broken.py"]
    assert found.counts["source"]["files"] == 4
    assert len(found.documents) == 3


def test_an_old_escape_warns_nobody(library: Path):
    add(library, "old.py", "PATTERN = '\\d'\n" + function("g", "Words enough to be a query."))
    assert len(pydocs.build(library).documents) == 4


def test_a_coding_line_is_honoured(library: Path):
    source = (
        '# coding: latin-1\ndef g(x):\n    """Words enough for a café."""\n    return sorted(x, key=lambda é: -é)\n'
    )
    (library / "latin.py").write_bytes(source.encode("latin-1"))
    found = pydocs.build(library)
    assert found.queries["q/latin:g"] == "Words enough for a café."
    assert found.documents["latin:g"] == "def g(x):\n    return sorted(x, key=lambda é: -é)"


def test_the_checksum_follows_every_text(library: Path):
    before = pydocs.build(library).checksums
    path = library / "module1.py"
    path.write_text(path.read_text().replace("range(10)", "range(11)"))
    assert pydocs.build(library).checksums != before


def test_a_split_is_the_same_in_every_process():
    split_of = pydocs._split_modules(Counter(dict.fromkeys("abcdefghij", 1)))
    assert {split: [name for name in split_of if split_of[name] == split] for split in ("test", "dev")} == {
        "test": ["d", "b"],
        "dev": ["j"],
    }


def test_one_large_module_is_train(library: Path):
    text = "".join(function(f"g{n}", f"Words enough to be a query about {'x' * (n + 1)}.") for n in range(50))
    add(library, "large.py", text)
    for n in range(3, 60):
        add(library, f"small{n}.py", function(f"h{n}", f"Words enough to be a query on {'y' * n}."))
    found = pydocs.build(library)
    assert "q/large:g0" in found.qrels["train"]
    assert {split: len(rows) for split, rows in found.qrels.items()} == {"train": 77, "dev": 11, "test": 22}


# --- where there are no sources ---------------------------------------------------------------------------------------


def test_a_zipped_library_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    zipped = tmp_path / "python311.zip"
    zipped.write_bytes(b"PK")
    with pytest.raises(MAWError, match=r"python311\.zip is not a folder .*beir:FOLDER"):
        pydocs.build(zipped)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(zipped)})
    with pytest.raises(MAWError, match=r"python311\.zip is not a folder"):
        load_dataset("pydocs")


def test_a_stripped_library_is_refused(tmp_path: Path):
    (tmp_path / "argparse.pyc").write_bytes(b"\0")
    with pytest.raises(MAWError, match=r"has no \.py file .*beir:FOLDER"):
        pydocs.build(tmp_path)


def test_too_few_modules_are_refused(library: Path):
    (library / "module2.py").unlink()
    with pytest.raises(MAWError, match="2 usable functions in 2 modules and 2 files"):
        pydocs.build(library)


def test_examples():
    result = doctest.testmod(pydocs)
    assert result.attempted >= 1
    assert result.failed == 0
