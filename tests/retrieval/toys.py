"""A toy retrieval task and an encoder small enough to train on it in a second; shared by the tests of training."""

from __future__ import annotations

import copy
import functools
import resource
from contextlib import contextmanager

import torch
from transformers import BertModel

import maw
from maw.retrieval.data.dataset import RetrievalDataset
from maw.retrieval.models import choose_device, load_encoder
from maw.retrieval.training.settings import TrainingSettings

WORDS = ("river", "engine", "violin", "glacier", "parliament", "enzyme", "harbour", "theorem", "orchard", "satellite")
SETTINGS = TrainingSettings(epochs=2, batch_size=4, max_length=16, dev_documents=5, learning_rate=1e-4)


def toy() -> RetrievalDataset:
    """Ten true sentences about ten words; small enough to train on in seconds."""
    documents = {f"d{i}": f"This passage explains what a {word} is." for i, word in enumerate(WORDS)}
    queries = {f"q{i}": f"meaning of {word}" for i, word in enumerate(WORDS)}
    pairs = [(f"q{i}", {f"d{i}": 1}) for i in range(len(WORDS))]
    return RetrievalDataset.from_parts(
        "toy", documents, queries, {"train": dict(pairs[:8]), "dev": dict(pairs[8:9]), "test": dict(pairs[9:])}
    )


@functools.cache
def _small():
    model = load_encoder("packaged", device=choose_device("cpu"), max_length=16)
    torch.manual_seed(0)
    small = model[0].model.config
    small.num_hidden_layers, small.hidden_size, small.intermediate_size, small.initializer_range = 2, 48, 64, 0.2
    model[0].model = BertModel(small)
    return model.eval()


def encoder(config: maw.MAWConfig | None = None, *, packaged: bool = False):
    """The packaged encoder, or a random one of its kind that is small enough to train and save in a second."""
    if packaged:
        model = load_encoder("packaged", device=choose_device("cpu"), max_length=16)
    else:
        model = copy.deepcopy(_small())
        torch.manual_seed(0)
    if config is not None:
        maw.attach(model, config)
    return model


def features(model, texts):
    return dict(model.tokenizer(texts, padding=True, return_tensors="pt"))


def columns(model):
    data = toy()
    return [features(model, list(data.queries.values())[:4]), features(model, list(data.documents.values())[:4])]


@contextmanager
def small_disk(size: int):
    """No file can become larger than so many bytes; the system says so as it does for a quota."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def note_depth_weights(layer) -> list[tuple[bool, torch.Tensor]]:
    """From now on, for every forward in training: whether gradients were on, and the depth weights."""
    choose, noted = layer._choose, []

    def noting(*arguments):
        choice = choose(*arguments)
        noted.append((torch.is_grad_enabled(), choice.depth_weight.detach().clone()))
        return choice

    layer._choose = noting
    return noted
