"""Files as people have them: packed, with byte order marks, comments, mixed blanks, grades as 1.0, empty last lines."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import encoder

from maw.cli import main
from maw.errors import MAWError
from maw.retrieval.data.corpus_file import CorpusFile
from maw.retrieval.data.judgements import read_judgements
from maw.retrieval.data.loading import load_dataset
from maw.retrieval.ranking.runs import read_run, write_run
from maw.retrieval.training.candidates import _columns
from maw.retrieval.vectors.corpus_encoding import EncodingSettings, encode_corpus
from maw.retrieval.vectors.store import VectorStore
from maw.retrieval.vectors.store_search import read_queries, search_store, text_of

MARK = b"\xef\xbb\xbf"

FORMS: dict[str, Callable[[bytes], bytes]] = {
    "as it is": lambda text: text,
    "byte order mark": lambda text: MARK + text,
    "gzip": gzip.compress,
    "gzip and mark": lambda text: gzip.compress(MARK + text),
    "carriage returns": lambda text: text.replace(b"\n", b"\r\n"),
    "empty last lines": lambda text: text + b"\n \t\n\r\n",
    "no end of the last line": lambda text: text.rstrip(b"\n"),
}

TREC_FORMS = FORMS | {
    "comments": lambda text: b"# made by hand\n" + text + b"  # the end\n",
    "trailing tabs": lambda text: text.replace(b"\n", b"\t\n"),
    "tabs and blanks": lambda text: text.replace(b" ", b"\t", 2).replace(b" ", b" \t "),
    "blanks before": lambda text: b" " + text,
    "empty lines": lambda text: text.replace(b"\n", b"\n\n"),
}

QRELS = b"q1 0 d1 1\nq1 0 d2 0\nq2 0 d3 2\n"
GRADES = {"q1": {"d1": 1, "d2": 0}, "q2": {"d3": 2}}
RUN = b"q1 Q0 d2 1 2.0 t\nq1 Q0 d1 2 1.0 t\nq2 Q0 d3 1 5 t\n"


@pytest.mark.parametrize("form", [*TREC_FORMS, "grades as 1.0"])
@pytest.mark.parametrize("columns", [3, 4])
def test_judgements(tmp_path: Path, form: str, columns: int) -> None:
    text = QRELS if columns == 4 else QRELS.replace(b" 0 d", b" d")
    make = TREC_FORMS.get(form, lambda text: re.sub(rb"(\d)\n", rb"\1.0\n", text))
    (tmp_path / "qrels").write_bytes(make(text))
    assert read_judgements(tmp_path / "qrels", {}, "").grades == GRADES


@pytest.mark.parametrize("form", FORMS)
def test_judgements_under_a_header(tmp_path: Path, form: str) -> None:
    text = b"query-id\tcorpus-id\tscore\n#1\td 1\t1.0\n#1\td2\t0\n"
    (tmp_path / "qrels").write_bytes(FORMS[form](text))
    for needed in (True, False):
        found = read_judgements(tmp_path / "qrels", {}, "", header_needed=needed)
        assert found.grades == {"#1": {"d 1": 1, "d2": 0}}, "under a header nothing is a comment"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"q1 0 d1 1.5", r"line 2: wanted an integer grade .* got '1\.5': measures count whole grades"),
        (b"q1 0 d1 nan", "line 2: wanted an integer grade"),
        (b"q1 0 d\x1b[2J 1", r"line 2: an id must have no control characters, it has U\+001B"),
        ("q\x85 0 d1 1".encode(), r"line 2: an id must have no control characters, it has U\+0085"),
        (b"q1 0 d1", "line 2: wanted 4 columns, got 3"),
    ],
)
def test_judgements_that_are_refused(tmp_path: Path, line: bytes, said: str) -> None:
    (tmp_path / "qrels").write_bytes(b"q2 0 d1 1\n" + line + b"\n")
    with pytest.raises(MAWError, match=said):
        read_judgements(tmp_path / "qrels", {}, "")


def test_ids_may_hold_white_space_that_is_not_ascii(tmp_path: Path) -> None:
    (tmp_path / "qrels").write_text("q\u00a01 0 d\u2003x 1\n", encoding="utf-8")
    (tmp_path / "run").write_text("q\u00a01 Q0 d\u2003x 1 1.0 t\n", encoding="utf-8")
    assert read_judgements(tmp_path / "qrels", {}, "").grades == {"q\u00a01": {"d\u2003x": 1}}
    assert read_run(tmp_path / "run") == {"q\u00a01": {"d\u2003x": 1.0}}


def test_tabs_after_a_text_are_no_columns(tmp_path: Path) -> None:
    (tmp_path / "queries.tsv").write_text("q1\tone\t\t \nq2\ttwo\n")
    assert read_queries(tmp_path / "queries.tsv") == {"q1": "one", "q2": "two"}
    (tmp_path / "queries.tsv").write_text("q1\tone\ttwo\n")
    with pytest.raises(MAWError, match="line 1: wanted 2 columns, an id, a tab and a text, got 3"):
        read_queries(tmp_path / "queries.tsv")


PARTS = st.sampled_from(
    [
        *b"qd019#.-+e\t \n\r\0\x1b\x1f\x8b\xef\xbb\xbf\xff\xc2\x85",
        QRELS,
        RUN,
        MARK,
        b"query-id\tcorpus-id\tscore\n",
        b"1e999 ",
    ]
).map(lambda part: part if isinstance(part, bytes) else bytes([part]))


@given(parts=st.lists(PARTS, max_size=30), packed=st.booleans(), cut=st.integers(0, 40))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_read_or_refused_in_words(tmp_path_factory, parts: list[bytes], packed: bool, cut: int) -> None:
    path = tmp_path_factory.mktemp("any") / "file.tsv"
    raw = gzip.compress(b"".join(parts)) if packed else b"".join(parts)
    path.write_bytes(raw[: len(raw) - cut] if packed and cut < 20 else raw)
    for read in (
        read_run,
        lambda file: read_run(file, ties="score"),
        lambda file: read_judgements(file, {}, ""),
        read_queries,
        lambda file: list(_columns(file)),
    ):
        with suppress(MAWError):  # any other exception is a failure
            read(path)


def test_files_joined_with_their_marks_lose_no_query(tmp_path: Path) -> None:
    """As `cat a.qrels b.qrels` makes them."""
    (tmp_path / "qrels").write_bytes(MARK + QRELS + MARK + b"q3 0 d1 1\n")
    with pytest.raises(MAWError, match=r"qrels, line 4: an id must not begin with a byte order mark \(U\+FEFF\)"):
        read_judgements(tmp_path / "qrels", {}, "")
    (tmp_path / "run").write_bytes(MARK + RUN + MARK + b"q3 Q0 d1 1 1 t\n")
    with pytest.raises(MAWError, match="run, line 4: an id must not begin with a byte order mark"):
        read_run(tmp_path / "run")
    (tmp_path / "wide").write_bytes("q1 Q0 d1 1 1.0 t\n".encode("utf-16"))
    with pytest.raises(MAWError, match="wide, line 1: a run file must be UTF-8 text, got the byte 0xff: convert it"):
        read_run(tmp_path / "wide")


def test_a_query_whose_id_begins_as_a_comment_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("q1 Q0 d 1 1.0 t\n# q1 Q0 d\n#q2 Q0 d 1 1.0 t\n")
    with pytest.raises(MAWError, match="run, line 3: it begins with # as a comment does, but has the columns"):
        read_run(tmp_path / "run")
    (tmp_path / "qrels").write_text("#q1 d 1\n")
    with pytest.raises(MAWError, match="qrels, line 1: it begins with # as a comment does, but has the columns"):
        read_judgements(tmp_path / "qrels", {}, "")
    with pytest.raises(MAWError, match="must not begin with #, which begins a comment in a run file, got '#q'"):
        write_run(tmp_path / "out", {"#q": {"d": 1.0}}, "t")
    (tmp_path / "negatives").write_text("# by hand\n#q1 d\n# and so on\nq2 d\n")
    assert list(_columns(tmp_path / "negatives")) == [["#q1", "d"], ["q2", "d"]]


@pytest.mark.parametrize("form", TREC_FORMS)
def test_runs(tmp_path: Path, form: str) -> None:
    (tmp_path / "run").write_bytes(TREC_FORMS[form](RUN))
    assert read_run(tmp_path / "run") == {"q1": {"d2": 2.0, "d1": 1.0}, "q2": {"d3": 5.0}}


@pytest.mark.parametrize("form", FORMS)
def test_runs_under_a_header(tmp_path: Path, form: str) -> None:
    text = b"query-id\tcorpus-id\trank\tscore\n#1\td 1\t1\t2.0\n#1\td2\t2\t1.0\n"
    (tmp_path / "run").write_bytes(FORMS[form](text))
    assert read_run(tmp_path / "run") == {"#1": {"d 1": 2.0, "d2": 1.0}}


@pytest.mark.parametrize("form", [*TREC_FORMS, "grades as 1.0"])
def test_as_typed(tmp_path: Path, form: str, capsys: pytest.CaptureFixture) -> None:
    make = TREC_FORMS.get(form, lambda text: text)
    (tmp_path / "run").write_bytes(make(RUN))
    (tmp_path / "qrels").write_bytes(make(QRELS))
    given = ["evaluate", "--run", str(tmp_path / "run"), "--qrels", str(tmp_path / "qrels")]
    assert main([*given, "--measures", "MRR@10"]) == 0
    assert "MRR@10   0.75000\n" in capsys.readouterr().out


def test_a_run_whose_ranks_are_all_zero_names_the_option(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "run").write_text("q1 Q0 d1 0 2.0 t\nq1 Q0 d2 0 1.0 t\n")
    (tmp_path / "qrels").write_bytes(QRELS)
    given = ["evaluate", "--run", str(tmp_path / "run"), "--qrels", str(tmp_path / "qrels"), "--measures", "MRR@10"]
    assert main(given) == 2
    assert "line 2: a rank must come once a query, got 0 again for query 'q1'" in (said := capsys.readouterr().err)
    assert "--ties score" in said
    assert main([*given, "--ties", "score"]) == 0


CORPORA = {
    ".jsonl": b'{"_id": "d1", "title": "An", "text": "engine."}\n{"_id": "d2", "text": "A river."}\n',
    ".tsv": b"d1\tAn engine.\nd2\tA river.\n",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", CORPORA)
def test_corpora_and_queries(tmp_path: Path, form: str, suffix: str) -> None:
    (path := tmp_path / f"corpus{suffix}").write_bytes(FORMS[form](CORPORA[suffix]))
    wanted = {"d1": "An engine.", "d2": "A river."}
    assert read_queries(path) == wanted | ({"d1": "engine."} if suffix == ".jsonl" else {}), "a query has no title"
    for lines in (1, 2, 9):
        blocks = list(CorpusFile(path).blocks(lines=lines))
        assert dict(record for block in blocks for record in block.records()) == wanted


@pytest.mark.parametrize("suffix", CORPORA)
def test_an_empty_line_before_the_last_is_refused_where_lines_are_texts(tmp_path: Path, suffix: str) -> None:
    (path := tmp_path / f"corpus{suffix}").write_bytes(CORPORA[suffix].replace(b"\n", b"\n\n", 1))
    with pytest.raises(MAWError, match="line 2: wanted"):
        read_queries(path)


@pytest.mark.parametrize("form", ["gzip and mark", "byte order mark", "empty last lines"])
def test_a_corpus_is_encoded_and_searched(tmp_path: Path, form: str) -> None:
    text = "".join(f"d{n}\tText number {n} of a river\n" for n in range(5)).encode()
    (path := tmp_path / "corpus.tsv").write_bytes(FORMS[form](text))
    (plain := tmp_path / "plain.tsv").write_bytes(text)
    model = encoder()
    found = []
    for corpus in (path, plain):
        encode_corpus(model, corpus, tmp_path / f"{corpus.stem}.store", EncodingSettings(shard_size=2))
        store = VectorStore(tmp_path / f"{corpus.stem}.store")
        ((_, hits),) = search_store(model, store, {"q": "river 3"}, 5)
        assert {text_of(store, CorpusFile(corpus), hit) for hit in hits} == {
            f"Text number {n} of a river" for n in range(5)
        }
        found.append(hits)
    assert found[0] == found[1]


@pytest.mark.parametrize("form", FORMS)
def test_beir_and_ms_marco_folders(tmp_path: Path, form: str) -> None:
    make = FORMS[form]
    (beir := tmp_path / "beir" / "qrels").mkdir(parents=True)
    (beir.parent / "corpus.jsonl").write_bytes(make(CORPORA[".jsonl"]))
    (beir.parent / "queries.jsonl").write_bytes(make(json.dumps({"_id": "q1", "text": "x"}).encode() + b"\n"))
    (beir / "test.tsv").write_bytes(make(b"query-id\tcorpus-id\tscore\nq1\td1\t1\n"))
    (folder := tmp_path / "msmarco").mkdir()
    (folder / "collection.tsv").write_bytes(make(CORPORA[".tsv"]))
    (folder / "queries.dev.tsv").write_bytes(make(b"q1\tx\n"))
    (folder / "qrels.dev.tsv").write_bytes(make(b"q1\t0\td1\t1\n"))
    for name, split in ((f"beir:{beir.parent}", "test"), (f"msmarco:{folder}", "dev")):
        data = load_dataset(name)
        assert dict(data.documents) == {"d1": "An engine.", "d2": "A river."}
        assert dict(data.queries) == {"q1": "x"}
        assert data.qrels[split] == {"q1": {"d1": 1}}


NEGATIVES = {
    2: b"q1 d1\nq2 d2\n",
    3: b"q1 d1 d9\nq2 d2 d9\n",
    6: b"q1 Q0 d1 1 2.0 t\nq2 Q0 d2 1 2.0 t\n",
}


@pytest.mark.parametrize("form", TREC_FORMS)
@pytest.mark.parametrize("width", NEGATIVES)
def test_files_of_negatives(tmp_path: Path, form: str, width: int) -> None:
    (path := tmp_path / "negatives").write_bytes(TREC_FORMS[form](NEGATIVES[width]))
    assert list(_columns(path)) == [line.decode().split() for line in NEGATIVES[width].splitlines()]


@pytest.mark.parametrize("form", FORMS)
def test_files_of_negatives_with_texts(tmp_path: Path, form: str) -> None:
    (path := tmp_path / "top1000").write_bytes(FORMS[form](b"q1\td1\t# a b\tc d\nq2\td2\tx\ty\n"))
    assert list(_columns(path)) == [["q1", "d1", "# a b", "c d"], ["q2", "d2", "x", "y"]]


@pytest.mark.parametrize("name", ["q\x1b[2J", "q\x9b2J", "q\x7f", "q\x00"])
def test_control_characters_in_ids_are_refused_wherever_ids_are_read(tmp_path: Path, name: str) -> None:
    reads: dict[str, tuple[str, Callable[[Path], object]]] = {
        "run": (f"{name} Q0 d 1 1.0 t\n", read_run),
        "run 2": (f"q Q0 {name} 1 1.0 t\n", read_run),
        "qrels": (f"q 0 {name} 1\n", lambda path: read_judgements(path, {}, "")),
        "queries.tsv": (f"{name}\ttext\n", read_queries),
        "queries.jsonl": (json.dumps({"_id": name, "text": "x"}) + "\n", read_queries),
    }
    for file, (text, read) in reads.items():
        (tmp_path / file).write_text(text, encoding="utf-8", newline="\n")
        with pytest.raises(
            MAWError, match=f"line 1: an id must have no control characters, it has U.00{ord(name[1]):02X}"
        ):
            read(tmp_path / file)


def test_a_judged_query_without_a_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_bytes(CORPORA[".jsonl"])
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": " "}\n{"_id": "q2", "text": "x"}\n')
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td1\t1\n")
    with pytest.raises(MAWError, match="'q1' of the split test have no text to search for"):
        load_dataset(f"beir:{tmp_path}")
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq2\td1\t1\n")
    assert load_dataset(f"beir:{tmp_path}").counts["queries"]["empty"] == 1, "a query that nobody asks may be empty"
