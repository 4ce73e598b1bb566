"""One variant, one seed: from the encoder as it comes to a trained model in a folder of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maw.errors import MAWError
from maw.hf.attach import attach
from maw.hf.folders import seal_model_folder
from maw.hf.lora import lora_config, merge_lora
from maw.hf.weights import in_full, set_weights_type, weights_type
from maw.io.atomic import atomic_folder
from maw.io.failures import saying_what_cannot_be_written
from maw.retrieval.identity import set_prompts
from maw.retrieval.training.fine_tuning import count_parameters, train
from maw.retrieval.training.model_card import write_model_card
from maw.retrieval.training.rows import find_negatives
from maw.retrieval.training.settings import TrainingSettings

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from maw.benchmark.variants import Variant
    from maw.config import MAWConfig
    from maw.retrieval.data.dataset import RetrievalDataset

__all__ = ["Tuned", "prepare", "save_model", "tune"]


@dataclass(frozen=True)
class Tuned:
    """A trained model and what it took."""

    model: SentenceTransformer
    variant: Variant
    config: MAWConfig | None
    settings: TrainingSettings
    parameters: Mapping[str, int]
    outcome: dict[str, Any]


def tune(
    model: SentenceTransformer,
    variant: Variant,
    maw: dict[str, Any],
    dataset: RetrievalDataset,
    settings: TrainingSettings,
    work: Path,
    *,
    negatives: Path | None = None,
    log_file: Path | None = None,
    show_progress: bool = False,
) -> Tuned:
    """Make `model` the variant and train it, in place.

    Weights in half precision are trained in float32; afterwards they have the type that they are to be saved in.

    Args:
        model: the encoder as it comes.
        variant: a tuned variant.
        maw: the user's fields of `MAWConfig`.
        dataset: needs a train split.
        settings: how to train; its seed also draws the starts of LoRA and, unless `maw` names another, of MAW.
        work: checkpoints and logs; a training that was killed there is resumed.
        negatives: the folder in which hard negatives are kept, where the settings ask for some; None is in `work`.
            They are found with the encoder as it comes, so that a variant and its twin share them.
        log_file: one JSON object a log entry.
        show_progress: whether to draw a progress bar.

    Raises:
        MAWError: the variant is not trained, or anything `attach` and `train` refuse.
    """
    _check_trained(variant)
    loaded = in_full(model)
    set_prompts(model, settings.query_prompt, settings.document_prompt)
    types = {"loaded": loaded, "trained": weights_type(model), "saved": settings.dtype or loaded}
    hard = find_negatives(dataset, settings, model, work / "negatives" if negatives is None else negatives)
    config = prepare(model, variant, maw, settings)
    parameters = count_parameters(model)
    outcome = train(model, dataset, work, settings, negatives=hard, log_file=log_file, show_progress=show_progress)
    seeds = {"lora": settings.seed} if variant.tuning == "lora" else {}
    seeds |= {} if config is None else {"maw": config.seed}
    outcome["seeds"] |= seeds
    if variant.tuning == "lora" and config is None:
        merge_lora(model)  # a plain host again; beside MAW the adapter stays, in the same folder
    if types["saved"] != types["trained"]:  # what is measured from here on is what is saved
        set_weights_type(model, types["saved"])
    outcome["dtype"] = types
    return Tuned(model, variant, config, settings, parameters, outcome)


def prepare(
    model: SentenceTransformer, variant: Variant, maw: dict[str, Any], settings: TrainingSettings
) -> MAWConfig | None:
    """Give `model` what is trained in the variant, in place: MAW, an adapter; returns MAW's settings, None without it.

    Args:
        model, variant, maw, settings: as in `tune`.
    """
    from transformers import set_seed

    _check_trained(variant)
    config = variant.maw_config({"seed": settings.seed, **maw})
    set_seed(settings.seed)
    if config is not None:
        attach(model, config)
    if variant.tuning == "lora":
        model.add_adapter(lora_config(model))
    return config


def _check_trained(variant: Variant) -> None:
    if variant.tuning is None:
        raise MAWError(f"{variant.name} is not trained: choose a variant such as maw-lora or dense-full")


def save_model(
    tuned: Tuned, folder: Path, *, base: str, dataset: RetrievalDataset, metrics: Mapping[str, Mapping[str, float]]
) -> None:
    """Save a trained model with its card, whole or not at all.

    Args:
        tuned: what `tune` returned.
        folder: where to; replaced if it exists.
        base: the name of the encoder it was tuned from.
        dataset: what it was tuned on.
        metrics: split to metric to mean, for the card.

    Raises:
        MAWError: the disk is full; nothing is left behind.
    """
    settings = asdict(tuned.settings) | {name: tuned.outcome[name] for name in tuned.outcome if name != "selector"}
    with saying_what_cannot_be_written(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with saying_what_cannot_be_written(folder), atomic_folder(folder) as aside:
        tuned.model.save_pretrained(str(aside), create_model_card=False)
        write_model_card(
            aside,
            base=base,
            dataset=dataset.report(),
            variant=f"{tuned.variant.name}: {tuned.variant.text}",
            maw=None if tuned.config is None else tuned.config.to_dict(),
            settings=settings,
            metrics=metrics,
        )
        seal_model_folder(aside)
