"""Which pairs go together, in which order, and with which negatives."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import SETTINGS, encoder, toy

import maw
from maw.retrieval.data.dataset import RetrievalDataset
from maw.retrieval.training.batches import Batches, Collator, TrainingTexts, _Batch, chained
from maw.retrieval.training.fine_tuning import train
from maw.retrieval.training.relevance import Relevance
from maw.retrieval.training.rows import with_negatives
from maw.retrieval.training.settings import TrainingSettings


def texts_of(rows):
    ids = {name for row in rows for name in row}
    words = {name: name.rpartition("/")[2] for name in ids}  # "d1/same" and "d2/same" have the same text
    return TrainingTexts(words, words, rows)


def pairs(queries: int, each: int) -> TrainingTexts:
    return texts_of([(f"q{q}", f"d{q}-{d}") for q in range(queries) for d in range(each)])


@given(
    st.integers(1, 12), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.integers(0, 3)
)
def test_a_batch_never_holds_a_text_twice_and_shares_are_equal(queries, each, share, processes, seed, epoch):
    texts, size = pairs(queries, each), share * processes
    if len(texts) < size or queries < processes:
        return
    parts = [Batches(texts, size, seed=seed, process=rank, processes=processes) for rank in range(processes)]
    for part in parts:
        part.set_epoch(epoch)
    wholes = list(parts[0].whole())
    split = [list(part) for part in parts]
    assert all(len(found) == len(parts[0]) == len(wholes) for found in split)
    for number, whole in enumerate(wholes):
        shares = [found[number] for found in split]
        assert len({len(one) for one in shares}) == 1
        assert [row for one in shares for row in one] == whole
        assert len({texts.rows[row][0] for row in whole}) == len(whole), "no query twice"
        assert 0 < len(whole) <= size
        if queries >= size and number + 1 < len(wholes):
            assert len(whole) == size, "full where it can be"
    rest = len(texts) % size
    assert len(wholes) == len(texts) // size + (rest >= processes)


def test_an_epoch_takes_every_pair_once_in_an_order_of_its_own():
    batches = Batches(pairs(10, 1), 4, seed=0)
    orders = []
    for epoch in (0, 1, 0):
        batches.set_epoch(epoch)
        orders.append([row for batch in batches for row in batch])
        assert sorted(orders[-1]) == list(range(10))
    assert orders[0] == orders[2] != orders[1]
    assert [row for batch in Batches(pairs(10, 1), 4, seed=1) for row in batch] != orders[0]
    reordered = TrainingTexts(batches.texts.queries, batches.texts.documents, batches.texts.rows[::-1])
    assert [9 - row for batch in Batches(reordered, 4, seed=0) for row in batch] == orders[0], "ids decide, not files"


def test_a_full_batch_does_not_go_through_the_order_again(monkeypatch):
    filled, fill = [], _Batch.fill
    monkeypatch.setattr(_Batch, "fill", lambda batch, rows: filled.append(len(rows)) or fill(batch, rows))
    batches = list(Batches(pairs(50, 1), 5, seed=0))
    assert [len(batch) for batch in batches] == [5] * 10
    assert max(filled) == 1, "else an epoch's time grows with the square of its pairs"
    list(Batches(texts_of([("q0", f"d{n}") for n in range(6)] + [("q1", "e1"), ("q2", "e2")]), 2, seed=0))
    assert max(filled) == 8, "rows come again where they are wanted"


def test_several_processes_see_the_batches_of_one():
    alone = list(Batches(pairs(11, 2), 6, seed=3))
    shares = [list(Batches(pairs(11, 2), 6, seed=3, process=rank, processes=3)) for rank in range(3)]
    together = [[row for share in parts for row in share] for parts in zip(*shares, strict=True)]
    assert together[:-1] == alone[:-1]
    assert together[-1] == alone[-1][:3], "cut to a multiple of the processes"


def test_equal_texts_under_other_ids_are_kept_apart():
    rows = [("q1", "d1/same"), ("q2", "d2/SAME "), ("q3", "d3"), ("q4", "d4")]
    for seed in range(8):
        for batch in Batches(texts_of(rows), 2, seed=seed):
            assert not {0, 1} <= set(batch)


def test_a_relevant_document_is_nobody_elses_negative_but_negatives_may_be_shared():
    rows = [("q0", "d0", "d9"), ("q1", "d1", "d0"), ("q2", "d2", "d9"), ("q3", "d3", "d9")]
    together = [batch for seed in range(8) for batch in Batches(texts_of(rows), 2, seed=seed)]
    assert not any({0, 1} <= set(batch) for batch in together)
    assert any({2, 3} <= set(batch) for batch in together)


def test_rows_come_again_where_a_batch_could_not_be_full():
    counts = Counter(row for batch in Batches(pairs(3, 5), 3, seed=0) for row in batch)
    assert counts.total() == 15
    texts = texts_of([("q0", f"d{n}") for n in range(6)] + [("q1", "e1"), ("q2", "e2")])
    batches = list(Batches(texts, 2, seed=0))
    assert [len(batch) for batch in batches] == [2, 2, 2, 2]
    with pytest.raises(maw.MAWError, match=r"at most 1 of the 6 training pairs go together: use fewer processes"):
        list(Batches(pairs(1, 6), 2, seed=0, processes=2))


def test_the_checksum_is_of_all_rows_in_their_order():
    collate = Collator(texts_of([("q", "d", "e")]), lambda rows: {"columns": rows})
    batch = collate([("q", "d", "e")])
    assert batch["columns"] == [{"anchor": "q", "positive": "d", "negative_1": "e"}]
    assert batch["rows"] == ["q\0d\0e"]
    assert chained("", ["a", "b"]) != chained("", ["b", "a"])


# Hard negatives


def collection(extra: int = 0) -> RetrievalDataset:
    documents = {f"d{n}": f"text {n}" for n in range(6 + extra)}
    train_split = {"q0": {"d0": 1, "d1": 2, "d2": 0}, "q1": {"d3": 1}}
    return RetrievalDataset.from_parts("toy", documents, {"q0": "zero", "q1": "one"}, {"train": train_split})


def test_missing_negatives_are_drawn_and_are_not_relevant():
    data = collection(extra=20)
    rows, drawn = with_negatives(data, data.training_pairs(), {"q0": ["d2", "d5", "d4"], "q1": ["d0"]}, 2, seed=0)
    assert [row[:2] for row in rows] == data.training_pairs()
    assert rows[0][2:] == rows[1][2:] == ("d2", "d5"), "the best first, the same for both pairs of a query"
    assert rows[2][2] == "d0"
    assert rows[2][3] not in ("d0", "d3")
    assert drawn == 1
    others = {with_negatives(data, data.training_pairs(), {}, 3, seed=seed)[0][0] for seed in range(5)}
    assert len(others) > 1
    for row in others:
        assert len(set(row)) == 5
        assert not {"d0", "d1"} & set(row[2:])
    again = with_negatives(data, data.training_pairs(), {}, 3, seed=4)
    assert again == with_negatives(data, data.training_pairs(), {}, 3, seed=4)
    with pytest.raises(maw.MAWError, match="wanted 5 negatives for query 'q0', but the collection has only 4"):
        with_negatives(collection(), collection().training_pairs(), {}, 5, seed=0)


@pytest.mark.parametrize(("source", "drawn"), [("bm25", 16), ("model", 0)])
def test_training_reads_the_negatives_of_its_queries(tmp_path, source, drawn):
    """No query of the toy shares a word with another's document, so BM25 finds nothing; a model always does."""
    from maw.retrieval.training.trainer import Trainer

    seen = []

    def noting(self, model, inputs, *arguments, **options):
        seen.append({name for name in inputs if name.endswith("input_ids")})
        return plain(self, model, inputs, *arguments, **options)

    plain, Trainer.training_step = Trainer.training_step, noting
    settings = TrainingSettings(**{**SETTINGS.__dict__, "hard_negatives": 2, "negatives": source, "batch_size": 2})
    try:
        outcome = train(encoder(), toy(), tmp_path, settings)
    finally:
        Trainer.training_step = plain
    columns = {f"{name}_input_ids" for name in ("anchor", "positive", "negative_1", "negative_2")}
    assert seen == [columns] * outcome["steps"]
    assert list((tmp_path / "negatives").iterdir())
    assert outcome["drawn_negatives"] == drawn
    assert outcome["seeds"]["negatives"] == 0


def test_given_negatives_are_used_as_they_are(tmp_path):
    settings = TrainingSettings(**{**SETTINGS.__dict__, "hard_negatives": 1, "batch_size": 2, "epochs": 1})
    given = {f"q{n}": [f"d{(n + 1) % 8}"] for n in range(6)}
    outcome = train(encoder(), toy(), tmp_path, settings, negatives=given)
    assert outcome["drawn_negatives"] == 2
    assert not (tmp_path / "negatives").exists()
    with pytest.raises(maw.MAWError, match="hard_negatives is 0: say how many"):
        train(encoder(), toy(), tmp_path, SETTINGS, negatives=given)


# With what is judged relevant known


@given(
    st.integers(1, 8), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3),
    st.sets(st.tuples(st.integers(0, 7), st.integers(0, 7), st.integers(0, 3))),
)  # fmt: skip
def test_batches_that_know_what_is_relevant_are_full_and_take_every_pair_once(
    queries, each, share, processes, seed, judged
):
    texts, size = pairs(queries, each), share * processes
    if len(texts) < size:
        return
    known = {f"q{q}": {f"d{other}-{d}": 1 for query, other, d in judged if query == q} for q in range(queries)}
    relevance = Relevance(texts, {q: {d: 1 for d in found if d in texts.documents} for q, found in known.items()})
    parts = [
        Batches(texts, size, seed=seed, process=rank, processes=processes, relevance=relevance)
        for rank in range(processes)
    ]
    wholes = list(parts[0].whole())
    rest = len(texts) % size
    assert [len(whole) for whole in wholes] == [size] * (len(texts) // size) + [rest - rest % processes] * (
        rest >= processes
    )
    rows = [row for whole in wholes for row in whole]
    assert len(set(rows)) == len(rows) >= len(texts) - (processes - 1 if rest >= processes else rest)
    for number, split in enumerate(zip(*parts, strict=True)):
        assert [row for one in split for row in one] == wholes[number]
        assert len({len(one) for one in split}) == 1


def test_rows_that_wait_are_exchanged_for_others_that_go_together():
    """The last batch would hold two answers to one question; there is a better place for one of them."""
    judged = {f"q{n}": {f"d{n}": 1} for n in range(12)}
    judged["q0"]["d1"] = judged["q2"]["d3"] = judged["q4"]["d5"] = 1
    texts = texts_of([(f"q{n}", f"d{n}") for n in range(12)])
    relevance = Relevance(texts, judged)
    for seed in range(30):
        for rows in Batches(texts, 3, seed=seed, relevance=relevance):
            together = set(rows)
            assert not any({first, first + 1} <= together for first in (0, 2, 4)), (seed, rows)
