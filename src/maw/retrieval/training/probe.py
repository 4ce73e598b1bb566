"""Look at a model on a few texts in the middle of its training, and leave no trace of having looked.

What the selectors' statistics cannot show: how sharp the attention of MAW's layers is, whether training and evaluation
make the same vectors, and whether padding is masked. `maw.collapse.probe_findings` judges the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from maw.hf.attach import maw_layers
from maw.module import DepthAttention
from maw.retrieval.identity import document_prompt, query_prompt
from maw.shapes import repeat_heads

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["TOKENS", "probe"]

TOKENS = 64
"""Texts are cut to this many tokens, and those of their prompt."""


@torch.no_grad()
def probe(model: SentenceTransformer, queries: Sequence[str], documents: Sequence[str] = ()) -> dict[str, Any]:
    """A few texts as in evaluation, the one with the most padding alone, and with the depth weights of training.

    Modes, random numbers and records of the model are left as they were.

    Args:
        model: an encoder with MAW.
        queries, documents: together at least two different ones; each with the prompt of its kind.

    Returns:
        `attention_entropy`: for every MAW layer the entropy of its attention over log(real keys), mean over heads,
        real tokens and texts. `selection_gap`: by how much training's depth weights move a vector, relative to the mean
        distance of two texts. `mask_error`: by how much padding moves the vector of the text that has most of it,
        relative to its length. `view_spread`: for every MAW layer how far its view vectors are from their mean over
        depths, relative to their length; 0 where all slices are the same.
    """
    layers = maw_layers(model)
    kinds = [(queries, query_prompt(model)), (documents, document_prompt(model))]
    kinds = [(texts, prompt) for texts, prompt in kinds if texts]
    longest = max(_features(model, *kind)["attention_mask"].shape[1] for kind in kinds)
    together = [_features(model, *kind, longest) for kind in kinds]
    lengths = torch.cat([features["attention_mask"].sum(dim=-1) for features in together])
    shortest = int(lengths.argmin())
    text, prompt = [(text, prompt) for texts, prompt in kinds for text in texts][shortest]
    with _untouched(model, layers):
        model.eval()
        with ExitStack() as stack:
            entropies = [stack.enter_context(_attention_entropy(layer)) for layer in layers]
            evaluated = _vectors(model, *together)
        alone = _vectors(model, _features(model, [text], prompt))[0]
        for layer in layers:
            layer.train()
        trained = _vectors(model, *together)
    apart = torch.pdist(evaluated).mean()
    return {
        "attention_entropy": [float(torch.cat(found).mean()) if found else math.nan for found in entropies],
        "selection_gap": float((trained - evaluated).norm(dim=-1).mean() / apart),
        "mask_error": float((evaluated[shortest] - alone).norm() / alone.norm()),
        "view_spread": [max(_spread(layer.query_views), _spread(layer.key_views)) for layer in layers],
    }


def _features(
    model: SentenceTransformer, texts: Sequence[str], prompt: str | None, length: int | None = None
) -> dict[str, Any]:
    """What the model is given for one batch, filled up to a length or to the longest text."""
    limit = TOKENS + len(model.tokenizer(prompt)["input_ids"] if prompt else ())
    options: dict[str, Any] = {"max_length": min(limit, model.max_seq_length or limit)}
    if length is not None:
        options = {"max_length": length, "padding": "max_length"}
    made = model.preprocess(list(texts), prompt=prompt, processing_kwargs={"text": options})
    return {name: value.to(model.device) if isinstance(value, Tensor) else value for name, value in made.items()}


def _vectors(model: SentenceTransformer, *batches: dict[str, Any]) -> Tensor:
    """Embeddings in float32."""
    return torch.cat([model(dict(features))["sentence_embedding"].float() for features in batches])


def _spread(views: Tensor) -> float:
    return float((views - views.mean(dim=1, keepdim=True)).norm() / views.norm())


@contextmanager
def _untouched(model: nn.Module, layers: Sequence[DepthAttention]) -> Generator[None]:
    """Everything that a forward changes is put back: modes, random numbers, and what MAW's layers remember."""
    modes = [(module, module.training) for module in model.modules()]
    kept = [(layer, list(layer.records), layer.rollouts, layer.gradient_scale.texts) for layer in layers]
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices):
            for layer in layers:
                layer.rollouts = None
            yield
    finally:
        for module, training in modes:
            module.training = training
        for layer, records, rollouts, texts in kept:
            layer.records.clear()
            layer.records.extend(records)
            layer.rollouts = rollouts
            layer.gradient_scale.texts = texts


@contextmanager
def _attention_entropy(layer: DepthAttention) -> Generator[list[Tensor]]:
    """Until it ends, every forward of this layer leaves the mean attention entropy of its texts."""
    found: list[Tensor] = []

    def listen(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        _, key, _, mask = arguments
        attend: Callable[[Tensor], Any] = options["attend"]

        def attend_and_note(transformed: Tensor) -> Any:
            found.append(_entropy(transformed, key, mask, layer.scaling))
            return attend(transformed)

        return arguments, {**options, "attend": attend_and_note}

    handle = layer.register_forward_pre_hook(listen, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


def _entropy(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Normalised attention entropy over real keys, mean over heads and real queries; (B,), texts of one token left out.

    A causal mask or a window is not applied: what is asked is how sharp the logits are.
    """
    logits = scaling * query.float() @ repeat_heads(key, query.shape[1]).float().transpose(-1, -2)
    mask = logits.new_ones(len(key), key.shape[2], dtype=torch.bool) if mask is None else mask
    attention = logits.masked_fill(~mask[:, None, None, :], -math.inf).softmax(dim=-1)
    entropy = torch.special.entr(attention).sum(dim=-1).mean(dim=1)
    tokens = mask.sum(dim=-1)
    mean = (entropy * mask).sum(dim=-1) / tokens / tokens.clamp(min=2).log()
    return mean[tokens > 1]
