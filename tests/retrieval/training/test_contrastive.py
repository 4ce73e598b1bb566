"""What is judged relevant to a query is none of its negatives: in no batch, in no loss, in no reward."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from toys import SETTINGS, encoder, features

import maw
from maw.hf.attach import maw_layers
from maw.retrieval.data.dataset import RetrievalDataset, normalise
from maw.retrieval.data.loading import load_dataset
from maw.retrieval.training import rollouts
from maw.retrieval.training.batches import Batches, TrainingTexts
from maw.retrieval.training.fine_tuning import train
from maw.retrieval.training.losses import AuxiliaryLoss, contrastive_loss
from maw.retrieval.training.relevance import Relevance
from maw.retrieval.training.settings import TrainingSettings

DOCUMENTS = {
    "iron": "Iron is found in lentils.",
    "both": "Lentils and spinach hold iron.",
    "same": "  LENTILS and\u00a0spinach hold \uff49ron. ",  # as "both" after normalising
    "leaf": "Spinach is a leaf.",
    "milk": "Milk holds calcium.",
    "sun": "The sun gives vitamin D.",
}
QUERIES = {"q1": "food with iron", "q2": "is spinach rich in iron", "q3": "calcium", "q4": "vitamin D"}
JUDGED = {"q1": {"iron": 1, "both": 2, "sun": 0}, "q2": {"both": 1}, "q3": {"milk": 1}, "q4": {"sun": 1}}
ROWS = [  # with a hard negative each
    ("q1", "iron", "leaf"),
    ("q2", "both", "milk"),
    ("q3", "milk", "same"),
    ("q4", "sun", "iron"),
]
#            iron   both   milk   sun  | leaf   milk   same   iron
LEFT_OUT = [
    [False, True, False, False, False, False, True, True],
    [False, False, False, False, False, False, True, False],
    [False, False, False, False, False, True, False, False],
    [False, False, False, False, False, False, False, False],
]
SCALE = 20.0


def texts(rows=ROWS) -> TrainingTexts:
    return TrainingTexts(QUERIES, DOCUMENTS, rows)


def labels_of(relevance: Relevance) -> torch.Tensor:
    return torch.from_numpy(relevance.ids)


def batch(model) -> list[dict]:
    return [features(model, list(column)) for column in zip(*map(texts().texts, ROWS), strict=True)]


def left_out_by_texts(texts: TrainingTexts, judged, rows: list[int]) -> list[list[bool]]:
    """A slow oracle: which candidates are relevant to a row's query and not its own document, by the texts alone."""
    found, columns = [], range(1, len(texts.rows[0]))
    candidates = [texts.documents[texts.rows[row][column]] for column in columns for row in rows]
    for place, row in enumerate(rows):
        query = normalise(texts.queries[texts.rows[row][0]])
        same = [name for name in judged if normalise(texts.queries[name]) == query]
        known = {normalise(texts.documents[d]) for name in same for d, grade in judged[name].items() if grade > 0}
        found.append([at != place and normalise(text) in {*known, query} for at, text in enumerate(candidates)])
    return found


def test_relevant_candidates_are_found_whatever_the_row_that_brings_them():
    relevance = Relevance(texts(), JUDGED)
    ids = labels_of(relevance)
    assert relevance.mask(ids, ids).tolist() == LEFT_OUT == left_out_by_texts(texts(), JUDGED, [0, 1, 2, 3])
    parts = [relevance.mask(ids[half], ids, offset).tolist() for half, offset in ((slice(2), 0), (slice(2, 4), 2))]
    assert parts[0] + parts[1] == LEFT_OUT, "each of two processes has its rows of the same mask"


def test_a_query_with_the_same_text_brings_its_judgements():
    queries = {**QUERIES, "q5": " FOOD  with iron"}
    rows = TrainingTexts(queries, DOCUMENTS, [("q5", "milk"), ("q1", "iron"), ("q2", "both")])
    relevance = Relevance(rows, {**JUDGED, "q5": {"milk": 1}})
    ids = labels_of(relevance)
    assert relevance.mask(ids, ids).tolist() == [[False, True, True], [True, False, True], [False, False, False]]


def test_the_given_case_has_full_batches_and_no_false_negative(tmp_path):
    folder = tmp_path / "case"
    (folder / "qrels").mkdir(parents=True)
    corpus = [("d1", "Iron is found in lentils."), ("d2", "Lentils and spinach hold iron.")]
    queries = [("q1", "food with iron"), ("q2", "is spinach rich in iron")]
    for name, lines in (("corpus", corpus), ("queries", queries)):
        written = (json.dumps({"_id": id_, "text": text}) + "\n" for id_, text in lines)
        (folder / f"{name}.jsonl").write_text("".join(written))
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t1\nq2\td2\t1\n")
    data = load_dataset(f"beir:{folder}")
    own = TrainingTexts(data.queries, data.documents, data.training_pairs())
    relevance = Relevance(own, data.judgements("train"))
    ids = labels_of(relevance)
    for seed in range(8):
        batches = list(Batches(own, 2, seed=seed, relevance=relevance))
        assert [len(rows) for rows in batches] == [2, 1]
        assert sorted(row for rows in batches for row in rows) == [0, 1, 2], "every pair once"
        for rows in batches:
            assert relevance.mask(ids[rows], ids[rows]).tolist() == left_out_by_texts(own, data.qrels["train"], rows)


def test_pairs_that_do_not_go_together_are_batched_apart_where_that_costs_nothing():
    queries = {f"q{n}": f"question {n}" for n in range(20)}
    documents = {f"d{n}": f"answer {n}" for n in range(20)}
    own = TrainingTexts(queries, documents, [(f"q{n}", f"d{n}") for n in range(20)])
    judged = {f"q{n}": {f"d{n}": 1, f"d{n ^ 1}": 1} for n in range(20)}  # of each two, both answer both
    relevance = Relevance(own, judged)
    ids, seen = labels_of(relevance), 0
    for seed in range(4):
        batches = list(Batches(own, 5, seed=seed, relevance=relevance))
        assert [len(rows) for rows in batches] == [5] * 4
        assert sum(int(relevance.mask(ids[rows], ids[rows]).sum()) for rows in batches) == 0
        unaware = list(Batches(own, 5, seed=seed))
        seen += sum(int(relevance.mask(ids[rows], ids[rows]).sum()) for rows in unaware)
    assert seen > 0, "they are together where nobody looks"


def exact(queries: torch.Tensor, documents: torch.Tensor, left_out: list[list[bool]]) -> torch.Tensor:
    """The mean cross entropy over the allowed candidates, query by query, in float64."""
    losses = []
    for place, row in enumerate(left_out):
        allowed = [at for at, out in enumerate(row) if not out]
        score = SCALE * torch.cosine_similarity(queries[place, None], documents[allowed])
        losses.append(-score.log_softmax(dim=0)[allowed.index(place)])
    return torch.stack(losses).mean()


def vectors(seed=0, dtype=torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 6, generator=generator, dtype=dtype).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("mini_batch_size", [None, 3])
def test_the_loss_is_the_cross_entropy_over_what_is_allowed(mini_batch_size):
    relevance = Relevance(texts(), JUDGED)
    loss = contrastive_loss(encoder(), scale=SCALE, mini_batch_size=mini_batch_size, relevance=relevance)
    columns = vectors(dtype=torch.float64)
    if mini_batch_size is None:
        found = loss.compute_loss_from_embeddings(columns, labels_of(relevance))
    else:
        found = loss.calculate_loss([list(column.split(mini_batch_size)) for column in columns], labels_of(relevance))
    found.backward()
    gradients = [column.grad.clone() for column in columns]
    again = vectors(dtype=torch.float64)
    expected = exact(again[0], torch.cat(again[1:]), LEFT_OUT)
    expected.backward()
    torch.testing.assert_close(found, expected)
    for gradient, column in zip(gradients, again, strict=True):
        torch.testing.assert_close(gradient, column.grad)


def test_what_is_left_out_gets_exactly_no_gradient():
    """Documents that are relevant to every query but are no row's own: their vectors move by nothing at all."""
    rows = [("q1", "iron", "both"), ("q2", "leaf", "same")]
    judged = {"q1": {"iron": 1, "both": 1}, "q2": {"leaf": 1, "both": 1}}
    relevance = Relevance(texts(rows), judged)
    loss = contrastive_loss(encoder(), scale=SCALE, relevance=relevance)
    columns = [column[:2].detach().requires_grad_() for column in vectors()]
    loss.compute_loss_from_embeddings(columns, labels_of(relevance)).backward()
    assert torch.equal(columns[2].grad, torch.zeros(2, 6))
    assert columns[1].grad.abs().min() > 0
    found = loss.compute_loss_from_embeddings([column[:1] for column in columns], labels_of(relevance)[:1])
    assert found == 0, "a query without any negative has a loss of 0, not of NaN"


@pytest.mark.parametrize("mini_batch_size", [None, 3])
def test_where_nothing_is_left_out_the_loss_is_sentence_transformers(mini_batch_size):
    rows = [("q3", "milk", "leaf"), ("q4", "sun", "leaf")]
    relevance, model = Relevance(texts(rows), JUDGED), encoder()
    given = [features(model, list(column)) for column in zip(*map(texts(rows).texts, rows), strict=True)]
    plain = (
        MultipleNegativesRankingLoss(model, scale=SCALE)
        if mini_batch_size is None
        else CachedMultipleNegativesRankingLoss(model, scale=SCALE, mini_batch_size=mini_batch_size)
    )
    ours = contrastive_loss(model, scale=SCALE, mini_batch_size=mini_batch_size, relevance=relevance)
    expected = plain([dict(column) for column in given], None)
    torch.testing.assert_close(ours([dict(c) for c in given], labels_of(relevance)), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("settings", [None, {"depth": 8, "auxiliary_weight": 10.0}], ids=["dense", "MAW"])
def test_cached_is_uncached_to_rounding(settings):
    relevance, found = Relevance(texts(), JUDGED), []
    for mini_batch_size in (None, 1, 3, 4):
        model = encoder(None if settings is None else maw.MAWConfig(**settings)).eval()
        loss = contrastive_loss(model, scale=SCALE, mini_batch_size=mini_batch_size, relevance=relevance)
        value = AuxiliaryLoss(loss, model)(batch(model), labels_of(relevance))
        value.backward()
        found.append((value.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    for value, gradients in found[1:]:
        torch.testing.assert_close(value, found[0][0], atol=1e-5, rtol=1e-5)
        assert gradients.keys() == found[0][1].keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, found[0][1][name], atol=2e-5, rtol=1e-3, msg=name)


def test_the_retrieval_reward_leaves_out_what_the_loss_leaves_out(monkeypatch):
    seen = []
    reward = rollouts.retrieval_reward
    monkeypatch.setattr(
        rollouts, "retrieval_reward", lambda *given, **options: seen.append(options) or reward(*given, **options)
    )
    relevance = Relevance(texts(), JUDGED)
    model = encoder(maw.MAWConfig(depth=4, group_size=2, reward="retrieval")).train()
    loss = AuxiliaryLoss(contrastive_loss(model, scale=SCALE, relevance=relevance), model).train()
    loss(batch(model), labels_of(relevance)).backward()
    for_queries, for_documents = (options["left_out"] for options in seen)
    assert for_queries.tolist() == LEFT_OUT
    assert for_documents.tolist() == [[row[place] for row in LEFT_OUT] for place in range(4)]
    assert maw_layers(model)[0].selector.policy_network[-1].weight.grad.abs().max() > 0


def test_the_reward_is_the_log_likelihood_among_what_is_allowed():
    retrieval_reward = rollouts.retrieval_reward
    queries, positives, negatives = (column.detach() for column in vectors())
    documents, mask = torch.cat([positives, negatives]), torch.tensor(LEFT_OUT)
    rewards = retrieval_reward(queries[:, None], documents, scale=SCALE, left_out=mask)
    torch.testing.assert_close(-rewards.mean(), exact(queries, documents, LEFT_OUT))


class Seen:
    """What a training's losses were given and left out."""

    def __init__(self, monkeypatch) -> None:
        self.labels: list[torch.Tensor] = []
        forward = AuxiliaryLoss.forward
        monkeypatch.setattr(
            AuxiliaryLoss,
            "forward",
            lambda loss, given, labels=None: self.labels.append(labels) or forward(loss, given, labels),
        )


@pytest.mark.parametrize("mini_batch_size", [None, 2])
def test_training_masks_what_is_judged_relevant(tmp_path, monkeypatch, mini_batch_size):
    seen = Seen(monkeypatch)
    judged = {query: dict(grades) for query, grades in JUDGED.items()}
    data = RetrievalDataset.from_parts("food", DOCUMENTS, QUERIES, {"train": judged})
    settings = TrainingSettings(
        **{**SETTINGS.__dict__, "epochs": 1, "batch_size": 5, "mini_batch_size": mini_batch_size}
    )
    train(encoder(maw.MAWConfig(depth=4)), data, tmp_path / "training", settings)
    assert [len(labels) for labels in seen.labels] == [5], "all pairs in one batch, the loss is told which"
    log = [json.loads(line) for line in (tmp_path / "training" / "log.jsonl").read_text().splitlines()]
    logged = [line["masked_candidates"] for line in log if "masked_candidates" in line]
    own = TrainingTexts(data.queries, data.documents, data.training_pairs())
    assert logged == [sum(map(sum, left_out_by_texts(own, judged, list(range(5))))) / 5]
    assert logged[0] > 0


@pytest.mark.skipif("MAW_DATA" not in os.environ, reason="MAW_DATA is not set: name the folder that holds nfcorpus")
def test_nfcorpus_has_no_false_negative_and_full_batches():
    """All 110,000 pairs in batches of 64: 690,000 documents that are judged relevant to another row's query."""
    data = load_dataset(f"beir:{Path(os.environ['MAW_DATA']) / 'nfcorpus'}")
    own = TrainingTexts(data.queries, data.documents, data.training_pairs())
    relevance, judged = Relevance(own, data.judgements("train")), data.judgements("train")
    batches = list(Batches(own, 64, seed=0, relevance=relevance))
    assert [len(rows) for rows in batches[:-1]] == [64] * (len(own) // 64)
    assert sorted(row for rows in batches for row in rows) == list(range(len(own)))
    ids = labels_of(relevance)
    normal = {name: normalise(text) for name, text in data.documents.items()}
    known = {query: {normal[d] for d, grade in grades.items() if grade > 0} for query, grades in judged.items()}
    false, masked = 0, 0
    for rows in batches:
        mask = relevance.mask(ids[rows], ids[rows])
        masked += int(mask.sum())
        documents = [normal[own.rows[row][1]] for row in rows]
        for place, row in enumerate(rows):
            relevant = known[own.rows[row][0]]
            allowed = zip(documents, mask[place].tolist(), strict=True)
            false += sum(not out and text in relevant for at, (text, out) in enumerate(allowed) if at != place)
    assert false == 0
    assert masked > 100_000, "they are in the batches"
