"""The README.md of a saved model: where it comes from, what it was trained on, and how it did."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maw.io.atomic import write_text
from maw.io.escaping import visible

__all__ = ["write_model_card"]

LOADING = (
    "This needs the package maw-attention (`pip install maw-attention`). `trust_remote_code=True` lets Transformers "
    "run `modeling_maw.py` in this folder, which imports it; after `import maw` the model loads without."
)


def write_model_card(
    folder: Path,
    *,
    base: str,
    dataset: Mapping[str, Any],
    variant: str,
    maw: Mapping[str, Any] | None,
    settings: Mapping[str, Any],
    metrics: Mapping[str, Mapping[str, float]],
) -> None:
    """Write `folder/README.md`.

    Args:
        folder: the saved model.
        base: the encoder it was tuned from.
        dataset: `RetrievalDataset.report()`.
        variant: what kind of tuning.
        maw: MAW's settings, None without MAW.
        settings: how it was trained.
        metrics: split to metric to mean.
    """
    licence = dataset.get("licence") or "not stated by its source"
    trusting = ", trust_remote_code=True" if maw is not None else ""
    lines = [
        "---",
        "library_name: sentence-transformers",
        "pipeline_tag: sentence-similarity",
        "tags: [sentence-transformers, dense-retrieval" + (", maw]" if maw is not None else "]"),
        "---",
        f"# {variant}",
        "",
        f"Fine-tuned from `{base}` on `{dataset['name']}` (licence of the data: {licence}). "
        "The licence of the base model applies to these weights too.",
        "",
        *_types(settings.get("dtype")),
        *_prompts(settings.get("prompts")),
        *_similarity(settings),
        "```python",
        "from sentence_transformers import SentenceTransformer\n",
        f'model = SentenceTransformer("this folder"{trusting})',
        "```",
        "",
        *([LOADING, ""] if maw is not None else []),
        "## Results",
        "",
    ]
    for split, means in metrics.items():
        lines.append(f"| {split} | " + " | ".join(means) + " |")
        lines.append("|---|" + "---|" * len(means))
        lines.append("| | " + " | ".join(f"{value:.4f}" for value in means.values()) + " |")
        lines.append("")
    # of files the card has their names, not where they were
    shown = json.dumps({"training": dict(settings), "maw": maw}, indent=1, default=lambda file: file.name)
    lines += ["## Settings", "", "```json", shown, "```", ""]
    write_text(folder / "README.md", visible("\n".join(lines)))


def _types(types: Mapping[str, str] | str | None) -> list[str]:
    """Which types the weights were loaded, trained and saved in, where that is known."""
    if not isinstance(types, Mapping):
        return []
    return [
        f"The weights were loaded in {types['loaded']}, trained in {types['trained']} and saved in {types['saved']}.",
        "",
    ]


def _prompts(prompts: Mapping[str, str] | None) -> list[str]:
    """Which prompts training used, where it used any."""
    said = [
        f"{json.dumps(prompt, ensure_ascii=False)} stood before every {kind}"
        for kind, prompt in (prompts or {}).items()
        if prompt
    ]
    if not said:
        return []
    return [
        f"In training {' and '.join(said)}; `encode_query` and `encode_document` of this folder put the same there.",
        "",
    ]


def _similarity(settings: Mapping[str, Any]) -> list[str]:
    """What was trained and is to be compared by, where that is known."""
    if "similarity" not in settings:
        return []
    name = {"cosine": "cosine", "dot": "dot product"}[settings["similarity"]]
    return [
        f"Trained to compare vectors by {name} (in the loss times {settings['similarity_scale']:g}): compare by it.",
        "",
    ]
