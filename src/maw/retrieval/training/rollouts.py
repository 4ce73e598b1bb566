"""The retrieval reward: what the ranking loses or gains when a text is encoded with one depth alone.

    r[b,m] = similarity_scale s(rolled_out[b,m], partner[b])
             - log sum_candidates exp(similarity_scale s(rolled_out[b,m], candidate))                         (9)

rolled_out[b,m] is the vector of text b when every MAW layer has all its weight on the m-th depth it chose for b, and s
the similarity of the training loss: cosine, or the dot product for a model that ranks by it. The candidates are the
other side of the batch, as the training loss saw them: for a query all documents, hard negatives too; for a relevant
document the queries. That of row b is the text's partner. What the loss leaves out because it is relevant is no
candidate here either: a document relevant to the query, a query to which the document is relevant. Hard negatives have
no partner; nothing is learned from their choices.

The layers below the first one with MAW, if there are any, run once: their output is kept from the training forward and
handed on. All texts of a column are rolled out in one forward without gradient, in evaluation mode.

Source: method.md section 4, (9).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from sentence_transformers.util import cos_sim
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
Similarity = Callable[[Tensor, Tensor], Tensor]


def wants_rollouts(layers: Sequence[DepthAttention]) -> bool:
    """Whether a layer's reward is known only after the whole model's forward."""
    return any(layer.config.reward != "entropy" and layer.config.selection != "uniform" for layer in layers)


def retrieval_reward(
    rolled_out: Float[Tensor, "B G M"],
    candidates: Float[Tensor, "candidates M"],
    *,
    scale: float,
    similarity: Similarity = cos_sim,
    left_out: Bool[Tensor, "B candidates"] | None = None,
) -> Float[Tensor, "B G"]:
    """The log-likelihood of each text's partner among all candidates, for G vectors of each text.

    Args:
        rolled_out: G vectors a text, (B, G, M).
        candidates: the vectors of the other side, at least B; the partner of text b is in row b.
        scale: the training loss's factor on similarities.
        similarity: of every row of one matrix and every row of another.
        left_out: which candidates are none of which text, (B, candidates), never its partner; None leaves nothing out.

    Returns:
        (B, G), in float32.

    >>> retrieval_reward(torch.eye(2)[:, None], torch.eye(2), scale=100.0).round().abs().tolist()
    [[0.0], [0.0]]
    """
    with torch.autocast(rolled_out.device.type, enabled=False):
        score = similarity(rolled_out.float().flatten(0, 1), candidates.float()).unflatten(0, rolled_out.shape[:2])
        own = torch.arange(len(rolled_out), device=score.device)
        if left_out is not None:
            score = score.masked_fill(left_out[:, None], -torch.inf)
        return (scale * score).log_softmax(dim=-1)[own, :, own]


class Rollouts:
    """Watches one training loss, and then rolls its depth choices out.

    Args:
        model: the encoder; the loss calls it for a column of queries, and then for their relevant documents, alone or
            followed by hard negatives.
        layers: its MAW layers.
        scale: the loss's factor on similarities.
        similarity: the loss's.

    Raises:
        MAWError: a wrapper hides the encoder (several processes, compilation), it is compiled, or its layers run twice
            (gradient checkpointing).
    """

    def __init__(
        self,
        model: SentenceTransformer,
        layers: Sequence[DepthAttention],
        *,
        scale: float,
        similarity: Similarity = cos_sim,
    ) -> None:
        _refuse_what_cannot_roll_out(model)
        self.model, self.layers, self.scale, self.similarity = model, layers, scale, similarity
        host = carrying_host(model, "roll out")
        blocks = list(host.get_submodule(family_of(host).layers))  # ty: ignore[invalid-argument-type]
        first = next(place for place, block in enumerate(blocks) if maw_layers(block))
        self.below = blocks[:first]
        self.features: list[Column] = []
        """What the model was given, forward by forward; beside it its vectors, what the layers below made, choices."""
        self.vectors: list[Tensor] = []
        self.kept: list[Any] = []
        self.chosen: list[list[tuple[Choice, Tensor | None]]] = []

    @contextmanager
    def watching(self) -> Generator[None]:
        """While the loss runs: note every column, its vectors, and what the layers below MAW made of it.

        Raises:
            MAWError: the loss encodes without gradient first, as losses with a gradient cache do.
        """
        handles = [
            self.model.register_forward_pre_hook(self._note_features, with_kwargs=True),
            self.model.register_forward_hook(self._note_vectors),
        ]
        if self.below:
            handles.append(self.below[-1].register_forward_hook(self._note_below))
        self.chosen = [[] for _ in self.layers]
        for layer, choices in zip(self.layers, self.chosen, strict=True):
            layer.pending = choices
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for layer in self.layers:
                layer.pending = None

    def losses(self, left_out: Bool[Tensor, "B documents"] | None = None) -> list[tuple[DepthAttention, Tensor]]:
        """Each layer's auxiliary loss, the mean over queries and their relevant documents.

        Args:
            left_out: which documents the training loss left out for which query; None where it left out nothing.

        Raises:
            MAWError: the loss called the model in another way than for queries and for documents as a whole.
        """
        forwards, rows = len(self.vectors), [len(vectors) for vectors in self.vectors]
        if forwards < 2 or any(found < rows[0] for found in rows) or any(len(own) != forwards for own in self.chosen):
            raise MAWError(
                "the retrieval reward needs a loss that encodes all queries of a batch at once, then all their "
                f"documents, got forwards of {rows} texts: take a loss without mini-batches, or reward='entropy'"
            )
        losses: list[list[Tensor]] = [[] for _ in self.layers]
        queries, documents = self.vectors[0], torch.cat(self.vectors[1:])
        of_documents = None if left_out is None else left_out[:, : rows[0]].T
        for place, (others, masked) in enumerate([(documents, left_out), (queries, of_documents)]):
            choices = [_first_rows(*own[place], rows[0]) for own in self.chosen]
            found = self._roll_out(place, [choice for choice, _ in choices])
            reward = retrieval_reward(found, others, scale=self.scale, similarity=self.similarity, left_out=masked)
            for own, layer, (choice, entropy) in zip(losses, self.layers, choices, strict=True):
                whole = reward if entropy is None else entropy + layer.config.retrieval_weight * reward
                own.append(layer.settle(choice, whole))
        return [(layer, torch.cat(own).mean()) for layer, own in zip(self.layers, losses, strict=True)]

    def _note_features(self, _: nn.Module, arguments: tuple[Any, ...], options: Column) -> None:
        if not torch.is_grad_enabled():
            raise MAWError(
                "the retrieval reward needs a loss that encodes each text once, got one that encodes without gradient "
                "first, as losses with a gradient cache do: leave mini_batch_size out, or take reward='entropy'"
            )
        self.features.append({**(arguments[0] if arguments else options["input"])})  # the modules add to it in place

    def _note_vectors(self, _: nn.Module, __: Any, output: Column) -> None:
        self.vectors.append(output["sentence_embedding"].detach())

    def _note_below(self, _: nn.Module, __: Any, output: Any) -> None:
        self.kept.append(output.detach() if isinstance(output, Tensor) else tuple(output))

    @torch.no_grad()
    def _roll_out(self, place: int, choices: Sequence[Choice]) -> Float[Tensor, "B G M"]:
        """The vectors of a forward's first B texts, each with its m-th depth alone."""
        batch, group = choices[0].depth_index.shape
        repeated = {name: _repeat(value, batch, group) for name, value in self.features[place].items()}
        with ExitStack() as stack:
            stack.enter_context(_evaluating(self.model))
            for layer, choice in zip(self.layers, choices, strict=True):
                index = choice.depth_index.T.flatten()
                stack.enter_context(_forcing(layer, F.one_hot(index, layer.config.depth).to(layer.query_views.dtype)))
            if self.below:
                stack.enter_context(_handing_on(self.below, _repeat(self.kept[place], batch, group)))
            vectors = self.model(repeated)["sentence_embedding"]
        return vectors.unflatten(0, (group, batch)).transpose(0, 1)


def _refuse_what_cannot_roll_out(model: nn.Module) -> None:
    from sentence_transformers import SentenceTransformer

    instead = ", or take reward='entropy'"
    if not isinstance(model, SentenceTransformer):
        raise MAWError(
            f"the retrieval reward needs a plain SentenceTransformer, got a {type(model).__name__}, as several "
            f"processes or a compiler put around it: train in one process, uncompiled{instead}"
        )
    for name, module in model.named_modules():
        if getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod"):
            raise MAWError(f"the retrieval reward cannot watch a compiled model, got {name}: do not compile{instead}")
        if getattr(module, "gradient_checkpointing", False):
            raise MAWError(
                f"the retrieval reward needs every layer to run once, got gradient checkpointing in {name}, which runs "
                f"it again in backward: switch it off{instead}"
            )


def _first_rows(choice: Choice, entropy: Tensor | None, count: int) -> tuple[Choice, Tensor | None]:
    """The choice for the first texts of a forward: relevant documents come before hard negatives."""
    return type(choice)(*(part[:count] for part in choice)), None if entropy is None else entropy[:count]


def _repeat(value: Any, batch: int, group: int) -> Any:
    """G copies of the first B rows, one after the other; what is no tensor with so many rows stays."""
    if isinstance(value, tuple):
        return tuple(_repeat(part, batch, group) for part in value)
    if not isinstance(value, Tensor) or not value.ndim or len(value) < batch:
        return value
    return value.detach()[:batch].repeat(group, *(1,) * (value.ndim - 1))


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
