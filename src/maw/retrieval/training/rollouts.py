"""The retrieval reward: what the ranking loses or gains when a text is encoded with one depth alone.

    r[b, g] = log softmax_n( s * cos(e(text_b; d_g), partner_n) )[n = b]

e(text_b; d_g) is the vector of text b when every MAW layer has all its weight on the g-th depth it chose for b. The
partners are the other column of the batch, as the training loss saw them: documents for a query, queries for a
document. s is the loss's factor on cosines. Hard negatives have no partner; nothing is learned from their choices.

The layers below the first one with MAW run once: their output is kept from the training forward, and in a rollout they
hand it on. All G rollouts of a column are one forward without gradient, in evaluation mode.

Source: method.md section 4.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maw.errors import MAWError
from maw.hf.attach import carrying_host, maw_layers
from maw.hf.hosts import family_of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from maw.choice import Choice
    from maw.module import DepthAttention

__all__ = ["Rollouts", "retrieval_reward", "wants_rollouts"]

Column = dict[str, Any]


def wants_rollouts(layers: Sequence[DepthAttention]) -> bool:
    """Whether a layer's reward is known only after the whole model's forward."""
    return any(layer.config.reward != "entropy" and layer.config.selection != "uniform" for layer in layers)


def retrieval_reward(
    rolled_out: Float[Tensor, "B G M"], partner: Float[Tensor, "B M"], *, scale: float
) -> Float[Tensor, "B G"]:
    """The log-likelihood of each text's partner among all partners, for G vectors of each text.

    Args:
        rolled_out: G vectors a text.
        partner: the vectors of the other column; that of text b is in row b.
        scale: s.

    >>> retrieval_reward(torch.eye(2)[:, None], torch.eye(2), scale=100.0).round().abs().tolist()
    [[0.0], [0.0]]
    """
    score = scale * F.normalize(rolled_out.float(), dim=-1) @ F.normalize(partner.float(), dim=-1).T
    own = torch.arange(len(partner), device=partner.device)
    return score.log_softmax(dim=-1)[own, :, own]


class Rollouts:
    """Watches one training loss, and then rolls its depth choices out.

    Args:
        model: the encoder that the loss calls once a column.
        layers: its MAW layers.
        scale: the loss's factor on cosines.

    Raises:
        MAWError: an adapter or a wrapper hides the host's layers.
    """

    def __init__(self, model: SentenceTransformer, layers: Sequence[DepthAttention], *, scale: float) -> None:
        self.model, self.layers, self.scale = model, layers, scale
        host = carrying_host(model, "roll out")
        blocks = list(host.get_submodule(family_of(host).layers))  # ty: ignore[invalid-argument-type]
        first = next(place for place, block in enumerate(blocks) if maw_layers(block))
        self.below = blocks[:first]
        self.columns: list[tuple[Column, Tensor]] = []
        self.kept: list[Any] = []

    @contextmanager
    def watching(self) -> Generator[None]:
        """While the loss runs: note every column, its vectors, and what the layers below MAW made of it."""
        for layer in self.layers:
            layer.pending.clear()
        handles = [self.model.register_forward_hook(self._note_column, with_kwargs=True)]
        if self.below:
            handles.append(self.below[-1].register_forward_hook(self._note_below))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def losses(self) -> list[tuple[DepthAttention, Tensor]]:
        """Each layer's auxiliary loss, the mean over the texts of the first two columns.

        Raises:
            MAWError: the loss called the model in another way than once a column, as cached losses do.
        """
        chosen = [layer.pending for layer in self.layers]
        if len(self.columns) < 2 or any(len(choices) != len(self.columns) for choices in chosen):
            raise MAWError(
                "the retrieval reward needs a loss that encodes each column of the batch once, without mini-batches: "
                "leave mini_batch_size out, or take reward='entropy'"
            )
        losses: list[list[Tensor]] = [[] for _ in self.layers]
        for place, partner in ((0, 1), (1, 0)):
            choices = [pending[place] for pending in chosen]
            found = self._roll_out(place, [choice for choice, _ in choices])
            reward = retrieval_reward(found, self.columns[partner][1], scale=self.scale)
            for own, layer, (choice, entropy) in zip(losses, self.layers, choices, strict=True):
                whole = reward if entropy is None else entropy + layer.config.retrieval_weight * reward
                own.append(layer.settle(choice, whole))
        for layer in self.layers:
            layer.pending.clear()
        return [(layer, torch.cat(own).mean()) for layer, own in zip(self.layers, losses, strict=True)]

    def _note_column(self, _: nn.Module, arguments: tuple[Any, ...], options: Column, output: Column) -> None:
        features = {**(arguments[0] if arguments else options["input"])}
        texts = {name: value for name, value in features.items() if name in ("input_ids", "attention_mask")}
        texts |= {name: features[name] for name in ("token_type_ids", "position_ids") if name in features}
        self.columns.append((texts, output["sentence_embedding"].detach()))

    def _note_below(self, _: nn.Module, __: Any, output: Any) -> None:
        self.kept.append(output.detach() if isinstance(output, Tensor) else tuple(output))

    @torch.no_grad()
    def _roll_out(self, place: int, choices: Sequence[Choice]) -> Float[Tensor, "B G M"]:
        """The vectors of a column's texts, each with its g-th depth alone."""
        features, _ = self.columns[place]
        batch, group = choices[0].depth_index.shape
        repeated = {name: _repeat(value, group) for name, value in features.items()}
        with ExitStack() as stack:
            stack.enter_context(_evaluating(self.model))
            for layer, choice in zip(self.layers, choices, strict=True):
                index = choice.depth_index.T.flatten()
                stack.enter_context(_forcing(layer, F.one_hot(index, layer.config.depth).to(layer.query_views.dtype)))
            if self.below:
                stack.enter_context(_handing_on(self.below, _repeat(self.kept[place], group)))
            vectors = self.model(repeated)["sentence_embedding"]
        return vectors.unflatten(0, (group, batch)).transpose(0, 1)


def _repeat(value: Any, group: int) -> Any:
    """G copies of a batch, one after the other."""
    if isinstance(value, tuple):
        return tuple(_repeat(part, group) for part in value)
    return value.detach().repeat(group, *(1,) * (value.ndim - 1)) if isinstance(value, Tensor) else value


@contextmanager
def _evaluating(model: nn.Module) -> Generator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _forcing(layer: DepthAttention, weight: Tensor) -> Generator[None]:
    layer.forced = weight
    try:
        yield
    finally:
        layer.forced = None


@contextmanager
def _handing_on(blocks: Sequence[nn.Module], output: Any) -> Generator[None]:
    """These blocks return `output` instead of computing anything."""
    own = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        vars(block)["forward"] = lambda *_, **__: output
    try:
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            if forward is None:
                del vars(block)["forward"]
            else:
                vars(block)["forward"] = forward
