"""What a text's depths attend to: the intermediates of the seven steps, on what the encoder itself gives its layer.

A hook on one MAW layer keeps q, k, v and the mask while the encoder encodes a text as it always does, in evaluation
mode. Everything shown is made by `maw.reference` from these, head by head:

    slice d   softmax( scale * score[.., d] )    what depth d alone attends to; as in the reward, over all real tokens
    mixed     softmax( logit + host's own term ) what the layer attends to
    host      the host's attention on the same q without MAW

The host's own term is its mask or position bias, the logarithm of its attention for a query of zeros. The result says
how far `mixed` is from the attention that the layer really computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from maw.errors import MAWError
from maw.hf.attach import carried, carrying_host, maw_layers
from maw.hf.capture import Captured, capture, plain_attention, readable_tokens
from maw.hf.hosts import family_of
from maw.module import DepthAttention
from maw.reference import attention_probabilities, expand_key, expand_query, seven_steps
from maw.rewards import entropy_reward
from maw.selector import token_mean
from maw.shapes import repeat_heads

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedModel

__all__ = ["LONGEST", "Inspection", "Slice", "Text", "inspect"]

LONGEST = 512
"""Tokens a text is cut to where the model takes more: the 5D tensor of one head then has 2^18 D elements."""

LARGEST = 2**22
"""Elements of the 5D tensor that are held at once, unless one head has more."""


@dataclass(frozen=True)
class Slice:
    """What one depth attends to in one text.

    `entropy` is that of its attention over log(number of tokens), the mean over queries and heads (minus the reward);
    `share` is its part in the sum over depths of weight times size of the scores, rows centred.
    """

    depth: int
    weight: float
    entropy: float
    share: float
    attention: Float[Tensor, "Q K"]


@dataclass(frozen=True)
class Text:
    """One text: its tokens, its depth weights, and its attention, of one head or as the mean over heads.

    `whole` is how many tokens the text has uncut, `slices` are the strongest depths, strongest first, `difference` is
    the largest absolute difference of `mixed` from the attention that the layer computed.
    """

    text: str
    tokens: tuple[str, ...]
    whole: int
    depth_weight: Float[Tensor, " D"]
    entropy: Float[Tensor, " D"]
    slices: tuple[Slice, ...]
    mixed: Float[Tensor, "Q K"]
    host: Float[Tensor, "Q K"]
    difference: float
    has_own_term: bool

    @property
    def cut(self) -> bool:
        """Whether tokens are missing at the text's end."""
        return self.whole > len(self.tokens)

    @property
    def effective_depths(self) -> float:
        """How many depths the weights amount to: exp of their entropy, D where they are equal."""
        return float(torch.special.entr(self.depth_weight.double()).sum().exp())

    @property
    def is_uniform(self) -> bool:
        """Whether no depth is preferred to another."""
        return bool((self.depth_weight.max() - self.depth_weight.min()).abs() < 1e-6)


@dataclass(frozen=True)
class Inspection:
    """Texts as one MAW layer sees them.

    `head` is None for the mean over heads; `alike` (D, D) is how alike the slices of two depths are: the cosine of
    their scores, rows centred because the softmax does not see a row's mean, averaged over heads and texts.
    """

    layer: int
    layers: tuple[int, ...]
    head: int | None
    heads: int
    depth: int
    texts: tuple[Text, ...]
    alike: Float[Tensor, "D D"]

    def neighbours(self, depth: int, count: int = 5) -> list[tuple[int, float]]:
        """The depths whose slices are most like this one's, with their likeness, most alike first."""
        others = ((other, value) for other, value in enumerate(self.alike[depth].tolist()) if other != depth)
        return sorted(others, key=lambda one: -one[1])[:count]

    def choosers(self, depth: int, count: int = 3) -> list[tuple[int, float]]:
        """The texts that weigh this depth most: their places in `texts` and the weights, heaviest first."""
        weights = [(place, float(text.depth_weight[depth])) for place, text in enumerate(self.texts)]
        return sorted(weights, key=lambda one: -one[1])[:count]

    def shown_depths(self) -> list[int]:
        """Every depth that is among the strongest of a text, in order."""
        return sorted({piece.depth for text in self.texts for piece in text.slices})

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "layer": self.layer,
            "head": "mean" if self.head is None else self.head,
            "heads": self.heads,
            "depth": self.depth,
            "texts": [
                {
                    "text": text.text,
                    "tokens": list(text.tokens),
                    "tokens_uncut": text.whole,
                    "depth_weight": text.depth_weight.tolist(),
                    "entropy": text.entropy.tolist(),
                    "effective_depths": text.effective_depths,
                    "slices": [{**vars(piece), "attention": piece.attention.tolist()} for piece in text.slices],
                    "mixed": text.mixed.tolist(),
                    "host": text.host.tolist(),
                    "difference_from_computed": text.difference,
                }
                for text in self.texts
            ],
            "depths": [
                {
                    "depth": depth,
                    "neighbours": [{"depth": one, "alike": value} for one, value in self.neighbours(depth)],
                    "texts": [{"text": place, "weight": weight} for place, weight in self.choosers(depth)],
                }
                for depth in self.shown_depths()
            ],
        }


def inspect(
    model: SentenceTransformer,
    texts: Sequence[str],
    *,
    layer: int | None = None,
    head: int | None = None,
    depths: int = 4,
) -> Inspection:
    """What the depths of one MAW layer attend to in these texts.

    Args:
        model: an encoder with MAW; it is left as it was.
        texts: the texts, each encoded alone, without padding, and cut to the model's own limit or `LONGEST` tokens.
        layer: index of the layer, negative from the end; None is the last one with MAW.
        head: index of a head; None is the mean over heads.
        depths: how many of the strongest depths of each text are shown: those of the largest weight, and of equal
            weights those that make more of the mixed logits.

    Raises:
        MAWError: the model or the layer has no MAW, there is no such layer, head or number of depths, or a text is
            empty.

    Source: method.md (1) to (6) and section 1, readings.
    """
    if not maw_layers(model):
        found = next((f"the control {layer.config.mechanism!r}" for layer in carried(model)), "no MAW layer")
        raise MAWError(
            f"this model has {found}, so it has no depths to look at: train one with MAW (maw train --variant "
            "maw-lora --output FOLDER), or call maw.attach(model) first"
        )
    _check_texts(texts)
    host = carrying_host(model, "inspect")
    index, layers, module = _choose_layer(host, layer)
    heads, depth, _ = module.query_views.shape
    if head is not None and not 0 <= head < heads:
        raise MAWError(f"head must be 0 to {heads - 1}, or mean, got {head}: layer {index} has {heads} heads")
    if not 1 <= depths <= depth:
        raise MAWError(f"depths must be 1 to {depth}, got {depths}: layer {index} has {depth} depths")
    found, alike = [], []
    with torch.no_grad(), plain_attention(model, host, LONGEST):
        for number, text in enumerate(texts, start=1):
            seen = capture(model, host, module, text)
            if not set(seen.ids) - set(model.tokenizer.all_special_ids):
                raise MAWError(f"text {number} has no token but the model's own: give a text with words in it")
            tokens = readable_tokens(model.tokenizer, seen.ids)
            one, likeness = _look(module, seen, head, depths, text, tokens)
            found.append(one)
            alike.append(likeness)
    return Inspection(index, layers, head, heads, depth, tuple(found), torch.stack(alike).mean(dim=0))


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str) or not texts:
        raise MAWError(f"wanted a list of texts, got {texts!r}: give at least one")
    if empty := [number for number, text in enumerate(texts, start=1) if not text.strip()]:
        raise MAWError(f"text {empty[0]} is empty: leave it out, or give a text with words in it")


def _choose_layer(host: PreTrainedModel, wanted: int | None) -> tuple[int, tuple[int, ...], DepthAttention]:
    blocks: Any = host.get_submodule(family_of(host).layers)
    carrying = {place: found[0] for place, block in enumerate(blocks) if (found := maw_layers(block))}
    if wanted is None:
        index = max(carrying)
    elif -len(blocks) <= wanted < len(blocks):
        index = wanted % len(blocks)
    else:
        raise MAWError(f"layer must be {-len(blocks)} to {len(blocks) - 1}, got {wanted}: there are {len(blocks)}")
    if index not in carrying:
        named = ", ".join(str(place) for place in carrying)
        raise MAWError(f"layer {wanted} has no MAW: of layers 0 to {len(blocks) - 1} these have it: {named}")
    return index, tuple(carrying), carrying[index]


# What the reference makes of it


def _look(
    module: DepthAttention, seen: Captured, head: int | None, depths: int, text: str, tokens: tuple[str, ...]
) -> tuple[Text, Tensor]:
    chosen = slice(None) if head is None else slice(head, head + 1)
    wide = torch.promote_types(seen.query.dtype, torch.float32)
    query = seen.query[:, chosen].to(wide)
    key, value = (repeat_heads(one, len(module.query_views))[:, chosen].to(wide) for one in (seen.key, seen.value))
    views = module.query_views[chosen], module.key_views[chosen]
    mask = torch.ones_like(key[:, 0, :, 0], dtype=torch.bool) if seen.mask is None else seen.mask
    real = mask[0]
    weight = _depth_weight(module, seen.query, seen.mask)
    u, t = expand_query(query, views[0])[0, ..., 0], expand_key(key, views[1])[0, :, :, 0]  # (H,D,Q), (H,D,K)
    every = torch.arange(module.config.depth, device=u.device)[None]
    entropy = -entropy_reward(query, key, *views, every, scale=module.scale, mask=mask)[0]
    u, t = u[..., real], t[..., real] - t[..., real].mean(dim=-1, keepdim=True)
    alike = (F.normalize(u, dim=-1) @ F.normalize(u, dim=-1).mT) * (F.normalize(t, dim=-1) @ F.normalize(t, dim=-1).mT)
    size = weight[0] * (u.norm(dim=-1) * t.norm(dim=-1)).mean(dim=0)
    share = size / size.sum().clamp(min=torch.finfo(size.dtype).tiny)
    order = sorted(range(len(share)), key=lambda d: (-round(float(weight[0, d]), 6), -float(share[d]), d))[:depths]

    mixed, slices = [], []
    together = max(1, LARGEST // (len(share) * query.shape[2] * key.shape[2]))  # heads at a time
    for begin in range(0, query.shape[1], together):
        part = slice(begin, begin + together)
        steps = seven_steps(
            *(one[:, part] for one in (query, key, value)),
            *(one[part] for one in views),
            weight,
            constant=None if module.constant is None else module.constant[chosen][part],
            mask=mask,
            scale=module.scale,
        )
        own_term = seen.without_query[chosen][part].to(wide).log()
        mixed.append(attention_probabilities(steps.logit + own_term, mask)[0])
        logit = module.scale * steps.score[..., order].movedim(-1, 0)[:, 0]  # the depths in the place of texts
        slices.append(attention_probabilities(logit, mask.expand(depths, -1)))

    def of_real(attention: Tensor) -> Tensor:
        return attention[..., real, :][..., real]

    attention = of_real(torch.cat(slices, dim=1).mean(dim=1)).cpu()
    lowest, highest = of_real(seen.without_query[chosen]).aminmax(dim=-1)
    found = Text(
        text=text,
        tokens=tokens,
        whole=seen.whole,
        depth_weight=weight[0].cpu(),
        entropy=entropy.cpu(),
        slices=tuple(
            Slice(d, float(weight[0, d]), float(entropy[d]), float(share[d]), attention[place])
            for place, d in enumerate(order)
        ),
        mixed=of_real(torch.cat(mixed).mean(dim=0)).cpu(),
        host=of_real(seen.host[chosen].to(wide).mean(dim=0)).cpu(),
        difference=float(of_real(torch.cat(mixed) - seen.computed[chosen]).abs().max()),
        has_own_term=bool((highest - lowest).max() > 1e-6),
    )
    return found, alike.mean(dim=0).cpu()


def _depth_weight(module: DepthAttention, query: Tensor, mask: Tensor | None) -> Tensor:
    """What the layer computes from the text's state in evaluation mode."""
    if module.config.selection == "uniform":
        return module.query_views.new_full((1, module.config.depth), 1.0 / module.config.depth)
    return module.weights(token_mean(query, mask).to(module.query_views.dtype))
