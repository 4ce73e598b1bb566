"""Model folders on the disk: sealed when `maw` writes one, and looked at before and after one is loaded.

A folder that `maw train` or `maw benchmark` wrote has `checksums.json`, with size and SHA-256 of every file that
decides its vectors: weights, configuration, tokenizer. Whatever happens to one of them later is found before anything
is loaded. A folder that others wrote has no such file. What can be found there is what makes it no model: JSON that is
none, files that are missing, sizes that its weights cannot have, tokens without an embedding, vectors that are not
finite. Another number that is as good as the right one cannot be found there.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maw.errors import MAWError
from maw.io.atomic import Checked, write_json
from maw.io.checked import check_file, checksum
from maw.io.failures import check_readable
from maw.io.json import field, read_json, read_sealed, shown

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["CHECKSUMS", "check_encoder", "check_model_folder", "seal_model_folder", "sealed_files"]

CHECKSUMS = "checksums.json"
SMALL = 2**22
"""Bytes of a JSON file that is read beforehand; vocabularies are larger, and read by others."""

TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model", "*.tiktoken", "tokenizer*.py", "tekken.json")
"""Files of which a tokenizer needs one."""

OBJECTS = (
    *("config.json", "config_sentence_transformers.json", "sentence_*_config.json", "adapter_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
"""JSON files that loading a model reads, as objects."""

SIZES = ("hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings")
LARGEST_HEADER = 2**27


def seal_model_folder(folder: Path) -> None:
    """Write `checksums.json` into a folder that was saved just now.

    Args:
        folder: a model folder; what is hidden, and texts for people (`*.md`), are left out.
    """
    write_json(folder / CHECKSUMS, {"version": 1, "files": dict(_hashed(folder))})


def sealed_files(folder: Path) -> list[Path]:
    """The files of a model folder that `checksums.json` is about: all but hidden ones and texts for people."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".md")
    return [
        path
        for path in found
        if path != folder / CHECKSUMS and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def check_model_folder(folder: Path) -> None:
    """Look at a folder before it is loaded.

    Raises:
        MAWError: this user may not read a file, or it is not as it was sealed; or, where nothing is sealed, is no
            JSON, missing, or impossible.
    """
    check_readable(folder)
    sealed = folder / CHECKSUMS
    if sealed.exists():
        meant = f"If the change is meant, delete {sealed}; otherwise copy or save the model again"
        files = field(read_sealed(sealed, meant), "files", dict, sealed, meant)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for _ in pool.map(lambda name: _check_sealed(folder, name, files, meant), files):
                pass
    _check_weights(folder)
    first = _check_modules(folder)
    for path in (folder, first):
        _check_files(path)
    _check_sizes(first)


def check_encoder(model: SentenceTransformer, name: str) -> None:
    """Look at an encoder after it was loaded: every token has an embedding, and a text gets a finite vector.

    Args:
        model: the encoder.
        name: what was loaded, for messages.

    Raises:
        MAWError: it cannot encode.
    """
    import numpy as np

    remedy = "copy or save the model again"
    rows, highest, token = _embeddings(model), *_highest_token(model)
    if rows is not None and highest >= rows:
        raise MAWError(
            f"model {name}: the tokenizer gives {token!r} the number {highest}, but the embedding has rows for 0 to "
            f"{rows - 1}: the tokenizer is not that of these weights; {remedy}"
        )
    try:
        vector = model.encode("a text", show_progress_bar=False, convert_to_numpy=True)
        finite = bool(np.isfinite(np.asarray(vector, dtype=np.float32)).all())
    except MAWError:
        raise
    except Exception as error:
        raise MAWError(f"model {name} cannot encode a text ({one_line(error)}): {remedy}") from error
    if not finite:
        raise MAWError(
            f"model {name} gives a text a vector that is not finite: its weights are damaged, or its training "
            "diverged; use an earlier checkpoint"
        )


def one_line(error: BaseException) -> str:
    """What another library says, on one line and not without end."""
    text = " ".join(str(error).split())
    if isinstance(error, RecursionError):
        return "JSON is nested without end"
    text = f"no entry {text}" if isinstance(error, KeyError) else text
    return (text if len(text) <= 240 else f"{text[:237]}...") or "no reason is given"


def _hashed(folder: Path) -> Iterator[tuple[str, Checked]]:
    files = sealed_files(folder)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for path, digest in zip(files, pool.map(checksum, files), strict=True):
            yield path.relative_to(folder).as_posix(), {"bytes": path.stat().st_size, "sha256": digest}


def _check_sealed(folder: Path, name: str, files: dict[str, Any], meant: str) -> None:
    wanted = field(files, name, dict, folder / CHECKSUMS, meant)
    size = field(wanted, "bytes", int, folder / CHECKSUMS, meant)
    digest = field(wanted, "sha256", str, folder / CHECKSUMS, meant)
    check_file(folder / name, {"bytes": size, "sha256": digest}, meant)


def _check_weights(folder: Path) -> None:
    if any(path.is_file() for path in folder.rglob("*.safetensors")):
        return
    pickles = sorted(path.name for path in folder.rglob("pytorch_model*.bin"))
    if pickles:
        raise MAWError(
            f"model {folder} has its weights only as a pickle ({pickles[0]}), which can run any code when it is read: "
            "wanted model.safetensors. Load it where you trust it, and save it again with save_pretrained"
        )
    raise MAWError(f"model {folder}: the folder holds no weights (no *.safetensors): is it a finished model folder?")


def _check_modules(folder: Path) -> Path:
    """Check modules.json, where there is one; the folder of the first module."""
    path, remedy = folder / "modules.json", "Copy or save the model again"
    if not path.exists():
        if (folder / "config_sentence_transformers.json").exists():
            raise MAWError(f"{path} is missing: it says how vectors are made of tokens. {remedy}")
        return folder
    first: Path | None = None
    for entry in read_json(path, remedy, wanted=list):
        if not isinstance(entry, dict):
            raise MAWError(f"{path} is damaged: wanted an object for each module, got {shown(entry)}. {remedy}")
        place, _ = field(entry, "path", str, path, remedy), field(entry, "type", str, path, remedy)
        if (folder / place).resolve() != folder.resolve() and folder.resolve() not in (
            folder / place
        ).resolve().parents:
            raise MAWError(f"{path} is damaged: the module {shown(place)} lies outside the folder. {remedy}")
        first = folder / place if first is None else first
        if place and (folder / place).is_dir():
            _check_files(folder / place)
    if first is None:
        raise MAWError(f"{path} is damaged: it names no module. {remedy}")
    return first


def _check_files(folder: Path) -> None:
    """The small JSON files that are read as objects are objects; files of other names are none of ours."""
    for path in sorted({path for pattern in OBJECTS for path in folder.glob(pattern)}):
        if not path.is_file() or path.stat().st_size <= SMALL:
            read_json(path, "Copy or save the model again", wanted=dict)


def _check_sizes(folder: Path) -> None:
    """A config that asks for more than the weights can hold is refused before it is built, which would take forever."""
    path, remedy = folder / "config.json", "Copy or save the model again"
    if not path.exists():
        return
    if not any(found.is_file() for pattern in TOKENIZERS for found in folder.glob(pattern)):
        raise MAWError(
            f"model {folder} has no tokenizer: wanted tokenizer.json or a vocabulary ({', '.join(TOKENIZERS[1:4])}) "
            f"beside its config.json. {remedy}"
        )
    tensors, numbers = 0, 0
    for file in folder.glob("*.safetensors"):
        for entry in _header(file).values():
            shape = entry.get("shape") if isinstance(entry, dict) else None
            if isinstance(shape, list) and all(isinstance(size, int) for size in shape):
                tensors, numbers = tensors + 1, max(numbers, *shape, 0)
    for name, size, most in _wanted_sizes(read_json(path, remedy, wanted=dict), tensors, numbers):
        if size > most:
            raise MAWError(f"{path} is damaged: {name} is {size}, more than its weights have ({most}). {remedy}")


def _wanted_sizes(config: dict[str, Any], tensors: int, numbers: int) -> Iterator[tuple[str, int, int]]:
    for part in (config, config.get("backbone"), config.get("text_config")):
        if not isinstance(part, dict):
            continue
        for name, most in (("num_hidden_layers", tensors), *((name, 1_000 * (numbers + 1)) for name in SIZES)):
            size = part.get(name)
            if isinstance(size, int) and tensors:
                yield name, size, most


def _header(file: Path) -> dict[str, Any]:
    """What a file of weights says of its tensors; empty where it cannot be read, which loading it says."""
    try:
        with file.open("rb") as opened:
            (size,) = struct.unpack("<Q", opened.read(8))
            found = json.loads(opened.read(size)) if size <= LARGEST_HEADER else {}
    except (OSError, ValueError, struct.error, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _embeddings(model: SentenceTransformer) -> int | None:
    """Rows of the table of token embeddings."""
    host: Any = getattr(model[0], "model", None) or getattr(model[0], "auto_model", None)
    try:
        return int(host.get_input_embeddings().weight.shape[0])
    except (AttributeError, NotImplementedError):  # no transformer, or one that does not begin with such a table
        return None


def _highest_token(model: SentenceTransformer) -> tuple[int, str]:
    tokenizer: Any = getattr(model, "tokenizer", None)
    if not hasattr(tokenizer, "get_vocab"):
        return -1, ""
    vocabulary = tokenizer.get_vocab()
    if not vocabulary:
        raise MAWError("the tokenizer knows no token: its files are damaged; copy or save the model again")
    token = max(vocabulary, key=vocabulary.__getitem__)
    return vocabulary[token], token
