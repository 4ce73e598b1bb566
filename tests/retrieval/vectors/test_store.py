"""A store of vectors: what is in it, what is refused, and what is left when something stops."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import WORDS, encoder, small_disk

import maw
from maw.errors import MAWError
from maw.io.checked import checksum
from maw.retrieval.identity import set_prompts
from maw.retrieval.processes import own_share
from maw.retrieval.ranking.dense import dense_runs, encode
from maw.retrieval.vectors.corpus_encoding import EncodingSettings, encode_corpus
from maw.retrieval.vectors.shard_encoder import Pace
from maw.retrieval.vectors.store import VectorStore
from maw.retrieval.vectors.store_search import search_store

DOCUMENTS = {f"d{i * 7 % 23}": f"{WORDS[i % 10]} " * (i % 5) + f"of {i}" for i in range(23)}
SETTINGS = EncodingSettings(dtype="float32", shard_size=6)


def write_corpus(path: Path, documents=DOCUMENTS) -> Path:
    raw = "".join(json.dumps({"_id": name, "title": "", "text": text}) + "\n" for name, text in documents.items())
    path.write_bytes(gzip.compress(raw.encode()) if path.suffix == ".gz" else raw.encode())
    return path


@pytest.fixture(scope="module")
def model():
    return encoder()


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    encode_corpus(model, write_corpus(folder / "corpus.jsonl"), folder / "vectors", SETTINGS)
    return folder


@pytest.fixture
def copied(made, tmp_path):
    """A corpus and its complete store, to be damaged."""
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What is in it


def test_vectors_ids_and_order_are_those_of_the_corpus(model, made):
    store = VectorStore(made / "vectors")
    expected = encode(model, list(DOCUMENTS.values()), "document").numpy()
    assert store.shape == (23, 48)
    np.testing.assert_allclose(store[0:23], expected, atol=1e-6)
    assert store.ids(np.arange(23)) == list(DOCUMENTS)
    assert store.ids(np.array([[22, 0], [7, 22]])) == [list(DOCUMENTS)[i] for i in (22, 0, 7, 22)]
    assert store.shard_ids(3) == list(DOCUMENTS)[18:]
    assert [list(DOCUMENTS)[i] for i in np.argsort(store.order)] == sorted(DOCUMENTS, reverse=True)


@pytest.mark.parametrize(("begin", "end"), [(0, 6), (2, 4), (5, 7), (0, 23), (17, 99), (6, 6), (23, 30)])
def test_rows_are_read_across_shards(made, begin, end):
    store = VectorStore(made / "vectors")
    whole = np.concatenate([np.load(made / "vectors" / "shards" / f"{i:05}.npy") for i in range(4)])
    np.testing.assert_array_equal(store[begin:end], whole[begin:end])


def test_the_manifest_says_what_it_was_made_of(model, made):
    manifest = json.loads((made / "vectors" / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert manifest["corpus"] == {"name": "corpus.jsonl", "sha256": checksum(made / "corpus.jsonl"), "rows": 23}
    assert manifest["settings"] == {
        "dtype": "float32",
        "precision": "float32",
        "shard_size": 6,
        "max_length": 16,
        "prompt": "",
        "normalised": True,
    }
    assert [shard["rows"] for shard in manifest["shards"]] == [6, 6, 6, 5]
    for shard in manifest["shards"]:
        path = made / "vectors" / shard["file"]
        assert shard["vectors"] == {"bytes": path.stat().st_size, "sha256": checksum(path)}


def test_float16_is_the_float32_vector_rounded(model, made, tmp_path):
    encode_corpus(model, made / "corpus.jsonl", tmp_path / "half", EncodingSettings("float16", shard_size=6))
    store = VectorStore(tmp_path / "half")
    assert store[0:23].dtype == np.float16
    np.testing.assert_array_equal(store[0:23], VectorStore(made / "vectors")[0:23].astype(np.float16))


def test_maw_and_autocast_are_encoded_as_the_model_is_called(made, tmp_path):
    model = encoder(maw.MAWConfig(layers=[-1], depth=8))
    encode_corpus(model, made / "corpus.jsonl", tmp_path / "maw", SETTINGS)
    expected = encode(model, list(DOCUMENTS.values()), "document").numpy()
    np.testing.assert_allclose(VectorStore(tmp_path / "maw")[0:23], expected, atol=1e-6)
    encode_corpus(model, made / "corpus.jsonl", tmp_path / "bf16", EncodingSettings("float32", "bfloat16"))
    rough = VectorStore(tmp_path / "bf16")[0:23]
    assert 1e-5 < np.abs(rough - expected).max() < 5e-2


@pytest.mark.parametrize("similarity", [None, "cosine", "dot"])
def test_vectors_have_unit_length_where_the_model_compares_by_cosine(made, tmp_path, similarity):
    model = encoder()
    del model[2]
    model.similarity_fn_name = similarity
    encode_corpus(model, made / "corpus.jsonl", tmp_path / "vectors", SETTINGS)
    vectors = VectorStore(tmp_path / "vectors")[0:23]
    np.testing.assert_allclose(vectors, encode(model, list(DOCUMENTS.values()), "document").numpy(), atol=2e-6)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1) == (similarity != "dot")


def test_a_model_may_keep_the_first_numbers_only(made, tmp_path):
    model = encoder()
    model.truncate_dim = 8
    encode_corpus(model, made / "corpus.jsonl", tmp_path / "vectors", SETTINGS)
    store = VectorStore(tmp_path / "vectors")
    assert store.shape == (23, 8)
    np.testing.assert_allclose(store[0:23], encode(model, list(DOCUMENTS.values()), "document").numpy(), atol=2e-6)


@pytest.mark.parametrize("name", ["other.jsonl.gz", "other.tsv"])
def test_other_layouts_give_the_same_files(model, made, tmp_path, name):
    path = tmp_path / name
    if name.endswith(".tsv"):
        path.write_text("".join(f"{identifier}\t{text}\n" for identifier, text in DOCUMENTS.items()))
    else:
        write_corpus(path)
    encode_corpus(model, path, tmp_path / "vectors", SETTINGS)
    expected, found = contents(made / "vectors"), contents(tmp_path / "vectors")
    assert found.keys() == expected.keys()
    assert [file for file in found if file.endswith((".npy", ".txt")) and found[file] != expected[file]] == []


def test_batches_change_vectors_by_rounding_only(model, made, tmp_path):
    whole = VectorStore(made / "vectors")[0:23]
    for size in (1, 3, 512):
        encode_corpus(model, made / "corpus.jsonl", tmp_path / str(size), SETTINGS, pace=Pace(batch_size=size))
        np.testing.assert_allclose(VectorStore(tmp_path / str(size))[0:23], whole, atol=1e-6)


def test_progress_counts_every_document(model, made, tmp_path):
    told: list[int] = []

    def begin(total):
        told.append(-total)
        return told.append

    outcome = encode_corpus(model, made / "corpus.jsonl", tmp_path / "vectors", SETTINGS, begin=begin)
    assert told[0] == -23
    assert sum(told[1:]) == 23
    assert (outcome.documents, outcome.complete, outcome.missing) == (23, True, 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: copies and streams are tested there")
@pytest.mark.parametrize("config", [None, maw.MAWConfig(layers=[-1], depth=8)], ids=["host", "MAW"])
def test_a_gpu_makes_the_vectors_of_the_cpu(tmp_path, config):
    corpus = write_corpus(tmp_path / "corpus.jsonl", {f"d{i}": f"{WORDS[i % 10]} " * (i % 9) for i in range(3000)})
    model = encoder(config)
    settings = EncodingSettings("float32", shard_size=700)
    encode_corpus(model, corpus, tmp_path / "cpu", settings)
    model.to("cuda")
    expected = VectorStore(tmp_path / "cpu")[0:3000]
    for name, workers, limit in (
        ("float32", 0, 2e-5),
        ("float32", 2, 2e-5),
        ("float16", 0, 1e-2),
        ("bfloat16", 0, 5e-2),
    ):
        folder = tmp_path / f"{name}{workers}"
        precise = EncodingSettings("float32", name, shard_size=700)
        pace = Pace(workers=workers, batch_tokens=2000)
        assert encode_corpus(model, corpus, folder, precise, pace=pace).complete
        assert np.abs(VectorStore(folder)[0:3000] - expected).max() < limit
    queries = {"all": {f"q{i}": f"a {word}" for i, word in enumerate(WORDS)}}
    documents = dict(zip(VectorStore(tmp_path / "cpu").ids(np.arange(3000)), [""] * 3000, strict=True))
    assert len(dense_runs(model, documents, queries, k=5)["all"]["q0"]) == 5


# Going on


def test_shares_make_the_files_of_one_process(model, made, tmp_path):
    folder = tmp_path / "vectors"
    first = encode_corpus(model, made / "corpus.jsonl", folder, SETTINGS, share=(1, 2))
    assert (first.documents, first.complete, first.missing) == (11, False, 2)
    with pytest.raises(MAWError, match="not complete: 2 of 4 shards are finished; run the same `maw encode` again"):
        VectorStore(folder)
    assert encode_corpus(model, made / "corpus.jsonl", folder, SETTINGS, share=(0, 2)).complete
    assert contents(folder) == contents(made / "vectors")


def test_who_was_stopped_goes_on_with_the_missing_shards(model, made, tmp_path, monkeypatch):
    folder = tmp_path / "vectors"

    def begin(total):
        def progress(documents):
            if (folder / "shards" / "00001.json").exists():
                raise KeyboardInterrupt

        return progress

    with pytest.raises(KeyboardInterrupt):
        encode_corpus(model, made / "corpus.jsonl", folder, SETTINGS, begin=begin, pace=Pace(batch_size=1))
    done = sorted(folder.glob("shards/*.json"))
    assert 2 <= len(done) < 4
    assert not list(folder.rglob("*.part"))
    before = {path: path.stat().st_mtime_ns for path in folder.glob("shards/*.npy")}
    (folder / "shards" / f".00003.npy.{os.uname().nodename}.999999999.part").write_bytes(b"half")
    outcome = encode_corpus(model, made / "corpus.jsonl", folder, SETTINGS)
    assert outcome.documents == 23 - 6 * len(done)
    assert contents(folder).keys() == contents(made / "vectors").keys()
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_nothing_is_done_twice(model, copied):
    before = contents(copied / "vectors")
    outcome = encode_corpus(model, copied / "corpus.jsonl", copied / "vectors", SETTINGS)
    assert (outcome.documents, outcome.complete) == (0, True)
    assert contents(copied / "vectors") == before


def test_the_environment_says_which_share(monkeypatch):
    assert own_share() == (0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert own_share() == (3, 8)
    for rank in ("8", "one"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(MAWError, match="RANK"):
            own_share()
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert own_share() == (1, 2)


def test_several_processes_that_became_one_are_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert own_share() == (0, 1), "accelerate launch with one process"
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(MAWError, match="started one: write accelerate launch --multi_gpu"):
        own_share()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert own_share() == (0, 2)


# What is refused


def test_another_model_corpus_or_setting_is_refused(model, copied):
    folder, corpus = copied / "vectors", copied / "corpus.jsonl"
    before = contents(folder)
    with pytest.raises(MAWError, match="other arguments: dtype 'float32' there and 'float16' now; shard_size 6 there"):
        encode_corpus(model, corpus, folder, EncodingSettings())
    longer = encoder()
    longer.max_seq_length = 12
    with pytest.raises(MAWError, match="max_length 16 there and 12 now"):
        encode_corpus(longer, corpus, folder, SETTINGS)
    other = encoder()
    with torch.no_grad():
        next(iter(other.parameters()))[0, 0] += 1
    with pytest.raises(MAWError, match=r"other arguments: model [0-9a-f]{12} there and [0-9a-f]{12} now"):
        encode_corpus(other, corpus, folder, SETTINGS)
    with pytest.raises(MAWError, match=r"was encoded by a model with fingerprint .* but mine has"):
        VectorStore(folder).check_model(other, "mine")
    VectorStore(folder).check_model(encoder(), "mine")
    corpus.write_text(corpus.read_text().replace("of 3", "of 4"))
    with pytest.raises(MAWError, match=r"begun with another corpus: corpus\.jsonl had sha256"):
        encode_corpus(model, corpus, folder, SETTINGS)
    assert contents(folder) == before


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-2] ^= 1
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
@pytest.mark.parametrize("name", ["shards/00001.npy", "shards/00002.ids.txt", "order.npy"])
def test_a_damaged_file_is_refused_and_what_the_message_says_mends_it(model, copied, name, damage):
    folder, corpus = copied / "vectors", copied / "corpus.jsonl"
    before = contents(folder)
    damage(folder / name)
    with pytest.raises(
        MAWError, match=f"{name} (is damaged: it has .* bytes|is damaged: its sha256|cannot be read)"
    ) as refused:
        VectorStore(folder)
    if damage is flip:
        VectorStore(folder, checksums=False)
    if name.endswith("1.npy"):
        with pytest.raises(MAWError, match=f"{name}.*only this shard is encoded anew"):
            encode_corpus(model, corpus, folder, SETTINGS)
    told = Path(str(refused.value).partition("Delete ")[2].partition(" and run")[0])
    assert told.is_relative_to(folder)
    told.unlink()
    outcome = encode_corpus(model, corpus, folder, SETTINGS)
    assert outcome.documents == (6 if name.endswith("1.npy") else 0)
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["manifest.json", "plan.json"])
def test_a_damaged_plan_is_refused(model, copied, name):
    folder = copied / "vectors"
    before = contents(folder)
    cut(folder / name)
    (folder / name).write_text("{" + (folder / name).read_text())
    with pytest.raises(MAWError, match=f"{name} is damaged"):
        VectorStore(folder) if name == "manifest.json" else encode_corpus(
            model, copied / "corpus.jsonl", folder, SETTINGS
        )
    (folder / name).unlink()
    encode_corpus(model, copied / "corpus.jsonl", folder, SETTINGS)
    assert contents(folder) == before


def test_another_version_is_refused(copied):
    path = copied / "vectors" / "manifest.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(MAWError, match="has format 2, this version of maw reads 1"):
        VectorStore(copied / "vectors")


def test_shards_of_another_store_are_refused(model, copied):
    folder = copied / "vectors"
    (folder / "plan.json").unlink()
    write_corpus(copied / "corpus.jsonl", {**DOCUMENTS, "new": "text"})
    with pytest.raises(MAWError, match=r"00000\.json belongs to another model, corpus or settings"):
        encode_corpus(model, copied / "corpus.jsonl", folder, SETTINGS)


def test_folders_that_are_no_store_are_refused(model, made, tmp_path):
    with pytest.raises(MAWError, match="is not a store of vectors"):
        VectorStore(tmp_path)
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(MAWError, match=r"holds other things \(thesis\.tex\)"):
        encode_corpus(model, made / "corpus.jsonl", tmp_path, SETTINGS)
    with pytest.raises(MAWError, match=r"thesis\.tex is a file"):
        encode_corpus(model, made / "corpus.jsonl", tmp_path / "thesis.tex", SETTINGS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"corpus\.jsonl is empty"),
        ('{"_id": "a", "text": "x"}\nnot JSON\n', r"corpus\.jsonl, line 2: wanted a JSON object, got 'not JSON'"),
        ('{"_id": "a", "text": "x"}\n' * 2, r"corpus\.jsonl, line 2: id 'a' was given in .*line 1 already"),
    ],
)
def test_a_corpus_that_cannot_be_used_leaves_no_plan(model, tmp_path, text, message):
    (tmp_path / "corpus.jsonl").write_text(text)
    with pytest.raises(MAWError, match=message):
        encode_corpus(model, tmp_path / "corpus.jsonl", tmp_path / "vectors", SETTINGS)
    assert not list(tmp_path.rglob("*.part"))
    assert not (tmp_path / "vectors" / "plan.json").exists()


def test_a_corpus_that_changes_meanwhile_is_refused(model, tmp_path):
    corpus = write_corpus(tmp_path / "corpus.jsonl")

    def begin(total):
        corpus.write_text(corpus.read_text().replace("of 22", "of 23"))
        return lambda documents: None

    with pytest.raises(MAWError, match="was changed while it was encoded"):
        encode_corpus(model, corpus, tmp_path / "vectors", SETTINGS, begin=begin)
    assert not (tmp_path / "vectors" / "manifest.json").exists()


def test_a_vector_that_is_not_finite_is_named_by_its_line(made, tmp_path):
    broken = encoder()
    with torch.no_grad():
        token = broken.tokenizer("20")["input_ids"][1]
        broken[0].model.embeddings.word_embeddings.weight[token] = float("nan")
    with pytest.raises(MAWError, match=r"corpus\.jsonl, line 21: the model's vector is not finite in float32"):
        encode_corpus(broken, made / "corpus.jsonl", tmp_path / "vectors", SETTINGS)
    assert len(list((tmp_path / "vectors").glob("shards/*.json"))) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int8"}, "dtype must be one of float16, float32, got 'int8'"),
        ({"precision": "tf32"}, "precision must be one of"),
        ({"shard_size": 0}, "shard_size must be at least 1, got 0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(MAWError, match=message):
        EncodingSettings(**settings)


@pytest.mark.parametrize("pace", [{"batch_size": 0}, {"batch_tokens": 0}, {"workers": -1}])
def test_the_pace_is_checked(pace):
    with pytest.raises(MAWError, match=f"{next(iter(pace))} must be at least"):
        Pace(**pace)


def test_a_corpus_that_cannot_be_used_leaves_no_folder(model, made, tmp_path):
    corpus = tmp_path / "bad.jsonl"
    corpus.write_text('{"_id": "a", "text": "x"}\n{"_id": "b", "text": \n')
    with pytest.raises(MAWError, match=r"bad\.jsonl, line 2: wanted a JSON object"):
        encode_corpus(model, corpus, tmp_path / "vectors", SETTINGS)
    assert not (tmp_path / "vectors").exists()


def test_an_id_that_comes_twice_leaves_the_folder_as_it_was(model, made, tmp_path):
    corpus, folder = tmp_path / "bad.jsonl", tmp_path / "vectors"
    corpus.write_text((made / "corpus.jsonl").read_text() + '{"_id": "d0", "text": "x"}\n')
    with pytest.raises(MAWError, match=r"bad\.jsonl, line 24: id 'd0' was given in .*line 1 already"):
        encode_corpus(model, corpus, folder, SETTINGS)
    assert not folder.exists()
    (folder / "shards").mkdir(parents=True)
    (folder / "shards" / "00007.ids.txt").write_text("d9\n")
    before = contents(folder)
    with pytest.raises(MAWError, match="already"):
        encode_corpus(model, corpus, folder, SETTINGS)
    assert contents(folder) == before, "of somebody else"
    encode_corpus(model, made / "corpus.jsonl", folder, SETTINGS)
    assert contents(folder) == contents(made / "vectors"), "a plan leaves only its own"


def test_of_several_processes_none_removes_what_others_read(model, made, tmp_path):
    corpus, folder = tmp_path / "bad.jsonl", tmp_path / "vectors"
    corpus.write_text((made / "corpus.jsonl").read_text() + '{"_id": "d0", "text": "x"}\n')
    with pytest.raises(MAWError, match="already"):
        encode_corpus(model, corpus, folder, SETTINGS, share=(0, 2))
    assert len(list(folder.glob("shards/*.ids.txt"))) == 4
    encode_corpus(model, made / "corpus.jsonl", folder, EncodingSettings("float32", shard_size=12))
    assert len(list(folder.glob("shards/*.ids.txt"))) == 2


# A full disk


@pytest.mark.parametrize(
    ("size", "file"),
    [(50, "00000.ids.txt"), (150, "order.npy"), (400, "plan.json"), (2000, "00000.npy"), (4700, None)],
)
def test_a_full_disk_leaves_nothing_half_written(model, made, tmp_path, size, file):
    folder, settings = tmp_path / "vectors", EncodingSettings("float32", shard_size=23)
    with small_disk(size):
        if file is None:
            encode_corpus(model, made / "corpus.jsonl", folder, settings)
        else:
            with pytest.raises(MAWError, match=f"{file} could not be written: File too large. What was finished"):
                encode_corpus(model, made / "corpus.jsonl", folder, settings)
            assert not list(folder.rglob("*.part"))
            assert not list(folder.rglob(file))
            assert not list(folder.rglob("00000.json"))
    assert encode_corpus(model, made / "corpus.jsonl", folder, settings).complete
    assert VectorStore(folder).shape == (23, 48)


def test_what_cannot_fit_is_refused_before_it_is_begun(model, made, tmp_path, monkeypatch):
    real = os.statvfs(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result((*real[:2], real[2], 0, 1, *real[5:])))
    with pytest.raises(MAWError, match=r"the vectors of 23 documents need 4,416 bytes, but .* has room for"):
        encode_corpus(model, made / "corpus.jsonl", tmp_path / "vectors", EncodingSettings(dtype="float32"))


@pytest.mark.parametrize("damage", ["ids", "vectors", "rows", "deep"])
def test_a_manifest_with_a_missing_or_wrong_part_is_refused(copied, damage):
    path = copied / "vectors" / "manifest.json"
    whole = json.loads(path.read_text())
    del whole["checksum"]  # as an earlier version wrote it
    if damage == "rows":
        whole["shards"][0]["rows"] = "many"
    elif damage != "deep":
        del whole["shards"][0][damage]
    path.write_text("[" * 100_000 if damage == "deep" else json.dumps(whole))
    with pytest.raises(MAWError, match=r"manifest\.json is damaged"):
        VectorStore(copied / "vectors")


def test_an_edited_manifest_is_refused(copied):
    path = copied / "vectors" / "manifest.json"
    path.write_text(path.read_text().replace('"rows": ', '"rows": 1', 1))
    with pytest.raises(MAWError, match=r"manifest\.json was changed after it was written"):
        VectorStore(copied / "vectors")


def test_a_store_of_other_prompts_is_neither_gone_on_with_nor_searched(copied):
    model = encoder()
    set_prompts(model, "query: ", "passage: ")
    with pytest.raises(MAWError, match="prompt '' there and 'passage: ' now"):
        encode_corpus(model, copied / "corpus.jsonl", copied / "vectors", SETTINGS)
    with pytest.raises(MAWError, match="was encoded by a model with fingerprint"):
        next(search_store(model, VectorStore(copied / "vectors"), {"q": "a river"}, 1))
