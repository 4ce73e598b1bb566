"""`torch.compile(fullgraph=True)` of the function and of one layer: one graph, and what eager gives.

The default tests compile with `aot_eager`, which traces forward and backward as any compiler does and then runs
PyTorch's own operators; the slow ones with inductor. Whole encoders: tests/hf/test_compiled.py.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch._dynamo
import torch._inductor.config
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import maw.entropy
import maw.interpolation
from maw import MAWConfig, functional
from maw.auxiliary import scale_gradient
from maw.module import DepthAttention
from maw.views import frame_views

HEADS, CHANNELS, DEPTH = 2, 4, 5


@pytest.fixture(params=["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def backend(request):
    """Counts its graphs."""
    torch._dynamo.reset()
    with torch._inductor.config.patch(fallback_random=True):  # eager's random numbers
        yield CompileCounterWithBackend(request.param)


def compiled(thing, backend, **options):
    return torch.compile(thing, fullgraph=True, backend=backend, **options)


def draw(batch=3, tokens=7, requires_grad=False):
    """q, k, v with memory of their own: views of one tensor would bind a graph to it."""
    shape = (batch, HEADS, tokens, CHANNELS)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=requires_grad) for _ in range(3)]


def draw_mask(batch=3, tokens=7):
    return torch.arange(tokens) < torch.tensor([(tokens + 1) // 2, *[tokens] * (batch - 1)])[:, None]


def make_layer(**settings):
    torch.manual_seed(11)
    config = MAWConfig(**{"depth": DEPTH, "auxiliary_weight": 1.0, **settings})
    layer = DepthAttention(config, frame_views(HEADS, CHANNELS, DEPTH, scaling=0.5)).double()
    if config.selection != "uniform":
        torch.nn.init.normal_(layer.selector.policy_network[-1].weight)
    return layer


def take_gradients(layer, inputs):
    named = [*layer.named_parameters(), *zip("qkv", inputs, strict=True)]
    found = {name: tensor.grad for name, tensor in named if tensor.grad is not None}
    layer.zero_grad()
    return found


def assert_same(actual, expected, atol=1e-11):
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=1e-9, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


# The function


@pytest.mark.parametrize(("depth", "masked"), [(2, True), (19, False)])
def test_the_function_and_its_gradients(backend, depth, masked):
    leaves = [*draw(), *(torch.randn(HEADS, depth, CHANNELS, dtype=torch.float64) for _ in range(2))]
    leaves += [torch.randn(3, depth).double().softmax(-1), torch.randn(HEADS, CHANNELS, CHANNELS).double()]
    results = []
    for function in (functional.depth_attention, compiled(functional.depth_attention, backend)):
        given = [leaf.clone().requires_grad_() for leaf in leaves]
        output = function(*given[:-1], constant=given[-1], mask=draw_mask() if masked else None, scale=3.0)
        results.append((output, *torch.autograd.grad(output.square().sum(), given)))
    for eager, graph in zip(*results, strict=True):
        torch.testing.assert_close(graph, eager, rtol=1e-10, atol=1e-12)
    assert backend.frame_count == 1


# A layer in evaluation


@pytest.mark.parametrize("selection", ["gumbel", "hard", "uniform"])
def test_evaluation_and_its_gradients(backend, selection):
    layer = make_layer(selection=selection).eval()
    graph, results = compiled(layer, backend), []
    for function in (layer, graph):
        torch.manual_seed(0)
        inputs = draw(requires_grad=True)
        output = function(*inputs, draw_mask())
        output.square().sum().backward()
        results.append({"output": output.detach(), **take_gradients(layer, inputs)})
    assert_same(results[1], results[0])


def test_batch_and_length_may_change_without_another_graph(backend):
    layer = make_layer().eval()
    graph = compiled(layer, backend, dynamic=True)
    graph(*draw(), draw_mask())
    graphs = backend.frame_count
    for batch, tokens in ((4, 9), (5, 140), (6, 70)):
        given = (*draw(batch, tokens), draw_mask(batch, tokens))
        torch.testing.assert_close(graph(*given), layer(*given), rtol=0, atol=1e-12)
    assert backend.frame_count == graphs


def test_a_text_without_a_token_is_an_error_when_the_graph_runs(backend):
    graph, mask = compiled(make_layer().eval(), backend), draw_mask()
    graph(*draw(), mask)
    mask[1] = False
    with pytest.raises(RuntimeError, match="mask: a row has no real key"):
        graph(*draw(), mask)


def test_what_does_not_fit_is_an_error_while_compiling(backend):
    q, k, v = draw()
    with pytest.raises(Exception, match="key must have the type of query"):
        compiled(make_layer(), backend)(q, k.float(), v)


def test_triton_is_refused(backend):
    with pytest.raises(Exception, match="PyTorch is compiling or exporting the model: use kernels='auto' or 'torch'"):
        compiled(make_layer(kernels="triton"), backend)(*draw())


# A layer in training

TRAININGS = {
    "gumbel": {},
    "softmax, exact": {"selection": "softmax", "estimator": "exact", "kl_weight": 0.3, "entropy_weight": 0.1},
    "hard, one sample": {"selection": "hard", "group_size": 1},
    "uniform": {"selection": "uniform"},
}


def train_two_steps(layer, function):
    """Gradients and records; the gradient that arrives at the root is another in each step."""
    for step, weight in enumerate((1.0, 1000.0)):
        layer.zero_grad()
        layer.gradient_scale.texts = 0
        torch.manual_seed(step)
        inputs = draw(requires_grad=True)
        output = function(*inputs, draw_mask())
        (weight * scale_gradient(output.square().sum(), [layer.gradient_scale])).backward()
    texts = torch.tensor(layer.gradient_scale.texts)
    return {"output": output.detach(), "texts": texts, **take_gradients(layer, inputs), **layer.collect()}


@pytest.mark.parametrize("settings", TRAININGS.values(), ids=TRAININGS)
def test_training_gives_eager_gradients_and_records(backend, settings):
    eager, layer = make_layer(**settings), make_layer(**settings)
    graph = compiled(layer, backend)
    assert_same(train_two_steps(layer, graph), train_two_steps(eager, eager), atol=1e-8)
    assert backend.frame_count == 1


@pytest.mark.parametrize(
    "place",
    ["in the graph", "around the graph", pytest.param("around the graph, reentrant", marks=pytest.mark.slow)],
)
def test_a_checkpointed_layer_counts_its_texts_once(backend, place):
    # in a checkpoint inductor draws other random numbers than eager, so that nothing is drawn there
    settings = TRAININGS["gumbel" if backend.backend == "aot_eager" else "softmax, exact"]
    eager, layer = make_layer(**settings), make_layer(**settings)
    reentrant = place.endswith("reentrant")
    inner = compiled(layer, backend) if place.startswith("around") else layer

    def run(*inputs):
        return checkpoint(inner, *inputs, use_reentrant=reentrant)

    function = run if place.startswith("around") else compiled(run, backend)
    assert_same(train_two_steps(layer, function), train_two_steps(eager, eager), atol=1e-8)


def test_a_forward_without_gradients_is_remembered(backend):
    """As losses that cache gradients run it first, to count texts."""
    layer = make_layer(updates=2)
    assert layer.replay_loss() is None
    with torch.no_grad():
        compiled(layer, backend)(*draw(), draw_mask())
    assert (len(layer.records), layer.gradient_scale.texts, len(layer.rollouts)) == (1, 3, 1)
    assert layer.replay_loss().isfinite()


def test_a_copy_keeps_its_own_records(backend):
    layer = make_layer()
    twins = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.copy(layer)]
    for twin in twins[:2]:
        compiled(twin, backend)(*draw())
        assert (len(twin.records), len(layer.records)) == (1, 0)
    assert len({int(one.handle) for one in (layer, *twins)}) == 4


@pytest.mark.slow
def test_training_on_other_sizes_needs_three_graphs_at_most(backend, monkeypatch):
    """One for the first sizes, one for any in texts whose entropy is exact, one where it is interpolated."""
    for module in (maw.entropy, maw.interpolation):
        monkeypatch.setattr(module, "CHUNK_ELEMENTS", 4096)  # eager loops over chunks
    eager, layer = (
        make_layer(estimator="exact", selection="softmax"),
        make_layer(estimator="exact", selection="softmax"),
    )
    graph = compiled(layer, backend)
    for batch, tokens in ((3, 7), (2, 9), (4, 11), (5, 40), (3, 70), (2, 90)):
        results = []
        for one, function in ((eager, eager), (layer, graph)):
            torch.manual_seed(tokens)
            inputs = draw(batch, tokens, requires_grad=True)
            function(*inputs, draw_mask(batch, tokens)).square().sum().backward()
            results.append(take_gradients(one, inputs) | one.collect())
        assert_same(results[1], results[0], atol=1e-8)
    assert backend.frame_count <= 3


def test_the_root_of_the_training_loss_stays_outside_the_graph(backend):
    """It speaks to the layers in Python while backward runs: one graph is refused, several do the same as eager."""

    def step(layer, inputs):
        return scale_gradient(layer(*inputs).square().sum(), [layer.gradient_scale])

    with pytest.raises(Exception, match="compile the model, not the training loss"):
        compiled(step, backend)(make_layer(), draw())
    torch._dynamo.reset()
    results = []
    for function in (step, torch.compile(step, backend=backend)):
        layer = make_layer()
        inputs = draw(requires_grad=True)
        (1000 * function(layer, inputs)).backward()
        results.append(take_gradients(layer, inputs))
        torch.manual_seed(11)
    assert_same(results[1], results[0], atol=1e-8)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::UserWarning:torch._inductor")  # the compiler's advice on speed
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty:UserWarning")  # of PyTorch's own first one
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_training_on_a_gpu(mode):
    """Also in CUDA graphs, whose replay runs no Python: what needs Python stays outside them."""
    torch._dynamo.reset()
    settings = {"selection": "softmax", "estimator": "exact", "kernels": "torch"}
    eager, layer = (make_layer(**settings).to("cuda", torch.float32) for _ in range(2))
    graph = torch.compile(layer, fullgraph=True, mode=mode)
    for step, weight in enumerate((1.0, 1000.0, 3.0, 7.0, 1.0)):
        results = []
        for one, function in ((eager, eager), (layer, graph)):
            torch.manual_seed(step)
            inputs = [tensor.float().cuda().requires_grad_() for tensor in draw()]
            one.gradient_scale.texts = 0
            output = function(*inputs, draw_mask().cuda())
            (weight * scale_gradient(output.square().sum(), [one.gradient_scale])).backward()
            results.append(take_gradients(one, inputs) | one.collect())
        assert results[0].keys() == results[1].keys()
        for name, expected in results[0].items():
            torch.testing.assert_close(results[1][name], expected, rtol=1e-3, atol=1e-3 * weight, msg=name)
