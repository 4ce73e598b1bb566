"""The training loss: in-batch contrastive, and around it what MAW layers need of any loss.

`contrastive_loss` is Sentence Transformers' multiple negatives ranking loss without false negatives that are known
(`contrastive`), cached where mini-batches are asked for.
`AuxiliaryLoss` sees to the weight of the layers' GRPO loss (`maw.auxiliary`) and, with `updates` > 1, to the samples
that serve several optimiser steps: those of one step are kept while its losses run and replayed by every loss of the
next step, however many losses a step accumulates.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from sentence_transformers.util import cos_sim, dot_score
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from maw.auxiliary import add_loss_beside, scale_gradient
from maw.errors import MAWError
from maw.hf.in_place import LayersInPlace
from maw.hf.training_state import check_maw_is_trained
from maw.hf.weights import say_lost_steps
from maw.records import Rollout
from maw.retrieval.similarity import SCALE_OF_UNIT_VECTORS, similarity_of, similarity_scale
from maw.retrieval.training.contrastive import CachedContrastiveLoss, ContrastiveLoss, Masked
from maw.retrieval.training.rollouts import Rollouts, wants_rollouts

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from maw.module import DepthAttention
    from maw.retrieval.training.relevance import Relevance

__all__ = ["AuxiliaryLoss", "contrastive_loss"]

LOSSES_WITHOUT_STEP = 1024
"""So many losses may accumulate in one optimiser step while samples are kept; more is taken for a mistake."""

Kept = tuple[int, int, Rollout]
"""The layer's place among the model's MAW layers, the updates left, and the samples of one forward."""


def contrastive_loss(
    model: SentenceTransformer,
    *,
    scale: float | None = None,
    mini_batch_size: int | None = None,
    gather: bool = False,
    relevance: Relevance | None = None,
) -> nn.Module:
    """In-batch contrastive loss on (query, relevant document, negatives...) columns, by the model's own similarity.

    Args:
        model: what it trains.
        scale: factor on the similarities; None is that of `maw.retrieval.similarity.similarity_scale`.
        mini_batch_size: so many texts a forward, the gradients of the whole batch (GradCache); None is one forward.
        gather: the candidates are the documents of all processes. Each process takes the mean over its own queries, so
            that the mean over processes has the gradient of one process with the whole batch.
        relevance: what is relevant to a query is no negative of it: its logit is left out. The numbers of the batch's
            texts (`Relevance.ids`) are given to the loss as labels. None leaves nothing out.

    Raises:
        MAWError: the model compares by neither cosine nor dot product.
    """
    options: dict[str, Any] = {
        "scale": similarity_scale(model, scale),
        "similarity_fct": cos_sim if similarity_of(model) == "cosine" else dot_score,
        "gather_across_devices": gather,
    }
    if mini_batch_size is None:
        return ContrastiveLoss(model, relevance, **options)
    return CachedContrastiveLoss(model, relevance, mini_batch_size=mini_batch_size, **options)


class AuxiliaryLoss(nn.Module):
    """A training loss whose backward also trains the selectors of the model's MAW layers.

    The wrapped loss is returned unchanged (plus, with `updates` > 1, the loss of earlier samples); the gradient that
    arrives at it scales the auxiliary gradients, so loss scaling, gradient accumulation and mini-batches of any
    size weigh both alike.

    Args:
        loss: a Sentence Transformers loss.
        model: the model it trains.
    """

    def __init__(self, loss: nn.Module, model: nn.Module) -> None:
        super().__init__()
        say_lost_steps(model)
        self.loss = loss
        self.model = model
        self._layers = LayersInPlace()
        self.scale: float = getattr(loss, "scale", SCALE_OF_UNIT_VECTORS)
        """The loss's factor on similarities."""
        self.due: list[Kept] = []
        """Samples of earlier optimiser steps, replayed by every loss of this one."""
        self.fresh: list[Kept] = []
        """Samples of this optimiser step's losses so far."""
        self.began = False
        self.steps: int | None = None
        self.losses = 0

    def layers(self) -> list[DepthAttention]:
        """The MAW layers of the model."""
        return self._layers(self.model)

    @property
    def masked(self) -> Masked | None:
        """What the wrapped loss leaves out, where it does."""
        return getattr(self.loss, "masked", None)

    @property
    def left_out(self) -> Tensor | None:
        """Which candidates the wrapped loss left out for which query in its latest batch; None where it does not."""
        return None if self.masked is None else self.masked.last

    def masked_candidates(self) -> Tensor | None:
        """The mean number of candidates that were left out for a query since the last call; None without any batch."""
        return None if self.masked is None else self.masked.collect()

    def forward(self, features: Any, labels: Tensor | None = None) -> Tensor:
        """The wrapped loss.

        Raises:
            MAWError: MAW is frozen, as by an adapter; samples are kept for later updates, and no optimiser
                step comes; the reward needs rollouts, and the model or the loss allows none
                (`maw.retrieval.training.rollouts`); or the temperature moves, and nobody says how far
                training is.
        """
        numbered = enumerate(self.layers())
        training = {place: layer for place, layer in numbered if layer.training and torch.is_grad_enabled()}
        layers = list(training.values())
        if layers and not self.began:
            check_maw_is_trained(self.model)
            self.began = True
        _check_progress(layers)
        for layer in layers:
            layer.gradient_scale.texts = 0
        again = {place: layer for place, layer in training.items() if _samples_serve_again(layer)}
        replayed = self._replay(again) if again else []
        rollouts = None
        if wants_rollouts(layers):
            similarity = getattr(self.loss, "similarity_fct", cos_sim)
            rollouts = Rollouts(
                cast("SentenceTransformer", self.model), layers, scale=self.scale, similarity=similarity
            )
        with _collecting(again, self.fresh), nullcontext() if rollouts is None else rollouts.watching():
            loss = self.loss(features, labels)
        if isinstance(loss, dict):
            loss = torch.stack(list(loss.values())).sum()
        if not layers:
            return loss
        loss = scale_gradient(loss, [layer.gradient_scale for layer in layers])
        for layer, beside in replayed:
            loss = add_loss_beside(loss, beside, layer.selector.parameters())
        for layer, beside in (
            [] if rollouts is None else rollouts.losses(self.left_out)
        ):  # the gradient alone, as a layer's own
            loss = add_loss_beside(loss, beside - beside.detach(), layer.selector.parameters())
        return loss

    def _replay(self, layers: Mapping[int, DepthAttention]) -> list[tuple[DepthAttention, Tensor]]:
        """The loss of each layer's samples that are due; first, a step since the last loss makes others due."""
        self.turn()
        self.losses += 1
        if self.losses > LOSSES_WITHOUT_STEP:
            raise MAWError(
                f"with updates > 1 samples are kept until the next optimiser step, and {LOSSES_WITHOUT_STEP} losses "
                "went by without one that reached the policy: step more often, or set updates to 1"
            )
        losses = []
        for place, layer in layers.items():
            layer.rollouts = [(left, rollout) for own, left, rollout in self.due if own == place]
            if (loss := layer.replay_loss()) is not None:
                losses.append((layer, loss))
        return losses

    def turn(self) -> None:
        """After an optimiser step on the policies: what was due has served once more, what was fresh becomes due."""
        steps = _steps_of(self.layers())
        if self.steps is not None and steps != self.steps:
            left = [(place, left - 1, rollout) for place, left, rollout in self.due if left > 1]
            self.due, self.fresh, self.losses = left + self.fresh, [], 0
        self.steps = steps

    def samples(self) -> dict[str, Tensor]:
        """What is kept, by names that `restore_samples` understands; empty where every sample serves once."""
        if self.due or self.fresh:
            self.turn()
        return {
            f"{kind}.{index}.{place}.{left}.{name}": tensor
            for kind in ("due", "fresh")
            for index, (place, left, rollout) in enumerate(getattr(self, kind))
            for name, tensor in rollout._asdict().items()
        }

    def restore_samples(self, samples: Mapping[str, Tensor]) -> None:
        """Take back what `samples` returned, on the model's device: the next losses replay it."""
        device = next(self.model.parameters()).device
        found: dict[tuple[str, int, int, int], dict[str, Tensor]] = {}
        for key, tensor in samples.items():
            kind, index, place, left, name = key.split(".")
            found.setdefault((kind, int(index), int(place), int(left)), {})[name] = tensor.to(device)
        self.due, self.fresh, self.steps, self.losses = [], [], None, 0
        for (kind, _, place, left), tensors in sorted(found.items()):
            getattr(self, kind).append((place, left, Rollout(**tensors)))


def _check_progress(layers: Sequence[DepthAttention]) -> None:
    if any(layer.config.tau_start is not None and layer.progress >= 1 for layer in layers):
        raise MAWError(
            "tau_start needs to know how far training is, and nobody says so: train with `maw train`; or before each "
            "step set `progress`, from 0 to below 1, of every layer in maw.hf.attach.maw_layers(model); or leave "
            "tau_start out"
        )


def _samples_serve_again(layer: DepthAttention) -> bool:
    if layer.config.updates == 1 or layer.config.selection == "uniform":
        return False
    return any(parameter.requires_grad for parameter in layer.selector.policy_network.parameters())


@contextmanager
def _collecting(layers: Mapping[int, DepthAttention], kept: list[Kept]) -> Generator[None]:
    """Add to `kept` what these layers sample meanwhile; they keep nothing before and after."""
    for layer in layers.values():
        layer.rollouts = []
    try:
        yield
        kept.extend((place, left, rollout) for place, layer in layers.items() for left, rollout in layer.rollouts or [])
    finally:
        for layer in layers.values():
            layer.rollouts = None


# How many optimiser steps have changed a policy: counted on a parameter of it, whoever steps. (A parameter's own
# version counter does not see what fused optimisers do.)

_COUNTER = "_maw_optimiser_steps"
_listening: list[Any] = []


def _steps_of(layers: Sequence[DepthAttention]) -> int:
    """The steps so far on these layers' policies, as a number that grows with every step."""
    if not _listening:
        _listening.append(register_optimizer_step_post_hook(_count))
    total = 0
    for layer in layers:
        if layer.config.selection == "uniform":
            continue
        for parameter in layer.selector.policy_network.parameters():
            if parameter.requires_grad:
                setattr(parameter, _COUNTER, getattr(parameter, _COUNTER, 0))
                total += getattr(parameter, _COUNTER)
    return total


def _count(optimiser: torch.optim.Optimizer, *_: Any) -> None:
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            if hasattr(parameter, _COUNTER):
                setattr(parameter, _COUNTER, getattr(parameter, _COUNTER) + 1)
