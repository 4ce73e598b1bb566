"""What each row of the benchmark is. A MAW variant differs from its dense twin in MAW alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from maw.config import MAWConfig
from maw.errors import MAWError

__all__ = ["DEFAULT", "VARIANTS", "Variant", "choose_variants"]


@dataclass(frozen=True)
class Variant:
    """One row: how it ranks, how it is tuned, and what MAW is in it.

    Attributes:
        name: the row's name.
        kind: `bm25`, `untuned`, or `tuned`.
        tuning: `full` or `lora`, for tuned variants.
        twin: the dense variant it is compared with; only variants with MAW have one.
        recipe: the MAW recipe it starts from; None is a variant without MAW.
        changes: settings that make the variant what it is; they win over the user's.
        text: one line for people.
    """

    name: str
    kind: Literal["bm25", "untuned", "tuned"]
    text: str
    tuning: Literal["full", "lora"] | None = None
    twin: str | None = None
    recipe: str | None = None
    changes: dict[str, Any] = field(default_factory=dict)

    def maw_config(self, settings: dict[str, Any]) -> MAWConfig | None:
        """The MAW settings of this variant, given the user's; None without MAW.

        What makes a variant stands before what is given; a share of logit dropout that is given stands before its own.
        """
        if self.recipe is None:
            return None
        if self.recipe == "default":
            share = {name: settings[name] for name in ("logit_dropout",) if name in settings}
            return MAWConfig(**{**settings, **self.changes, **share})
        # another recipe keeps only where MAW sits and how large it is
        kept = {name: settings[name] for name in ("layers", "depth", "num_heads", "seed") if name in settings}
        return MAWConfig.recipe(self.recipe, **{**kept, **self.changes})


LOGIT_DROPOUT = 0.00033
"""As much noise on the logits as the default's depth noise makes at the exact start. Over 24 passages of MS MARCO, in
MiniLM's first layer, its variance (less the mean over keys) is .00033 of the mean square logit, which is p / (1 - p);
in its last layer it is .00015 with the same noise, and with noise 1 .0129 at tau 5, the default when the study was
planned, and .0026 at tau 10."""


def _control(mechanism: str, text: str, **changes: Any) -> Variant:
    return Variant(mechanism, "tuned", text, "full", "dense-full", "default", {"mechanism": mechanism, **changes})


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("bm25", "bm25", "BM25 (Lucene's, k1 .9, b .4), no training"),
        Variant("untuned", "untuned", "the encoder as it comes"),
        Variant("dense-lora", "tuned", "the encoder fine-tuned with LoRA", tuning="lora"),
        Variant("dense-full", "tuned", "the encoder fine-tuned in full", tuning="full"),
        Variant("maw-lora", "tuned", "MAW, fine-tuned with LoRA", "lora", "dense-lora", "default"),
        Variant("maw-full", "tuned", "MAW, fine-tuned in full", "full", "dense-full", "default"),
        Variant(
            "literal", "tuned", "the specification's snippets to the letter, in full", "full", "dense-full", "literal"
        ),
        Variant(
            "static",
            "tuned",
            "control: learned views, uniform weights, in full",
            "full",
            "dense-full",
            "default",
            {"selection": "uniform"},
        ),
        Variant(
            "random", "tuned", "control: random views, in full", "full", "dense-full", "default", {"views": "random"}
        ),
        _control("ia3-key", "control: trained scaling of keys, in full"),
        _control("linear-gate", "control: a linear gate on the query with MAW's parameters, in full"),
        _control("logit-dropout", "control: dropout on attention logits, in full", logit_dropout=LOGIT_DROPOUT),
    )
}

DEFAULT: tuple[str, ...] = ("bm25", "untuned", "dense-lora", "dense-full", "maw-lora", "maw-full")


def choose_variants(names: Sequence[str]) -> list[Variant]:
    """Variants by name, in the table's order; the untuned row and each dense twin are always there.

    Raises:
        MAWError: an unknown name, or none.

    >>> [variant.name for variant in choose_variants(["maw-lora"])]
    ['untuned', 'dense-lora', 'maw-lora']
    """
    unknown = [name for name in names if name not in VARIANTS]
    if unknown or not names:
        raise MAWError(f"variants must be among {', '.join(VARIANTS)}, got {', '.join(unknown) or 'none'}")
    wanted = {"untuned", *names}
    wanted |= {twin for name in names if (twin := VARIANTS[name].twin) is not None}
    return [variant for name, variant in VARIANTS.items() if name in wanted]
