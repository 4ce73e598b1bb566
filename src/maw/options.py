"""Options that several commands share: those of MAW and those of training."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from maw.errors import MAWError

__all__ = ["JSON", "Device", "MAWOptions", "TrainingOptions"]

Layers = Annotated[str | None, tyro.conf.arg(name="maw-layer-indices", metavar="LIST")]
Device = Annotated[str, tyro.conf.arg(metavar="auto|cpu|cuda|mps")]
JSON = Annotated[bool, tyro.conf.arg(name="json")]


@dataclass(frozen=True)
class MAWOptions:
    """Settings of MAW."""

    maw_layers: Layers = None
    """Layers that get MAW: -1 (last), 0,5 or all (0)."""
    maw_depth_dim: int = 64
    """D, view vectors per head."""
    maw_num_heads: int | None = None
    """Checked against the encoder's heads; never sets them."""
    maw_settings: Annotated[str, tyro.conf.arg(metavar="JSON")] = "{}"
    """Other fields of MAWConfig, as '{"tau": 1}'."""

    def values(self) -> dict[str, Any]:
        """The fields of `MAWConfig` that were given."""
        import json

        from maw.config import MAWConfig

        try:
            other = json.loads(self.maw_settings)
        except json.JSONDecodeError as error:
            raise MAWError(f"--maw-settings must be a JSON object, got {self.maw_settings!r} ({error})") from None
        if not isinstance(other, dict):
            raise MAWError(f"--maw-settings must be a JSON object, got {self.maw_settings!r}")
        if own := {"layers", "depth", "num_heads"} & set(other):
            raise MAWError(f"--maw-settings must not repeat {', '.join(sorted(own))}: each has an option of its own")
        values = {"depth": self.maw_depth_dim, "num_heads": self.maw_num_heads, **other}
        if self.maw_layers is not None:  # else a recipe's own
            values["layers"] = _layers(self.maw_layers)
        MAWConfig.from_dict(values)
        return values


def _layers(text: str) -> list[int] | str:
    if text.strip() == "all":
        return "all"
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise MAWError(f"--maw-layer-indices must be integers with commas, or all, got {text!r}") from None


@dataclass(frozen=True)
class TrainingOptions:
    """Settings of training; what is not given comes from the preset."""

    epochs: int | None = None
    batch_size: int | None = None
    """Pairs a batch of one process."""
    mini_batch_size: int | None = None
    """Texts a forward: less memory, for one more forward."""
    max_length: int | None = None
    """Tokens a text is cut to."""
    learning_rate: float | None = None
    """Of full fine-tuning."""
    lora_learning_rate: float | None = None
    """Of LoRA."""
    positives_per_query: int | None = None
    hard_negatives: int | None = None
    """Hard negatives a pair; missing ones are drawn."""
    negatives: Annotated[Literal["bm25", "model", "given"] | None, tyro.conf.arg(metavar="FROM")] = None
    """bm25 (default), model, or given (files)."""
    negative_margin: float | None = None
    """They score this share below the relevant document."""
    negative_files: Annotated[tuple[Path, ...] | None, tyro.conf.arg(metavar="FILE...")] = None
    """Triples or rankings, of given; else the data's own."""
    similarity_scale: float | None = None
    gradient_checkpointing: bool = False
    query_prompt: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """Before every query; --document-prompt likewise."""
    document_prompt: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    dtype: Annotated[Literal["float32", "bfloat16", "float16"] | None, tyro.conf.arg(metavar="TYPE")] = None
    """Of saved weights: bfloat16, float16 or float32."""
    save_steps: Annotated[int | None, tyro.conf.arg(name="save-every", metavar="STEPS")] = None
    """Save after every so many steps too, not epochs alone."""

    def values(self) -> dict[str, Any]:
        """The fields of `TrainingSettings` that were given."""
        given = asdict(self) | {"gradient_checkpointing": self.gradient_checkpointing or None}
        del given["lora_learning_rate"]
        if self.negative_files == ():
            raise MAWError("--negative-files: wanted the names of files, got none: name them, with spaces between")
        for file in self.negative_files or ():
            if not file.is_file():
                raise MAWError(f"--negative-files: wanted the file {file}, but it is not there: check the path")
        return {name: value for name, value in given.items() if value is not None}
