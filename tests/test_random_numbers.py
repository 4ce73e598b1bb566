"""What MAW draws does not move the stream that its host draws from: twins get the same dropout."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertModel, MPNetConfig, MPNetModel

import maw
from maw.random_numbers import drawing_apart

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 30,
}  # fmt: skip
HOSTS = {"bert": (BertModel, BertConfig), "mpnet": (MPNetModel, MPNetConfig)}
IDS = torch.randint(1, 30, (5, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_the_common_stream_goes_on_as_if_nothing_had_been_drawn(device):
    torch.manual_seed(3)
    expected = [torch.rand(4, device=device) for _ in range(3)]
    torch.manual_seed(3)
    found, own = [], []
    for _ in range(3):
        with drawing_apart(torch.device(device)):
            own.append(torch.rand(4, device=device))
        found.append(torch.rand(4, device=device))
    assert all(map(torch.equal, found, expected))
    # numbers of their own, other ones at every place of the stream
    drawn = torch.cat([*own, *expected])
    assert len(drawn.unique()) == len(drawn)


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_the_same_state_gives_the_same_numbers_and_another_seed_others(device):
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        with drawing_apart(torch.device(device)):
            drawn.append(torch.rand(4, device=device))
    assert drawn[0].equal(drawn[1])
    assert not drawn[0].equal(drawn[2])


def test_an_error_within_leaves_the_stream_as_it_was():
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError), drawing_apart(torch.device("cpu")):
        torch.rand(3) @ torch.rand(4)
    assert torch.get_rng_state().equal(before)


def host(name, **changes):
    model, config = HOSTS[name]
    torch.manual_seed(0)
    return model(config(**SIZES, **changes)).train()


@pytest.mark.parametrize("name", sorted(HOSTS))
@pytest.mark.parametrize("changes", [{"selection": "softmax"}, {"mechanism": "ia3-key"}, {"selection": "uniform"}])
def test_an_encoder_with_maw_gets_its_twins_dropout(name, changes):
    """Before the first step both give the same in training, forward after forward."""
    outputs = []
    for attached in (False, True):
        model = host(name)
        if attached:
            model = maw.attach(model, maw.MAWConfig(depth=8, layers="all", **changes)).model.train()
        torch.manual_seed(1)
        outputs.append([model(input_ids=IDS).last_hidden_state for _ in range(2)])
    for dense, with_maw in zip(*outputs, strict=True):
        torch.testing.assert_close(with_maw, dense, rtol=1e-4, atol=1e-5)
    assert not outputs[0][0].equal(outputs[0][1])


@pytest.mark.parametrize("changes", [{}, {"mechanism": "logit-dropout"}])
def test_noise_differs_between_forwards_and_layers_but_not_in_a_checkpointed_layers_second_run(changes):
    results = []
    for checkpointed in (False, True):
        model = maw.attach(host("bert"), maw.MAWConfig(depth=8, layers="all", tau=1.0, **changes)).model.train()
        if checkpointed:  # under the name that this version of Transformers gives it
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        torch.manual_seed(1)
        sum(model(input_ids=IDS).last_hidden_state.square().sum() for _ in range(2)).backward()
        records = [record.record() for layer in maw.hf.attach.maw_layers(model) for record in layer.records]
        assert len({tuple(record.depth_index.flatten().tolist()) for record in records}) == (0 if changes else 4)
        results.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert len(results[0]) == len(results[1])
    for plain, again in zip(*results, strict=True):
        torch.testing.assert_close(plain, again)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_without_dropout_in_the_host_every_forward_has_its_own_noise_too(dropout):
    changes = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    model = maw.attach(host("bert", **changes), maw.MAWConfig(depth=8)).model.train()
    (layer,) = maw.hf.attach.maw_layers(model)
    for _ in range(4):
        model(input_ids=IDS)
    model.eval()
    layer.train()  # as where the noise of training is measured
    for _ in range(4):
        model(input_ids=IDS)
    drawn = {tuple(record.record().depth_index.flatten().tolist()) for record in layer.records}
    assert len(drawn) == 8


def test_a_layer_of_its_own_draws_from_the_common_stream():
    layer = maw.DepthAttention(maw.MAWConfig(depth=5), maw.views.frame_views(2, 4, 5, scaling=0.5))
    before = torch.get_rng_state()
    query = torch.randn(3, 2, 7, 4, generator=torch.Generator().manual_seed(0))
    layer(query, query, query)
    assert not torch.get_rng_state().equal(before)
    outputs = []
    for _ in range(2):
        torch.manual_seed(1)
        outputs.append(checkpoint(layer, query, query, query, use_reentrant=False))
    assert outputs[0].equal(outputs[1])
