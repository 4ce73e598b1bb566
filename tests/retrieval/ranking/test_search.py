from __future__ import annotations

import doctest
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import maw.retrieval.ranking.search as module
from maw.errors import MAWError
from maw.retrieval.ranking import best
from maw.retrieval.ranking.search import search


def brute_force(query: np.ndarray, document: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The rule as written: sort every document by (score descending, position ascending)."""
    score = query.astype(np.float64) @ document.astype(np.float64).T
    position = np.broadcast_to(np.arange(score.shape[1]), score.shape)
    order = np.lexsort((position, -score), axis=1)[:, :k]
    return np.take_along_axis(score, order, axis=1).astype(np.float32), order


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(1, 7),
    documents=st.integers(1, 67),
    width=st.integers(1, 5),
    levels=st.integers(0, 3),
    k=st.integers(1, 80),
    document_chunk=st.integers(1, 70),
    query_chunk=st.integers(1, 8),
)
def test_equals_brute_force_on_vectors_with_many_ties(
    seed: int, queries: int, documents: int, width: int, levels: int, k: int, document_chunk: int, query_chunk: int
) -> None:
    rng = np.random.default_rng(seed)  # few levels: many documents share a score, up to all of them
    query = rng.integers(-levels, levels + 1, (queries, width)).astype(np.float32)
    document = rng.integers(-levels, levels + 1, (documents, width)).astype(np.float32)
    score, index = search(query, document, k, document_chunk=document_chunk, query_chunk=query_chunk)
    expected_score, expected_index = brute_force(query, document, k)
    assert score.shape == index.shape == (queries, min(k, documents))
    np.testing.assert_array_equal(score.numpy(), expected_score)
    np.testing.assert_array_equal(index.numpy(), expected_index)


@pytest.mark.parametrize("k", [1, 10, 100])
@pytest.mark.parametrize("document_chunk", [64, 997, 5_000])
def test_many_ties_at_the_cut_in_long_rows(k: int, document_chunk: int) -> None:
    rng = np.random.default_rng(0)  # long rows take another path through topk than short ones
    query = rng.integers(-1, 2, (13, 3)).astype(np.float32)
    document = rng.integers(-1, 2, (3_001, 3)).astype(np.float32)
    score, index = search(query, document, k, document_chunk=document_chunk, query_chunk=5)
    expected_score, expected_index = brute_force(query, document, k)
    np.testing.assert_array_equal(score.numpy(), expected_score)
    np.testing.assert_array_equal(index.numpy(), expected_index)


def test_torch_topk_alone_would_break_the_rule() -> None:
    """The reason for the second choice at the k-th place; when this fails, that code may go."""
    score = torch.randint(0, 3, (50, 3_001), generator=torch.Generator().manual_seed(0))
    stable = score.sort(dim=1, descending=True, stable=True).indices[:, :100]
    assert not torch.equal(score.topk(100).indices.sort().values, stable.sort().values)


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 2**32 - 1),
    documents=st.integers(1, 67),
    levels=st.integers(0, 2),
    k=st.integers(1, 80),
    document_chunk=st.integers(1, 70),
    room=st.integers(1, 40),
)
def test_equal_scores_follow_a_given_order(
    seed: int, documents: int, levels: int, k: int, document_chunk: int, room: int
) -> None:
    rng = np.random.default_rng(seed)
    query = rng.integers(-levels, levels + 1, (5, 3)).astype(np.float32)
    document = rng.integers(-levels, levels + 1, (documents, 3)).astype(np.float32)
    order = rng.permutation(documents).astype(np.int32) + (2**31 - 100 if seed % 2 else 0)
    with little_room(room):
        score, index = search(query, document, k, document_chunk=document_chunk, query_chunk=2, order=order)
    exact = query @ document.T
    expected = np.lexsort((np.broadcast_to(order, exact.shape), -exact), axis=1)[:, :k]
    np.testing.assert_array_equal(index.numpy(), expected)
    np.testing.assert_array_equal(score.numpy(), np.take_along_axis(exact, expected, axis=1))


@contextmanager
def little_room(room: int):
    """Candidates beside the best k are soon too many, whatever k is."""
    before = best.Best.__init__

    def start(self, queries, k, device, *, by_position):
        before(self, queries, k, device, by_position=by_position)
        self.room = room
        self.key = self.key[:, : k + room].clone()
        self.position = self.position[:, : k + room].clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(best.Best, "__init__", start)
        yield


@pytest.mark.parametrize("slope", [-1, 0, 1])
@pytest.mark.parametrize("ordered", [False, True])
def test_documents_that_get_better_and_better(slope: int, ordered: bool) -> None:
    """Every chunk has more candidates than there is room for, for all queries, some, or none."""
    rng = np.random.default_rng(3)
    document = np.stack([slope * np.arange(4000) // 3, rng.integers(0, 50, 4000)], axis=1).astype(np.float32)
    query = np.array([[1, 0], [0, 1], [-1, 0], [1, 1], [0, 0]], dtype=np.float32)
    order = rng.permutation(4000) if ordered else None
    score, index = search(query, document, 300, document_chunk=701, order=order)
    exact = query @ document.T
    ties = np.broadcast_to(np.arange(4000) if order is None else order, exact.shape)
    expected = np.lexsort((ties, -exact), axis=1)[:, :300]
    np.testing.assert_array_equal(index.numpy(), expected)
    np.testing.assert_array_equal(score.numpy(), np.take_along_axis(exact, expected, axis=1))


def test_few_candidates_are_looked_at() -> None:
    """Documents in random order: the room is filled about once for every doubling, so choosing stays cheap."""
    rng = np.random.default_rng(4)
    query, document = rng.standard_normal((8, 16)), rng.standard_normal((60_000, 16))
    times = dict.fromkeys(("_choose", "_add_all"), 0)

    def counting(name):
        kept = getattr(best.Best, name)

        def counted(self, *arguments):
            times[name] += 1
            return kept(self, *arguments)

        return counted

    with pytest.MonkeyPatch.context() as patch:
        for name in times:
            patch.setattr(best.Best, name, counting(name))
        search(query, document, 300, document_chunk=1000)
    assert times["_choose"] <= 12
    assert 1 <= times["_add_all"] <= 5, "the first chunks, not all 60"


def test_random_vectors_agree_with_float64() -> None:
    rng = np.random.default_rng(1)
    query, document = rng.standard_normal((17, 31)), rng.standard_normal((1_009, 31))
    score, index = search(query, document, 50, document_chunk=101, query_chunk=4)
    exact = query @ document.T
    expected = -np.sort(-exact, axis=1)[:, :50]
    np.testing.assert_allclose(score.numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(exact, index.numpy(), axis=1), expected, atol=1e-5)


@pytest.mark.parametrize(("queries", "k"), [(1, 10), (40, 1000)])
def test_faiss_finds_the_same(queries: int, k: int) -> None:
    faiss = pytest.importorskip("faiss", reason="faiss-cpu is not installed: its flat index is the oracle")
    rng = np.random.default_rng(6)
    query, document = (rng.standard_normal((n, 64)).astype(np.float16).astype(np.float32) for n in (queries, 20_000))
    index = faiss.IndexFlatIP(64)
    index.add(document)
    expected_score, expected = index.search(query, k)
    score, position = search(query, document.astype(np.float16), k, document_chunk=3_000)
    np.testing.assert_allclose(score.numpy(), expected_score, rtol=2e-6)
    other = position.numpy() != expected  # where two scores are equal up to rounding
    assert other.mean() < 0.01
    exact = np.einsum("qw,qkw->qk", query.astype(np.float64), document[expected].astype(np.float64))
    np.testing.assert_allclose(score.numpy()[other], exact[other], rtol=2e-6)


def test_documents_in_a_tie_across_every_border() -> None:
    score, index = search(torch.ones(2, 3), torch.ones(11, 3), 5, document_chunk=2)
    assert index.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert score.tolist() == [[3.0] * 5] * 2


def test_negative_and_positive_zero_are_equal() -> None:
    document = torch.tensor([[-1.0], [0.0], [-0.0], [0.0]])
    _, index = search(torch.tensor([[1.0]]), document, 3, document_chunk=4)
    assert index.tolist() == [[1, 2, 3]]
    _, index = search(torch.tensor([[-1.0]]), -document, 3, document_chunk=1)
    assert index.tolist() == [[1, 2, 3]]


def test_k_above_the_number_of_documents_returns_all() -> None:
    score, index = search(torch.tensor([[1.0]]), torch.tensor([[1.0], [3.0], [2.0]]), 10)
    assert index.tolist() == [[1, 2, 0]]
    assert score.dtype == torch.float32
    assert index.dtype == torch.int64


def test_no_query_gives_empty_results() -> None:
    score, index = search(torch.empty(0, 4), torch.ones(3, 4), 2)
    assert score.shape == index.shape == (0, 2)
    assert (score.dtype, index.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_other_types_are_scored_in_float32(dtype: torch.dtype) -> None:
    query = torch.tensor([[1, 2], [3, -1]]).to(dtype)
    document = torch.tensor([[4, 1], [0, 5], [7, 7]]).to(dtype)
    score, index = search(query, document, 2)
    assert score.tolist() == [[21.0, 10.0], [14.0, 11.0]]
    assert index.tolist() == [[2, 1], [2, 0]]


def test_half_precision_vectors_are_not_scored_in_half_precision() -> None:
    query = torch.full((1, 300), 1.0, dtype=torch.bfloat16)
    score, _ = search(query, query, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, _ = search(torch.ones(1, 257), torch.ones(1, 257), 1)
    assert score.item() == 300.0
    assert inside.item() == 257.0  # bfloat16 would give 256 or 258


def test_reduced_precision_is_off_inside_and_put_back() -> None:
    seen, before = [], torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        setting = torch.backends.mkldnn.matmul.fp32_precision
        with module._full_precision(torch.device("cpu")):
            seen += [torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision]
        assert seen == ["ieee", "ieee"]
        assert setting != "ieee"
        assert torch.backends.mkldnn.matmul.fp32_precision == setting
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_read_only_memory_map_is_read_and_left_alone(tmp_path) -> None:
    vectors = np.arange(12, dtype=np.float32).reshape(6, 2)
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    _, index = search(mapped[:1], mapped, 2, document_chunk=4)
    assert index.tolist() == [[5, 4]]


def test_inputs_are_left_alone_and_no_graph_is_kept() -> None:
    query = torch.randn(3, 4, requires_grad=True)
    document = torch.randn(5, 4)
    copy = query.detach().clone(), document.clone()
    score, _ = search(query, document, 2)
    assert not score.requires_grad
    assert torch.equal(query, copy[0])
    assert torch.equal(document, copy[1])


GOOD = torch.ones(3, 4)


@pytest.mark.parametrize(
    ("query", "document", "settings", "message"),
    [
        (GOOD, GOOD, {"k": 0}, "k must be at least 1, got 0"),
        (GOOD, GOOD, {"k": 1, "document_chunk": 0}, "document_chunk must be at least 1"),
        (GOOD, GOOD, {"k": 1, "query_chunk": -1}, "query_chunk must be at least 1"),
        (GOOD, torch.ones(3, 5), {"k": 1}, "same width, got 4 and 5"),
        (torch.ones(4), GOOD, {"k": 1}, "query vectors must be a matrix"),
        (GOOD, torch.ones(3, 0), {"k": 1}, "document vectors must be a matrix"),
        (GOOD, torch.ones(0, 4), {"k": 1}, "at least one document"),
        (GOOD, GOOD.to(torch.complex64), {"k": 1}, "real numbers"),
        (GOOD * float("nan"), GOOD, {"k": 1}, "query vectors must be finite.*row 0"),
        (GOOD, torch.cat([GOOD, GOOD[:1] * float("inf")]), {"k": 1}, "document vectors must be finite.*row 3"),
        (GOOD, np.array([[1.0, 1.0, 1.0, 1e300]]), {"k": 1}, "document vectors must be finite in float32"),
        (GOOD * 1e30, GOOD * 1e30, {"k": 1}, "scores must be finite"),
        (GOOD, GOOD, {"k": 1, "order": np.arange(4)}, "order must have a whole number for each of the 3"),
        (
            GOOD,
            GOOD,
            {"k": 1, "order": np.ones(3)},
            "order must have a whole number for each of the 3 documents, got f",
        ),
    ],
)
def test_bad_input_is_refused(query, document, settings: dict[str, int], message: str) -> None:
    with pytest.raises(MAWError, match=message):
        search(query, document, **settings)


def test_a_bad_row_in_a_later_chunk_is_named_by_its_position() -> None:
    document = torch.ones(10, 2)
    document[7, 1] = float("nan")
    with pytest.raises(MAWError, match="row 7 "):
        search(torch.ones(1, 2), document, 1, document_chunk=3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("sign", [-1.0, 1.0, 0.0])
def test_a_bad_document_is_noticed_though_it_could_not_be_among_the_best(value: float, sign: float) -> None:
    document = torch.ones(2_000, 2)
    document[1_500, 1] = value
    query = torch.tensor([[1.0, sign]])
    with pytest.raises(MAWError, match=r"document vectors must be finite.*row 1500 "):
        search(query, document, 3, document_chunk=500)


@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf")])
@pytest.mark.parametrize("row", [0, 1])
def test_a_score_that_is_not_a_number_is_noticed_in_any_row(value: float, row: int) -> None:
    found = best.Best(2, 3, torch.device("cpu"), by_position=True)
    for begin in range(0, 2_000, 500):
        assert found.add(torch.rand(2, 500), begin, torch.arange(begin, begin + 500))
    score = torch.rand(2, 500)
    score[row, 17] = value
    assert not found.add(score, 2_000, torch.arange(2_000, 2_500))


def test_both_zeros_are_one_score() -> None:
    """A matrix product on this machine may never give -0.0; another's may."""
    found = best.Best(1, 3, torch.device("cpu"), by_position=True)
    assert found.add(torch.tensor([[-1.0, 0.0, -0.0, 0.0, -0.0]]), 0, torch.arange(5))
    score, position = found.result()
    assert position.tolist() == [[1, 2, 3]]
    assert score.tolist() == [[0.0] * 3]


def test_a_product_that_overflows_is_noticed_in_a_later_chunk() -> None:
    document = torch.ones(2_000, 2)
    document[1_500] = torch.tensor([3e38, -3e38])
    with pytest.raises(MAWError, match="scores must be finite"):
        search(torch.tensor([[0.1, 0.1], [10.0, 10.0]]), document, 3, document_chunk=500)


def test_queries_that_score_nothing_finite_are_noticed() -> None:
    with pytest.raises(MAWError, match="scores must be finite"):
        search(torch.tensor([[1.0], [2e38]]), -torch.full((4, 1), 2.0), 4, document_chunk=1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: vectors from the disk go there")
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_memory_map_is_searched_on_a_gpu(tmp_path, dtype) -> None:
    rng = np.random.default_rng(5)
    np.save(tmp_path / "vectors.npy", rng.integers(-3, 4, (30_011, 24)).astype(dtype))
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    query, order = rng.integers(-3, 4, (50, 24)).astype(np.float32), rng.permutation(30_011)
    for chunk, ties in ((None, None), (1_000, None), (1_000, order)):
        here = search(query, mapped, 200, order=ties)
        there = search(torch.from_numpy(query).cuda(), mapped, 200, document_chunk=chunk, query_chunk=20, order=ties)
        assert torch.equal(here[0], there[0].cpu())
        assert torch.equal(here[1], there[1].cpu())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: the same rule is checked there")
def test_the_rule_holds_on_a_gpu() -> None:
    rng = np.random.default_rng(2)
    for k, chunk in ((1, 64), (10, 997), (1_000, 5_000)):
        query = rng.integers(-1, 2, (13, 3)).astype(np.float32)
        document = rng.integers(-1, 2, (3_001, 3)).astype(np.float32)
        query[query == 0] = -0.0
        score, index = search(torch.from_numpy(query).cuda(), document, k, document_chunk=chunk)
        expected_score, expected_index = brute_force(query, document, k)
        assert score.is_cuda
        np.testing.assert_array_equal(score.cpu().numpy(), expected_score)
        np.testing.assert_array_equal(index.cpu().numpy(), expected_index)


def test_the_examples_run() -> None:
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed
