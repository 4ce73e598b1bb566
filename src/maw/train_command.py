"""What `maw train` does."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maw.errors import MAWError
from maw.output import Output, speaking
from maw.progress import duration

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from maw.benchmark.variants import Variant
    from maw.cli import TrainCommand
    from maw.retrieval.data.dataset import RetrievalDataset
    from maw.retrieval.ranking.truncation import Truncation
    from maw.retrieval.training.settings import TrainingSettings

__all__ = ["train"]


def train(command: TrainCommand, dataset_name: str) -> int:
    """Train one variant, or say what that would be; returns the exit status."""
    from maw.benchmark.plan import LORA_LEARNING_RATE
    from maw.benchmark.tuning import save_model, tune
    from maw.benchmark.variants import VARIANTS
    from maw.collapse import Finding
    from maw.io.locks import alone_in
    from maw.retrieval.data.loading import load_dataset
    from maw.retrieval.data.report import render_report
    from maw.retrieval.identity import set_prompts
    from maw.retrieval.models import choose_own_device, load_encoder
    from maw.retrieval.processes import first_process_first, leave, process_index
    from maw.retrieval.ranking.truncation import dataset_truncation
    from maw.retrieval.similarity import similarity_scale
    from maw.retrieval.training.settings import TrainingSettings

    first = process_index() == 0
    work = command.output.with_name(f"{command.output.name}.training")
    with ExitStack() as until_done, speaking(as_json=command.json, quiet=not first) as out:
        device = choose_own_device(command.device)
        with first_process_first(device):  # what is wrong is said once, and what is prepared is prepared once
            if command.variant not in VARIANTS:
                raise MAWError(f"variant must be among {', '.join(VARIANTS)}, got {command.variant!r}")
            _check_output(command.output)
            variant = VARIANTS[command.variant]
            given: dict[str, Any] = {**command.training.values(), "seed": command.seed}
            if variant.tuning == "lora":
                given["learning_rate"] = command.training.lora_learning_rate or LORA_LEARNING_RATE
            settings = TrainingSettings(**given)
            model = load_encoder(command.model, device=device, max_length=settings.max_length)
            set_prompts(model, settings.query_prompt, settings.document_prompt)
            similarity_scale(model, settings.similarity_scale)  # refuses what cannot be trained, before data are read
            dataset = load_dataset(dataset_name, drop_own=command.drop_own or None)
            out.say(render_report(dataset))
            cut = [] if not first else dataset_truncation(model, dataset.queries, dataset.documents)
            for count in cut:
                out.say(str(count))
            if first and not command.dry_run:
                until_done.enter_context(alone_in(work))
                _check_output(command.output)  # another command may have written it meanwhile
        if command.dry_run:
            _say_plan(out, model, variant, command, dataset, settings, work, cut)
            leave()
            return 0
        tuned = tune(model, variant, command.maw.values(), dataset, settings, work)
        if first:
            tuned.outcome["truncation"] = [count.to_dict() for count in cut]
            save_model(tuned, command.output, base=command.model, dataset=dataset, metrics={})
        for name, value in tuned.outcome.items():
            if name not in ("selector", "findings", "truncation"):
                out.say(f"{name}: {value}")
        for finding in tuned.outcome["findings"]:
            out.say(f"{finding['level']}: {Finding(**finding)}")
        out.say(f"model: {command.output}; checkpoints and logs: {work}")
        out.result({"model": command.output, "training": work, "data": dataset.report(), **tuned.outcome})
        leave()
    return 0


def _check_output(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise MAWError(f"{folder} exists already: give another --output, nothing is overwritten")


def _say_plan(
    out: Output,
    model: SentenceTransformer,
    variant: Variant,
    command: TrainCommand,
    dataset: RetrievalDataset,
    settings: TrainingSettings,
    work: Path,
    cut: Sequence[Truncation],
) -> None:
    """What would be trained, on what, for how long, and where it would go."""
    from maw.benchmark.plan import rollout_forwards, texts_per_second, training_seconds
    from maw.benchmark.tuning import prepare
    from maw.retrieval.processes import processes
    from maw.retrieval.similarity import similarity_of, similarity_scale
    from maw.retrieval.training.fine_tuning import count_parameters

    pairs, together = len(dataset.training_pairs(settings.positives_per_query, settings.seed)), processes()
    batch = settings.batch_size * together
    if pairs < batch:
        raise MAWError(
            f"{dataset.name} has {pairs} training pairs, fewer than one batch of {batch}: lower --batch-size"
        )
    more = rollout_forwards(variant.maw_config(command.maw.values()), model)
    seconds = training_seconds(dataset, settings, variant, texts_per_second(model, dataset), more) / together
    prepare(model, variant, command.maw.values(), settings)
    parameters = count_parameters(model)
    whole, trained = parameters["total_parameters"], parameters["trainable_parameters"]
    size = 4 * whole + 2 * (
        4 * whole + 8 * trained
    )  # the model; the best checkpoint and the latest, with their moments
    plan = {
        "variant": variant.name,
        "pairs": pairs,
        "steps": settings.epochs * -(-pairs // batch),
        "batch": batch,
        "processes": together,
        "device": str(model.device),
        "similarity": similarity_of(model),
        "similarity_scale": similarity_scale(model, settings.similarity_scale),
        **parameters,
        "seconds": round(seconds, 1),
        "bytes": size,
        "model": command.output,
        "training": work,
        "truncation": [count.to_dict() for count in cut],
    }
    out.say(f"would train {variant.name} ({variant.text}) on {model.device}, {together} process(es)")
    out.say(f"{pairs:,} pairs, batches of {batch}, {settings.epochs} epochs: {plan['steps']:,} steps")
    out.say(f"similarity: {plan['similarity']}, in the loss times {plan['similarity_scale']:g}")
    out.say(f"{trained:,} of {whole:,} parameters trained; about {duration(seconds)}, without hard negatives")
    out.say(f"writes {command.output} and {work}: at most {size / 2**20:,.0f} MiB. Nothing was trained")
    out.result({"plan": plan, "data": dataset.report()})
