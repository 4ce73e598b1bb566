from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maw import MAWConfig, MAWError

NAN, INFINITY = float("nan"), float("inf")

BAD = [
    *[("layers", bad, "'all'") for bad in ("last", "", None, 1.5)],
    *[("layers", bad, "at least one layer") for bad in ([], ())],
    *[("layers", bad, "integers") for bad in ([1.0], ["1"], [True], [0, None])],
    *[("layers", bad, "'all'") for bad in (True, False)],
    ("layers", [2, 2], "differ"),
    *[("depth", bad, "integer of at least 1") for bad in (0, -1, 1.0, "64", True, None)],
    *[("group_size", bad, "integer of at least 1") for bad in (0, 2.0, None)],
    *[("updates", bad, "integer of at least 1") for bad in (0, 1.5)],
    *[("num_heads", bad, "integer of at least 1") for bad in (0, 12.0, False)],
    *[("kernels", bad, "one of 'auto'") for bad in ("cuda", None)],
    *[("seed", bad, "integer of at least 0") for bad in (-1, 0.0, None)],
    *[("tau", bad, "above 0") for bad in (0, -1.0, NAN, INFINITY, "5", None, True)],
    *[("clip", bad, "above 0") for bad in (0.0, -0.2, NAN)],
    *[("scale", bad, "above 0") for bad in (0.0, -1.0, INFINITY, "auto")],
    *[
        (name, bad, "at least 0")
        for name in ("auxiliary_weight", "value_weight", "kl_weight", "entropy_weight", "learning_rate")
        for bad in (-1e-9, NAN, INFINITY, "0", None, False)
    ],
    *[("views", bad, "'spectral'") for bad in ("svd", None, "AUTO", 1)],
    *[("selection", bad, "'gumbel'") for bad in ("argmax", None)],
    *[("advantage", bad, "'leave-one-out'") for bad in ("loo", None)],
    *[("estimator", bad, "'exact'") for bad in ("true", True)],
    *[("reward", bad, "'entropy'") for bad in ("accuracy", None)],
    *[("mechanism", bad, "'maw'") for bad in ("ia3", None)],
    *[("noise", bad, "at least 0") for bad in (-1e-9, NAN, None)],
    *[(name, bad, "true or false") for name in ("calibrate", "depth_baseline") for bad in (1, None)],
    *[("tau_start", bad, "above 0") for bad in (0, -1.0, NAN, "5", True)],
    *[("retrieval_weight", bad, "at least 0") for bad in (-1e-9, NAN, None)],
    *[("logit_dropout", bad, "at least 0") for bad in (-0.1, NAN, None)],
    ("logit_dropout", 1.0, "below 1"),
]


@pytest.mark.parametrize(("name", "bad", "wanted"), BAD)
def test_bad_values_are_named_with_what_was_wanted_and_got(name, bad, wanted):
    with pytest.raises(MAWError) as caught:
        MAWConfig(**{name: bad})
    message = str(caught.value)
    assert message.startswith(name)
    assert wanted in message
    if name != "layers":
        assert message.endswith(f"got {bad!r}")
    elif isinstance(bad, (list, tuple)) and bad:
        assert repr(bad[-1]) in message or repr(bad) in message
    elif bad not in ([], ()):
        assert repr(bad) in message


def test_every_field_has_a_bad_value_in_this_file():
    named = {name for name, _, _ in BAD} | {"train_views"}
    assert {field.name for field in dataclasses.fields(MAWConfig)} == named


def test_train_views_must_be_a_truth_value():
    with pytest.raises(MAWError, match="train_views"):
        MAWConfig(train_views="false")


def test_the_exact_estimator_has_no_samples_to_reuse():
    with pytest.raises(MAWError, match=r"updates must be 1 with estimator='exact'.*got 2"):
        MAWConfig(estimator="exact", updates=2)


@pytest.mark.parametrize("reward", ["retrieval", "sum"])
def test_samples_with_a_reward_that_comes_later_serve_once(reward):
    assert MAWConfig(reward=reward).updates == 1
    with pytest.raises(MAWError, match=rf"updates must be 1 with reward='{reward}'.*got 2"):
        MAWConfig(reward=reward, updates=2)


@pytest.mark.parametrize("bad", [1, 1.0, 1.5])
def test_not_all_logits_can_be_dropped(bad):
    with pytest.raises(MAWError, match=f"logit_dropout must be a share below 1, got {bad}"):
        MAWConfig(mechanism="logit-dropout", logit_dropout=bad)


def test_a_number_too_large_for_a_float_is_bad_input():
    with pytest.raises(MAWError, match="tau"):
        MAWConfig(tau=10**400)


def test_defaults_are_those_of_method_section_4():
    config = MAWConfig()
    assert config.layers == (0,)
    assert (config.depth, config.views, config.selection) == (64, "auto", "gumbel")
    assert (config.tau, config.noise) == (0.3, 0.0075)
    assert (config.group_size, config.advantage, config.reward) == (8, "leave-one-out", "entropy")
    assert (config.auxiliary_weight, config.value_weight, config.kl_weight) == (0.03, 0.5, 1.0)
    assert (config.calibrate, config.depth_baseline) == (True, True)
    assert (config.learning_rate, config.mechanism, config.tau_start) == (3e-4, "maw", None)
    assert (config.scale, config.num_heads, config.updates) == (None, None, 1)
    assert MAWConfig.recipe("default") == config
    assert MAWConfig.recipe("literal").layers == (-1,), "where the specification has it"


def test_frozen_and_hashable():
    config = MAWConfig(layers=[0, 2])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.depth = 3
    assert len({config, MAWConfig(layers=(0, 2))}) == 1


def test_a_kept_list_does_not_change_the_settings():
    layers = [0, 1]
    config = MAWConfig(layers=layers)
    layers.append(2)
    assert config.layers == (0, 1)


numbers = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)
estimators = st.just({"estimator": "exact"}) | st.builds(
    lambda updates: {"estimator": "sampled", "updates": updates}, st.integers(1, 9)
)
configs = st.builds(
    lambda estimator, **others: MAWConfig(**estimator, **others),
    estimator=estimators,
    layers=st.one_of(st.just("all"), st.lists(st.integers(-99, 99), min_size=1, unique=True)),
    depth=st.integers(1, 4096),
    num_heads=st.none() | st.integers(1, 99),
    views=st.sampled_from(["auto", "spectral", "frame", "random", "ones"]),
    train_views=st.booleans(),
    scale=st.none() | numbers,
    selection=st.sampled_from(["gumbel", "softmax", "hard", "uniform"]),
    tau=numbers,
    tau_start=st.none() | numbers,
    noise=numbers,
    calibrate=st.booleans(),
    retrieval_weight=numbers,
    mechanism=st.sampled_from(["maw", "ia3-key", "linear-gate", "logit-dropout"]),
    logit_dropout=st.floats(0, 1, exclude_max=True),
    group_size=st.integers(1, 99),
    advantage=st.sampled_from(["std", "none", "leave-one-out"]),
    clip=numbers,
    auxiliary_weight=numbers,
    value_weight=numbers,
    kl_weight=numbers,
    entropy_weight=numbers,
    learning_rate=numbers,
    seed=st.integers(0, 2**32),
)


@given(configs)
def test_json_round_trip(config):
    text = config.to_json()
    assert set(json.loads(text)) == {field.name for field in dataclasses.fields(MAWConfig)}
    assert MAWConfig.from_json(text) == config
    assert MAWConfig.from_dict(config.to_dict()) == config


def test_unknown_setting_is_named():
    with pytest.raises(MAWError, match=r"\['depths', 'heads'\].*'depth'"):
        MAWConfig.from_dict({"depths": 5, "heads": 3, "tau": 1.0})


@pytest.mark.parametrize(("text", "got"), [("{", "not JSON"), ("[1]", "list"), ("3", "int"), ("null", "NoneType")])
def test_text_that_is_no_json_object(text, got):
    with pytest.raises(MAWError, match=f"JSON object.*{got}"):
        MAWConfig.from_json(text)


def test_values_in_json_are_validated():
    with pytest.raises(MAWError, match="tau must be"):
        MAWConfig.from_json('{"tau": NaN}')


def test_literal_recipe_is_the_specifications_snippet():
    config = MAWConfig.recipe("literal")
    assert (config.views, config.train_views, config.scale) == ("ones", False, 1.0)
    assert (config.group_size, config.tau, config.selection, config.depth) == (1, 1.0, "gumbel", 64)
    assert (config.kl_weight, config.entropy_weight) == (0.0, 0.0)
    assert (config.noise, config.depth_baseline, config.calibrate) == (1.0, False, False)
    assert MAWConfig.recipe("literal", depth=5) == dataclasses.replace(config, depth=5)


def test_unknown_recipe_is_named():
    with pytest.raises(MAWError, match=r"\['default', 'literal'\], got 'printed'"):
        MAWConfig.recipe("printed")


@pytest.mark.parametrize(
    ("layers", "count", "indices"),
    [
        ("all", 6, [0, 1, 2, 3, 4, 5]),
        ([-1], 6, [5]),
        (-1, 6, [5]),
        (0, 1, [0]),
        ([3, -6, 1], 6, [0, 1, 3]),
        ((5, 4), 6, [4, 5]),
        (range(2), 6, [0, 1]),
    ],
)
def test_layer_indices(layers, count, indices):
    assert MAWConfig(layers=layers).layer_indices(count) == indices


@pytest.mark.parametrize("layer", [6, -7, 99])
def test_layer_out_of_range(layer):
    with pytest.raises(MAWError, match=f"6 layers, -6 to 5 are possible, got {layer}"):
        MAWConfig(layers=[0, layer]).layer_indices(6)


def test_the_same_layer_counted_from_both_ends():
    config = MAWConfig(layers=[-1, 5])
    assert config.layer_indices(7) == [5, 6]
    with pytest.raises(MAWError, match="layer 5 is named twice"):
        config.layer_indices(6)
