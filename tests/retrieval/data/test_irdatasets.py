"""Data sets by id, on real ir_datasets objects that read small files laid where they look for them; no network."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from toys import encoder

from maw.cli import main
from maw.errors import MAWError
from maw.retrieval.data import corpora
from maw.retrieval.data.dataset import RetrievalDataset
from maw.retrieval.data.loading import load_dataset
from maw.retrieval.data.report import render_report

DOCUMENTS = {"d1": ("A river", "It runs."), "d2": ("", "The mill stands."), "d3": ("Stars", "They shine.")}
QUERIES = {"q1": "what runs", "q2": "what stands", "q3": "what shines", "d3": "Stars They shine."}
QRELS = {"train": "q1\td1\t1\nq1\td2\t0\n", "dev": "q2\td2\t2\n", "test": "q3\td3\t1\nq3\tgone\t1\n"}
HEADER = "query-id\tcorpus-id\tscore\n"


@pytest.fixture(params=["in memory", "on disk"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where texts are kept."""
    if request.param == "on disk":
        monkeypatch.setattr(corpora, "IN_MEMORY", -1)
    return request.param


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home of ir_datasets, which is imported anew for it; whatever it fetches is refused at once."""
    folder = tmp_path / "home"
    for name, value in {
        "IR_DATASETS_HOME": str(folder),
        "IR_DATASETS_TMP": str(tmp_path / "tmp"),
        "IR_DATASETS_DL_TRIES": "1",
        "MAW_CACHE": str(tmp_path / "cache"),
        **dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"), "http://127.0.0.1:9"),
    }.items():
        monkeypatch.setenv(name, value)
    for name in [name for name in sys.modules if name.partition(".")[0] == "ir_datasets"]:
        monkeypatch.delitem(sys.modules, name)
    logging.getLogger("ir_datasets").handlers.clear()  # every import adds one
    return folder


@pytest.fixture(scope="module", autouse=True)
def _leave_no_module_behind():
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "ir_datasets"]:
        del sys.modules[name]


def lines(rows) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def write_beir(
    home: Path,
    name: str,
    documents: Mapping[str, tuple[str, str]],
    queries: Mapping[str, str],
    qrels: Mapping[str, str],
) -> None:
    """BEIR's own archive, where ir_datasets would put it after the download."""
    (home / "beir" / name).mkdir(parents=True)
    metadata = {"metadata": {"url": "https://example.org"}}
    with zipfile.ZipFile(home / "beir" / name / "source.zip", "w") as archive:
        rows = ({"_id": key, "title": title, "text": text, **metadata} for key, (title, text) in documents.items())
        archive.writestr(f"{name}/corpus.jsonl", lines(rows))
        archive.writestr(
            f"{name}/queries.jsonl", lines({"_id": key, "text": text, **metadata} for key, text in queries.items())
        )
        for split, text in qrels.items():
            archive.writestr(f"{name}/qrels/{split}.tsv", HEADER + text)


def put(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


# BEIR


def test_a_beir_id_has_its_three_splits(home: Path, kept: str) -> None:
    write_beir(home, "nfcorpus", DOCUMENTS, QUERIES, QRELS)
    data = load_dataset("ir:beir/nfcorpus")
    assert data.name == "ir:beir/nfcorpus"
    assert data.splits == ("train", "dev", "test")
    expected = {"d1": "A river It runs.", "d2": "The mill stands.", "d3": "Stars They shine."}
    assert dict(data.documents) == expected
    assert data.queries == {name: QUERIES[name] for name in ("q1", "q2", "q3")}
    assert data.qrels["train"] == {"q1": {"d1": 1, "d2": 0}}
    assert data.training_pairs() == [("q1", "d1")]
    assert data.counts["judged_but_not_in_collection"] == {"test": 1}
    assert data.qrels["test"] == {"q3": {"d3": 1, "gone": 1}}
    assert set(data.checksums) == {"documents", "queries", "qrels/train", "qrels/dev", "qrels/test"}
    assert not data.drop_own
    again = load_dataset("ir:beir/nfcorpus")
    assert dict(again.documents) == expected
    assert again.checksums == data.checksums


def test_a_beir_id_of_one_split(home: Path) -> None:
    write_beir(home, "nfcorpus", DOCUMENTS, QUERIES, QRELS)
    data = load_dataset("ir:beir/nfcorpus/test")
    assert data.splits == ("test",)
    assert data.default_split == "test"
    assert list(data.queries) == ["q3"]
    with pytest.raises(MAWError, match="wanted the split 'train', but the splits are test"):
        data.training_pairs()
    assert load_dataset("ir:beir/nfcorpus/train").splits == ("train",)


def test_the_queries_of_arguana_do_not_find_themselves(home: Path) -> None:
    write_beir(home, "arguana", DOCUMENTS, QUERIES, {"test": "d3\td1\t1\nq1\td1\t1\n"})
    data = load_dataset("ir:beir/arguana")
    assert data.splits == ("test",)
    assert data.drop_own
    assert data.counts["queries_that_are_documents"] == 1
    assert "1 queries to evaluate on are documents themselves: dropped" in render_report(data)
    assert not load_dataset("ir:beir/arguana", drop_own=False).drop_own


def test_a_damaged_archive_is_said_to_be_damaged(home: Path) -> None:
    write_beir(home, "nfcorpus", DOCUMENTS, QUERIES, QRELS)
    os.truncate(home / "beir" / "nfcorpus" / "source.zip", 100)
    with pytest.raises(MAWError, match=r"beir/nfcorpus cannot be read.*BadZipFile.*below .*home"):
        load_dataset("ir:beir/nfcorpus")


def test_judgements_that_contradict_themselves_are_refused(home: Path) -> None:
    write_beir(home, "scifact", DOCUMENTS, QUERIES, {"train": "q1\td1\t1\n", "test": "q2\td2\t1\nq2\td2\t0\n"})
    with pytest.raises(MAWError, match="split test: query 'q2' and document 'd2' have the grades 1 and 0"):
        load_dataset("ir:beir/scifact")


def test_records_without_a_default_text_give_their_text_or_are_refused(home: Path) -> None:
    """Objects made of ir_datasets' own parts, over files as its readers take them."""
    import ir_datasets
    from ir_datasets.formats import TrecQrels, TsvDocs, TsvQueries
    from ir_datasets.util import LocalDownload

    class Plain(NamedTuple):
        doc_id: str
        text: str

    class Picture(NamedTuple):
        doc_id: str
        address: str

    for name, content in {"docs": "d\ta text\n", "queries": "q\twhat\n", "qrels": "q 0 d 1\n"}.items():
        put(home / name, content)
    for kind in (Plain, Picture):
        parts = (TsvDocs(LocalDownload(home / "docs"), kind), TsvQueries(LocalDownload(home / "queries")))
        data = ir_datasets.Dataset(*parts, TrecQrels(LocalDownload(home / "qrels"), {}))
        ir_datasets.registry.register(f"own-{kind.__name__}", data)
    assert dict(load_dataset("ir:own-Plain").documents) == {"d": "a text"}
    assert load_dataset("ir:own-Plain").qrels == {"test": {"q": {"d": 1}}}
    with pytest.raises(MAWError, match=r"has none for a Picture .doc_id, address."):
        load_dataset("ir:own-Picture")


# LoTTE


def write_lotte(home: Path, documents: Mapping[str, str], splits: Mapping[str, list[tuple[str, list[str]]]]) -> None:
    root = home / "lotte" / "lotte_extracted" / "lotte" / "writing" / "test"
    put(root / "collection.tsv", "".join(f"{key}\t{text}\n" for key, text in documents.items()))
    for split, asked in splits.items():
        put(root / f"questions.{split}.tsv", "".join(f"{n}\t{text}\n" for n, (text, _) in enumerate(asked)))
        rows = [{"qid": n, "query": text, "answer_pids": ids} for n, (text, ids) in enumerate(asked)]
        put(root / f"qas.{split}.jsonl", lines(rows))


def test_lotte_by_corpus_and_by_kind_of_question(home: Path) -> None:
    documents = {"0": "How to write", "1": "Commas", "2": "Full stops"}
    asked = [("what is a comma", [1]), ("how do I write", [0, 2])]
    write_lotte(home, documents, {"search": asked})
    data = load_dataset("ir:lotte/writing/test/search")
    assert data.splits == ("search",)
    assert data.default_split == "search"
    assert dict(data.documents) == documents
    assert data.qrels["search"] == {"0": {"1": 1}, "1": {"0": 1, "2": 1}}
    write_lotte(home, documents, {"search": asked, "forum": asked})
    both = load_dataset("ir:lotte/writing/test")
    assert both.splits == ("forum", "search")
    with pytest.raises(MAWError, match="has no split test: name one with --split: forum, search"):
        _ = both.default_split


def test_the_same_query_id_with_two_texts_is_refused(home: Path) -> None:
    write_lotte(home, {"0": "x"}, {"search": [("one", [0])], "forum": [("another", [0])]})
    with pytest.raises(MAWError, match="query '0' of the split search has another text in a split before"):
        load_dataset("ir:lotte/writing/test")


# MS MARCO

MARCO = {
    "irds_version.txt": "v2",
    "collection.tsv": "0\tA river runs.\n1\tThe mill stands.\n2\tStars shine.\n",
    "train/queries.tsv": "10\twhat runs\n11\tnever judged\n",
    "train/qrels": "10\t0\t0\t1\n",
    "dev/small/queries.tsv": "20\twhat stands\n",
    "dev/small/qrels": "20\t0\t1\t1\n",
    "trec-dl-2019/queries.tsv": "30\twhat shines\n31\tnot judged\n",
    "trec-dl-2019/qrels": "30 Q0 2 3\n30 Q0 0 0\n",
    "trec-dl-2020/queries.tsv.gz": "40\twhat shines at night\n",
    "trec-dl-2020/qrels": "40 0 2 1\n40 0 8841822 2\n",
}
SPLITS = ("train", "dev/small", "trec-dl-2019/judged", "trec-dl-2020/judged")


def write_marco(home: Path, *leave_out: str) -> Path:
    root = home / "msmarco-passage"
    for name, content in MARCO.items():
        if name not in leave_out:
            put(root / name, content)
    return root


def check_marco(data: RetrievalDataset) -> None:
    assert data.splits == SPLITS
    assert dict(data.documents) == {"0": "A river runs.", "1": "The mill stands.", "2": "Stars shine."}
    assert data.qrels["train"] == {"10": {"0": 1}}
    assert data.qrels["trec-dl-2019/judged"] == {"30": {"2": 3, "0": 0}}
    assert data.relevant_grade == {"trec-dl-2019/judged": 2, "trec-dl-2020/judged": 2}
    assert data.counts["judged_but_not_in_collection"] == {"trec-dl-2020/judged": 1}
    assert "31" not in data.queries


def test_msmarco_has_the_four_splits(home: Path, kept: str) -> None:
    write_marco(home)
    data = load_dataset("msmarco")
    assert data.name == "msmarco"
    check_marco(data)
    check_marco(load_dataset("ir:msmarco-passage"))


def test_a_single_id_of_msmarco(home: Path) -> None:
    write_marco(home)
    data = load_dataset("ir:msmarco-passage/trec-dl-2019/judged")
    assert data.splits == ("trec-dl-2019/judged",)
    assert data.default_split == "trec-dl-2019/judged"
    assert data.relevant_grade == {"trec-dl-2019/judged": 2}
    assert load_dataset("ir:msmarco-passage/dev/small").relevant_grade == {}


def test_msmarco_from_its_archive(home: Path) -> None:
    """The published archive where ir_datasets would put it; it is unpacked and its encoding repaired on the way."""
    root = write_marco(home, "irds_version.txt", "collection.tsv", "dev/small/queries.tsv", "dev/small/qrels")
    with tarfile.open(root / "collectionandqueries.tar.gz", "w:gz") as archive:
        for name, content in {
            "collection.tsv": "0\tA river runs.\n1\tThe mill stands.\n2\tStars shine.\n3\tIt\u00e2\u0080\u0099s late\n",
            "queries.dev.small.tsv": MARCO["dev/small/queries.tsv"],
            "qrels.dev.small.tsv": MARCO["dev/small/qrels"],
        }.items():
            member = tarfile.TarInfo(name)
            member.size = len(content.encode())
            archive.addfile(member, io.BytesIO(content.encode()))
    data = load_dataset("msmarco")
    assert data.splits == SPLITS
    assert data.documents["3"] == "It\u2019s late"


def test_a_changed_collection_is_read_anew(home: Path, kept: str) -> None:
    root = write_marco(home)
    load_dataset("msmarco")
    put(root / "collection.tsv", MARCO["collection.tsv"] + "3\tnew\n")
    assert load_dataset("msmarco").documents["3"] == "new"


def test_a_collection_that_ir_datasets_would_delete_is_saved(home: Path) -> None:
    root = write_marco(home, "irds_version.txt")
    with pytest.raises(MAWError, match=r"collection\.tsv lies there without .*irds_version\.txt.*would delete it"):
        load_dataset("msmarco")
    assert (root / "collection.tsv").is_file()


# As typed


def test_as_typed(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    model = encoder()
    monkeypatch.setattr("maw.retrieval.models.load_encoder", lambda *_, **__: model)
    write_marco(home)
    given = ["evaluate", "model", "--device", "cpu", "--dataset"]
    assert main([*given, "ir:msmarco-passage/trec-dl-2019/judged"]) == 0
    said = capsys.readouterr().out
    assert "1 queries of trec-dl-2019/judged, 3 documents" in said
    assert "R(rel=2)@1000" in said
    assert main(["evaluate", "model", "--device", "cpu", "--msmarco", "--split", "dev/small"]) == 0
    assert "MRR@10 " in capsys.readouterr().out
    assert main([*given, "msmarco"]) == 2
    assert "has no split test: name one with --split: dev/small, trec-dl-2019/judged" in capsys.readouterr().err


def test_a_benchmark_as_typed(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_marco(home)
    out = tmp_path / "out"
    assert main(["benchmark", "--msmarco", "--variants", "bm25,untuned", "--device", "cpu", "--output", str(out)]) == 0
    said = capsys.readouterr().out
    assert "trec-dl-2020/judged: 1 queries" in said
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert {row["split"] for row in rows} == set(SPLITS) - {"train"}  # dev/small is reported, as is usual
    assert (out / "runs" / "bm25-dev-small.trec").is_file()


# What cannot be had


def test_without_network_every_file_and_its_place_is_named(home: Path) -> None:
    write_marco(home, "collection.tsv", "train/qrels", "trec-dl-2019/queries.tsv", "trec-dl-2020/queries.tsv.gz")
    with pytest.raises(MAWError) as caught:
        load_dataset("msmarco")
    said = str(caught.value)
    assert "msmarco-passage cannot be read by ir_datasets" in said
    assert "it tried https://msmarco.z22.web.core.windows.net/msmarcoranking/qrels.train.tsv" in said
    rows, own = said.splitlines()[1:-1], f"{home}/msmarco-passage"
    assert [row.split(": ")[0].strip() for row in rows] == [
        f"{own}/collectionandqueries.tar.gz or {home}/downloads/31644046b18952c1386cd4564ba2ae69 (checked)",
        f"{own}/train/qrels or {home}/downloads/733fb9fe12d93e497f7289409316eccf (checked)",
        f"{own}/trec-dl-2019/queries.tsv (unpacked)",
        f"{own}/trec-dl-2020/queries.tsv.gz",
    ]
    assert all("MD5" in row and "https://" in row for row in rows)
    assert said.splitlines()[-1] == "or unpack the files into a folder of their own and read it as msmarco:FOLDER"


@pytest.mark.parametrize(
    ("identifier", "url", "place", "other"),
    [
        ("beir/scifact", "BEIR/datasets/scifact.zip", "beir/scifact/source.zip", "beir:FOLDER"),
        ("lotte/writing/test/search", "colbertv2/lotte.tar.gz", "lotte/lotte.tar.gz", None),
        ("antique/test", "Antique/antique-test.qrel", "antique/test/qrels", None),
    ],
)
def test_without_network_the_place_of_the_file_is_named(home: Path, identifier, url, place, other) -> None:
    with pytest.raises(MAWError) as caught:
        load_dataset(f"ir:{identifier}")
    said = str(caught.value)
    assert f"{identifier} cannot be read by ir_datasets" in said
    assert "it tried https://" in said
    assert url in said
    assert f"\n  {home}/{place}" in said
    assert (f"read it as {other}" in said) == (other is not None)


@pytest.mark.parametrize(
    ("identifier", "message"),
    [
        ("beir/nfcorpsu", "has no data set 'beir/nfcorpsu': did you mean beir/nfcorpus"),
        ("zzz", "has no data set 'zzz': its ids are listed"),
        ("lotte", "lotte has no documents with queries.*name one below it: lotte/lifestyle/dev/forum"),
    ],
)
def test_ids_that_are_none_are_refused_with_others(home: Path, identifier: str, message: str) -> None:
    with pytest.raises(MAWError, match=message):
        load_dataset(f"ir:{identifier}")


# Real data, where they are


def real(name: str) -> RetrievalDataset:
    root = os.environ.get("MAW_DATA")
    if not root or not (Path(root) / name).is_dir():
        pytest.skip(f"MAW_DATA has no folder {name}: name the folder that holds it")
    return load_dataset(f"beir:{Path(root) / name}")


def test_nfcorpus_by_its_id_is_nfcorpus_by_its_folder(home: Path) -> None:
    folder = real("nfcorpus")
    source = Path(os.environ["MAW_DATA"]) / "nfcorpus"
    records = [json.loads(row) for row in (source / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    documents = {record["_id"]: (record["title"], record["text"]) for record in records}
    texts = {
        split: (source / "qrels" / f"{split}.tsv").read_text().partition("\n")[2] for split in ("train", "dev", "test")
    }
    write_beir(home, "nfcorpus", documents, folder.queries, texts)
    data = load_dataset("ir:beir/nfcorpus")
    assert dict(data.documents) == dict(folder.documents)
    assert data.qrels == folder.qrels
    for key in ("documents", "splits", "shared_query_texts", "dropped_train_queries"):
        assert data.counts[key] == folder.counts[key]


def test_real_questions_in_lotte_s_form(home: Path) -> None:
    folder = real("nq-qed")
    numbers = {name: str(number) for number, name in enumerate(folder.documents)}
    documents = {numbers[name]: " ".join(text.split()) for name, text in folder.documents.items()}
    queries, judged = folder.evaluation_split("test")
    asked = [(" ".join(queries[query].split()), [numbers[name] for name in judged[query]]) for query in queries]
    write_lotte(home, documents, {"search": asked})
    data = load_dataset("ir:lotte/writing/test/search")
    assert dict(data.documents) == documents
    assert list(data.queries.values()) == [text for text, _ in asked]
    assert [list(row) for row in data.qrels["search"].values()] == [ids for _, ids in asked]
