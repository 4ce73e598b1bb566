"""A pytest plugin for Sentence Transformers' own tests: no hub, and encoders that carry MAW where that is asked for.

`benchmarks/sentence_transformers_suite.py` starts pytest with it. The environment says what to do:

    MAW_SUITE_ATTACH  1: every encoder that is loaded by a name gets MAW, as maw.attach would put it there
    MAW_SUITE_SECONDS a test that takes longer fails

Models come from a cache in the hub's layout (`build_hub`), so that nothing in their loading differs. Data sets that the
tests name are replaced by small ones made here.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset, DatasetDict
from sentence_transformers.base.modules import Transformer
from transformers import PreTrainedModel

import maw
from maw.hf.attach import has_maw
from maw.hf.hosts import FAMILIES
from maw.module import DepthAttention

passes = [0]
"""Forward passes of layers with MAW in the test that runs."""

SETTINGS = maw.MAWConfig(noise=0.0, auxiliary_weight=0.0 if os.environ.get("MAW_SUITE_POLICY") == "0" else 0.03)
"""The default, without the noise of training: many tests compare two passes of a model that is being trained.

Where they compare gradients, those of the policy differ still, which draws depths at random: MAW_SUITE_POLICY=0 leaves
its loss out.
"""

WORDS = ("river", "engine", "violin", "glacier", "parliament", "enzyme", "harbour", "theorem", "orchard", "satellite")


def sentences(count: int, seed: int) -> list[str]:
    """Made sentences, no two of them alike."""
    generator = random.Random(seed)
    return [f"the {' '.join(generator.choices(WORDS, k=5))} number {index}" for index in range(count)]


def _stsb() -> DatasetDict:
    def part(count: int, seed: int) -> Dataset:
        first, second = sentences(count, seed), sentences(count, seed + 1)
        generator = random.Random(seed)
        return Dataset.from_dict(
            {"sentence1": first, "sentence2": second, "score": [generator.random() for _ in range(count)]}
        )

    return DatasetDict(train=part(400, 0), validation=part(150, 2), test=part(150, 4))


def _load_dataset(path: str, *names: Any, split: str | None = None, **_: Any) -> Any:
    if path == "sentence-transformers/stsb":
        data = _stsb()
        return data if split is None else data[split]
    if path == "sentence-transformers/all-nli":
        count = 10_000
        labels = [index % 3 for index in range(count)]
        return Dataset.from_dict({"premise": sentences(count, 6), "hypothesis": sentences(count, 7), "label": labels})
    raise ConnectionError(f"there is no hub here, and no stand-in for the data set {path}")


datasets.load_dataset = _load_dataset


if os.environ.get("MAW_SUITE_ATTACH") == "1":
    start = Transformer.__init__

    def start_with_maw(self: Any, model_name_or_path: str, *args: Any, **kwargs: Any) -> None:
        """As before; then, MAW in an encoder that came by a name and can carry it."""
        start(self, model_name_or_path, *args, **kwargs)
        encoder = getattr(self, "model", None)
        if not isinstance(encoder, PreTrainedModel) or has_maw(encoder) or Path(model_name_or_path).exists():
            return
        adapted = hasattr(encoder, "peft_config")  # an adapter is added after MAW, not before
        if encoder.config.model_type in FAMILIES and encoder.base_model is encoder and not adapted:
            self.model = maw.attach(encoder, SETTINGS).model

    Transformer.__init__ = start_with_maw
    forward = DepthAttention.forward

    def counted(self: DepthAttention, *args: Any, **kwargs: Any) -> Any:
        """As before, and counted: a test in which no layer of MAW computed anything says nothing about MAW."""
        passes[0] += 1
        return forward(self, *args, **kwargs)

    DepthAttention.forward = counted


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Write into the report in which tests MAW computed."""
    if passes[0]:
        item.user_properties.append(("maw", passes[0]))
    passes[0] = 0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    """End a test that hangs."""

    def too_long(*_: Any) -> None:
        raise TimeoutError(f"longer than {seconds} s")

    seconds = int(os.environ.get("MAW_SUITE_SECONDS", "60"))
    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    try:
        return (yield)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
