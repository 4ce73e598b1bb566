"""Whole encoders with MAW, compiled in one graph and exported: the numbers of eager, for any batch and length."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import torch
import torch._dynamo
import torch._inductor.config
from families import CAUSAL, HOSTS, attach, build, hidden, stir
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

from maw.hf.attach import maw_layers

pytestmark = pytest.mark.filterwarnings("ignore:`torch._prims_common.check` is deprecated")  # inductor's own call
EVERY = ["bert", *(pytest.param(name, marks=pytest.mark.slow) for name in HOSTS if name != "bert")]
SIZES = ((3, 11), (2, 7), (4, 9), (5, 13))


@pytest.fixture(params=["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def backend(request):
    torch._dynamo.reset()
    with torch._inductor.config.patch(fallback_random=True):  # eager's random numbers
        yield CompileCounterWithBackend(request.param)


def carrying(name, **settings):
    model = stir(attach(build(name), **settings))
    if name in CAUSAL:
        model.backbone.config.use_cache = False  # a cache is nothing that a graph can return
    return model


def texts(batch, tokens):
    """Padded on the side that tokenizers pad on; the last row is the shortest."""
    real = torch.arange(tokens) < torch.tensor([*[tokens] * (batch - 1), (tokens + 1) // 2])[:, None]
    return {"input_ids": torch.randint(2, 60, (batch, tokens)), "attention_mask": real.long()}


def assert_same_vectors(function, model, inputs, atol=1e-6):
    with torch.no_grad():
        actual, expected = (one(**inputs).last_hidden_state for one in (function, model))
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(actual[real], expected[real], rtol=0, atol=atol)


# Compiled


@pytest.mark.parametrize("name", EVERY)
def test_encoding_in_one_graph_for_any_batch_and_length(backend, name):
    if backend.backend == "inductor" and name not in ("bert", "llama"):
        pytest.skip("inductor takes a minute, and compiles what aot_eager traces: two families will do")
    model, atol = carrying(name), 1e-6 if backend.backend == "aot_eager" else 1e-4  # rounding: 2e-5 seen
    graph = torch.compile(model, fullgraph=True, backend=backend)
    inputs = texts(*SIZES[0])
    for tensor in inputs.values():
        torch._dynamo.mark_dynamic(tensor, (0, 1))  # an error if a graph could serve one size only
    assert_same_vectors(graph, model, inputs, atol)
    graphs = backend.frame_count
    for size in SIZES[1:]:
        assert_same_vectors(graph, model, texts(*size), atol)
    inputs = texts(3, 11)
    inputs["attention_mask"][1] = 0
    with pytest.raises(RuntimeError, match="attention_mask: a row has no real key"), torch.no_grad():
        graph(**inputs)
    assert backend.frame_count == graphs


# Not both at once: where the KL's gradient nearly cancels that of standardised advantages, inductor's rounding
# shows (7 of 240 weights of one layer, by up to .0002 or .006 of the gradient); each alone agrees.
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"kl_weight": 0.0}, id="std", marks=pytest.mark.slow),
        pytest.param({"advantage": "leave-one-out"}, id="KL"),
    ],
)
def test_training_gives_eager_gradients_and_records(backend, settings):
    def train(compiling):
        model = carrying("bert", auxiliary_weight=10.0, **settings).train()
        for layer in maw_layers(model):  # a policy that is not collapsed
            torch.nn.init.zeros_(layer.selector.policy_network[-1].bias)
        function = torch.compile(model, fullgraph=True, backend=backend) if compiling else model
        torch.manual_seed(3)
        function(**texts(3, 11)).last_hidden_state.square().mean().backward()
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        for place, layer in enumerate(maw_layers(model)):
            found |= {f"{place}.{name}": statistic for name, statistic in layer.collect().items()}
        return found

    expected, actual = train(False), train(True)
    # compiled, a parameter that the loss does not use gets a gradient of zeros
    assert all(actual[name].abs().max() == 0 for name in actual.keys() - expected.keys())
    assert any("policy_network" in name and value.abs().max() > 1e-3 for name, value in expected.items())
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
def test_packed_texts_are_an_error_when_the_graph_runs():
    torch._dynamo.reset()
    graph, inputs = torch.compile(carrying("llama"), fullgraph=True, backend="aot_eager"), texts(1, 6)
    inputs["attention_mask"][:] = 1
    graph(**inputs, position_ids=torch.arange(6)[None])
    with pytest.raises(RuntimeError, match="do not count up by one in a row"):
        graph(**inputs, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]))


# Exported


def export(model, **options):
    dims = {0: Dim("batch", max=512), 1: Dim("length", max=64)}
    inputs = texts(3, 11)
    with torch.no_grad():
        return torch.export.export(model, (), inputs, dynamic_shapes=dict.fromkeys(inputs, dims), **options)


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # PyTorch 2.11, of its own reading
@pytest.mark.parametrize("name", EVERY)
def test_an_exported_model_saved_and_loaded_gives_eager_vectors(name, tmp_path):
    model = carrying(name)
    torch.export.save(export(model), tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for batch, tokens in (*SIZES, (1, 2)):
        assert_same_vectors(loaded, model, texts(batch, tokens))
    inputs = texts(3, 11)
    inputs["attention_mask"][2] = 0
    with pytest.raises(RuntimeError, match="attention_mask: a row has no real key"):
        loaded(**inputs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")  # Transformers' bookkeeping
def test_strict_export_gives_the_same():
    model = carrying("bert")
    assert_same_vectors(export(model, strict=True).module(), model, texts(4, 9))


@pytest.mark.slow
def test_an_exported_model_needs_no_maw(tmp_path):
    model, inputs = carrying("bert"), texts(2, 7)
    torch.export.save(export(model), tmp_path / "model.pt2")
    torch.save((inputs, hidden(model, inputs["input_ids"], inputs["attention_mask"])), tmp_path / "expected.pt")
    code = """
import sys, torch, transformers.modeling_outputs
inputs, expected = torch.load("expected.pt")
found = torch.export.load("model.pt2").module()(**inputs).last_hidden_state
assert torch.allclose(found[inputs["attention_mask"].bool()], expected[inputs["attention_mask"].bool()], atol=1e-6)
assert not [name for name in sys.modules if name.partition(".")[0] == "maw"]
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_model_in_training_mode_is_not_exported(strict):
    with pytest.raises(Exception, match=r"export the model in evaluation mode.*model.eval\(\)"):
        export(carrying("bert").train(), strict=strict)


@pytest.mark.parametrize("name", HOSTS)
def test_the_wrappers_signature_is_the_start_of_every_hosts(name):
    host, own = (inspect.signature(one.forward).parameters for one in (build(name), attach(build(name))))
    assert list(host)[:2] == list(own)[:2] == ["input_ids", "attention_mask"]
