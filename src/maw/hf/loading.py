"""Weights are loaded whole or not at all.

Where a folder lacks a tensor of the model that its config.json describes, Transformers fills it with random numbers; a
tensor that fits nowhere it leaves out, and whole numbers it casts. It says so in a table in the log and goes on. Here
each of these is an error that names the tensors. Harmless, because folders on the hub are often so: a pooler that is
missing or unused, a task head's tensors beside the encoder's, and buffers of indices such as `position_ids`.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from maw.errors import MAWError

__all__ = [
    "check_config",
    "check_finite_weights",
    "check_loaded",
    "check_types",
    "checked_loading",
    "in_words",
    "is_pooler",
    "read_tensors",
    "stored_file",
    "weight_files",
]

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""What Transformers looks for, in its order."""

WHERE = ("cache_dir", "local_files_only", "token", "revision", "subfolder")
"""The arguments of `from_pretrained` that say where a file is."""

SAME = ({"roberta", "xlm-roberta", "camembert"},)
"""Model types that are one computation under several names."""

SHOWN = 5

ONE = threading.RLock()
"""Held while Transformers' loading is replaced by the checked one, which two threads at once would not put back."""


@contextmanager
def checked_loading() -> Generator[list[tuple[PreTrainedModel, list[str]]]]:
    """Meanwhile, whatever Transformers loads in this thread is checked, by whichever library it is asked to.

    Other threads load as ever, and wait here for one another.

    Yields:
        what was loaded: each model, and the names of the poolers' tensors that its folder lacks.
    """
    own = threading.get_ident()
    loaded: list[tuple[PreTrainedModel, list[str]]] = []

    def from_pretrained(
        cls: type[PreTrainedModel], pretrained_model_name_or_path: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        name = pretrained_model_name_or_path  # callers may give it by its name
        if threading.get_ident() != own:
            return before.__func__(cls, name, *args, **kwargs)
        wants_info = kwargs.pop("output_loading_info", False)
        if kwargs.get("config") is not None:
            check_config(name, kwargs["config"])
        strict = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, info = before.__func__(cls, name, *args, **(kwargs | strict))
        if cls.config_class is not None and cls.config_class.model_type == "maw":
            loaded.append((model, _poolers(info["missing_keys"])))  # it checks itself
            return (model, info) if wants_info else model
        files = weight_files(name, kwargs)
        adapter = (kwargs.get("adapter_kwargs") or {}).get("_adapter_model_path")
        if adapter is not None:  # then `info` is about the adapter alone
            check_loaded(model, info, adapter, [])
            _check_adapter_types(Path(adapter))
            config = copy.deepcopy(model.config)
            base, info = before.__func__(cls, None, config=config, state_dict=dict(read_tensors(files)), **strict)
            check_loaded(base, info, name, files)
        else:
            check_loaded(model, info, name, files)
        loaded.append((model, _poolers(info["missing_keys"])))
        return (model, info) if wants_info else model

    with ONE:
        before = vars(PreTrainedModel)["from_pretrained"]
        PreTrainedModel.from_pretrained = classmethod(from_pretrained)  # ty: ignore[invalid-assignment]
        try:
            yield loaded
        finally:
            PreTrainedModel.from_pretrained = before


def check_config(name: object, config: PreTrainedConfig) -> None:
    """Raise where a config names one model type and a class of another, so that its weights mean something else.

    Raises:
        MAWError: names both.
    """
    for architecture in getattr(config, "architectures", None) or ():
        described: Any = getattr(getattr(transformers, str(architecture), None), "config_class", None)
        kinds = {config.model_type, getattr(described, "model_type", config.model_type)}
        if len(kinds) > 1 and not any(kinds <= same for same in SAME):
            raise MAWError(
                f"the config.json of {name} names the model_type {config.model_type!r}, but its weights are those of "
                f"{architecture}, which is of model_type {described.model_type!r}: correct config.json, or copy or "
                "save the model again"
            )


def check_loaded(model: PreTrainedModel, info: dict[str, Any], name: object, files: Iterable[Path]) -> None:
    """Raise unless every weight of a model came out of a folder, and every tensor of the encoder there has a place.

    Args:
        model: what was loaded.
        info: what Transformers says of it (`output_loading_info`).
        name: the folder, for the message.
        files: its files of weights.

    Raises:
        MAWError: names the tensors that are missing, unused, of another shape, whole numbers, NaN or infinite.
    """
    if missing := sorted(set(info["missing_keys"]) - set(_poolers(info["missing_keys"]))):
        raise MAWError(
            f"{name} lacks {_tensors(missing)} of the model that its config.json describes, which would be random "
            f"numbers: {_shown(missing)}. {REMEDY}"
        )
    if unused := sorted(key for key in info["unexpected_keys"] if _of_the_encoder(model, key)):
        raise MAWError(
            f"{_tensors(unused)} of {name} {'has' if len(unused) == 1 else 'have'} no place in the model that its "
            f"config.json describes: {_shown(unused)}. {REMEDY}"
        )
    if shapes := sorted(info["mismatched_keys"]):
        told = [f"{key} has shape {tuple(found)}, wanted {tuple(wanted)}" for key, found, wanted in shapes]
        raise MAWError(f"the tensors of {name} do not fit its config.json: {_shown(told)}. {REMEDY}")
    check_types(model, name, files)
    check_finite_weights(model, name)


REMEDY = "Copy or save the model again; if the weights are right, correct config.json"


def check_finite_weights(model: nn.Module, name: object) -> None:
    """Raise if a weight is NaN or infinite.

    Raises:
        MAWError: names it.
    """
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not (tensor.is_meta or bool(torch.isfinite(tensor).all())):
            raise MAWError(
                f"{key} of {name} holds NaN or infinity: the weights are damaged, or the training that made them "
                "diverged; use an earlier checkpoint"
            )


def weight_files(name: Any, where: dict[str, Any]) -> list[Path]:
    """The files that Transformers loads the weights of a folder or of a name on the hub from.

    Args:
        name: what was given to `from_pretrained`; None has no files.
        where: the other arguments it was given.
    """
    for usual in WEIGHTS:
        file = usual
        if where.get("variant") is not None:
            file = f"{Path(file).stem}.{where['variant']}{Path(file).suffix}"
        if where.get("use_safetensors") is False and "safetensors" in file:
            continue
        found = stored_file(name, file, where)
        if found is None:
            continue
        if not file.endswith(".json"):
            return [found]
        shards = sorted(set(json.loads(found.read_text(encoding="utf-8"))["weight_map"].values()))
        return [found.parent / shard for shard in shards]
    return []


def stored_file(name: Any, file: str, where: dict[str, Any]) -> Path | None:
    """One file of a folder, or of what was fetched from the hub before; None where there is none.

    Args:
        name: what was given to `from_pretrained`; None has no files.
        file: its name.
        where: the other arguments it was given.
    """
    if name is None:
        return None
    place = {key: where[key] for key in WHERE if where.get(key) is not None} | {"local_files_only": True}
    found = cached_file(
        name,
        file,
        **place,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return None if found is None else Path(found)


def read_tensors(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor as it is in the files, one at a time."""
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118 (it is no dictionary)
                    yield key, opened.get_tensor(key)
        else:
            yield from torch.load(file, map_location="cpu", weights_only=True).items()


def check_types(model: nn.Module, name: object, files: Iterable[Path]) -> None:
    """Raise where a weight is stored in whole numbers, which no training makes; quantised models are another matter.

    Args:
        model: what was loaded.
        name: the folder, for the message.
        files: its files of weights.

    Raises:
        MAWError: names the weight.
    """
    if getattr(getattr(model, "config", None), "quantization_config", None) is not None:
        return
    floating = {key for key, tensor in model.state_dict().items() if tensor.is_floating_point()}
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    for file in files:
        for key, kind in _types(file):
            if {key, key.removeprefix(prefix), prefix + key} & floating:
                _refuse_whole_numbers(key, kind, name)


def _check_adapter_types(folder: Path) -> None:
    for file in (folder / "adapter_model.safetensors", folder / "adapter_model.bin"):
        for key, kind in _types(file) if file.is_file() else ():
            _refuse_whole_numbers(key, kind, folder)


def _refuse_whole_numbers(key: str, kind: str, name: object) -> None:
    if not kind.startswith(("F", "BF")):
        raise MAWError(
            f"{key} of {name} is stored in whole numbers ({kind}), wanted floating-point numbers: the weights are "
            "damaged; copy or save the model again"
        )


def _types(file: Path) -> Iterator[tuple[str, str]]:
    """The tensors of a file and the type of number each is stored in, in safetensors' words."""
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118
                yield key, opened.get_slice(key).get_dtype()
    else:
        for key, tensor in torch.load(file, map_location="meta", weights_only=True).items():
            yield key, "F" if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")


def _of_the_encoder(model: PreTrainedModel, key: str) -> bool:
    """Whether a tensor belongs into the encoder, rather than to a task head beside it, to a pooler or to indices."""
    key = key.removeprefix(f"{model.base_model_prefix}.")
    if _poolers([key]) or key.rpartition(".")[2] in ("position_ids", "token_type_ids"):
        return False
    return model.config.model_type == "maw" or "lora_" in key or key.partition(".")[0] in dict(model.named_children())


def is_pooler(key: str) -> bool:
    """Whether a tensor is the pooler's, of which most encoders' vectors are not made."""
    return "pooler" in key.split(".")


def _poolers(keys: Iterable[str]) -> list[str]:
    return [key for key in keys if is_pooler(key)]


def in_words(keys: list[str]) -> str:
    """How many tensors, and the names of the first few.

    >>> in_words(["a.weight", "a.bias"])
    '2 tensors (a.weight, a.bias)'
    """
    return f"{_tensors(keys)} ({_shown(keys)})"


def _tensors(keys: list[Any]) -> str:
    return "1 tensor" if len(keys) == 1 else f"{len(keys)} tensors"


def _shown(words: list[str]) -> str:
    more = len(words) - SHOWN
    return ", ".join(words[:SHOWN]) + (f" and {more} more" if more > 0 else "")
