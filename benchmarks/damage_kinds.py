"""Kinds of damage to a file or a folder, each drawn by a seed: bytes, JSON, JSON lines, arrays, tensors, tokenizers."""

from __future__ import annotations

import copy
import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

__all__ = ["KINDS", "Damage", "damage", "kinds_for"]

Damage = Callable[[random.Random, Path, list[Path]], None]
"""Called with the draw, the file, and all files of its folder; raises `Unfit` where it changes nothing."""

DEEP = 100_000
VALUES: tuple[Any, ...] = (
    *(None, [], {}, "", "text", True, False, 0, -1, 7, 0.5, [1], {"name": 1}, [[1, 2]]),
    *(10**30, -(10**30), 1e308, float("nan"), float("inf"), "../..", "é\u0000"),
)


class Unfit(Exception):
    """This kind of damage changes nothing of this file."""


# any file


def flip_byte(draw: random.Random, path: Path, _: list[Path]) -> None:
    data = bytearray(path.read_bytes())
    if not data:
        raise Unfit
    for _ in range(draw.choice((1, 1, 3))):
        data[draw.randrange(len(data))] ^= draw.randrange(1, 256)
    path.write_bytes(data)


def truncate(draw: random.Random, path: Path, _: list[Path]) -> None:
    data = path.read_bytes()
    if not data:
        raise Unfit
    path.write_bytes(data[: draw.randrange(len(data))])


def append(draw: random.Random, path: Path, _: list[Path]) -> None:
    path.write_bytes(path.read_bytes() + draw.randbytes(draw.randrange(1, 40)))


def empty(_: random.Random, path: Path, __: list[Path]) -> None:
    path.write_bytes(b"")


def noise(draw: random.Random, path: Path, _: list[Path]) -> None:
    path.write_bytes(draw.randbytes(max(8, min(path.stat().st_size, 4096))))


def missing(_: random.Random, path: Path, __: list[Path]) -> None:
    path.unlink()


def directory(_: random.Random, path: Path, __: list[Path]) -> None:
    path.unlink()
    path.mkdir()


def swapped(draw: random.Random, path: Path, files: list[Path]) -> None:
    """Two files change places: of the same ending where there are such."""
    data = path.read_bytes()
    others = [file for file in files if file != path and file.read_bytes() != data]
    same = [file for file in others if file.suffix == path.suffix]
    if not others:
        raise Unfit
    other = draw.choice(same or others)
    path.write_bytes(other.read_bytes())
    other.write_bytes(data)


def edit_letter(draw: random.Random, path: Path, _: list[Path]) -> None:
    """One letter or digit becomes another one: the size and the syntax stay."""
    data = bytearray(path.read_bytes())
    places = [place for place, byte in enumerate(data) if chr(byte).isascii() and chr(byte).isalnum()]
    if not places:
        raise Unfit
    place = draw.choice(places)
    digits = chr(data[place]).isdigit()
    data[place] = ord(draw.choice([c for c in ("123456789" if digits else "abcdefgh") if ord(c) != data[place]]))
    path.write_bytes(data)


# JSON


def _nodes(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [node for name, part in inside for node in _nodes(part, (*path, name))]


def _parent(whole: Any, path: tuple[Any, ...]) -> Any:
    for name in path[:-1]:
        whole = whole[name]
    return whole


def _chosen(draw: random.Random, whole: Any, nodes: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """A value's path; shallow ones, of which there are few, as often as deep ones."""
    if not nodes:
        raise Unfit
    depth = draw.choice(sorted({len(node) for node in nodes}))
    return draw.choice([node for node in nodes if len(node) == depth])


def _write(path: Path, whole: Any) -> None:
    path.write_text(json.dumps(whole, indent=1), encoding="utf-8")


def json_type(draw: random.Random, path: Path, _: list[Path]) -> None:
    """A value becomes one of another type, or a number out of all range."""
    whole = json.loads(path.read_text(encoding="utf-8"))
    node = _chosen(draw, whole, _nodes(whole))
    parent = _parent(whole, node)
    others = [value for value in VALUES if type(value) is not type(parent[node[-1]]) or isinstance(value, int | float)]
    parent[node[-1]] = copy.deepcopy(draw.choice([value for value in others if value != parent[node[-1]]]))
    _write(path, whole)


def json_value(draw: random.Random, path: Path, _: list[Path]) -> None:
    """A value becomes another one of its own type."""
    whole = json.loads(path.read_text(encoding="utf-8"))
    node = _chosen(draw, whole, [n for n in _nodes(whole) if not isinstance(_parent(whole, n)[n[-1]], dict | list)])
    parent = _parent(whole, node)
    value = parent[node[-1]]
    if isinstance(value, bool):
        parent[node[-1]] = not value
    elif isinstance(value, int):
        parent[node[-1]] = draw.choice((value + 1, value - 1, 2 * value + 1, value + 1000))
    elif isinstance(value, float):
        parent[node[-1]] = draw.choice((value * 2 + 0.1, value / 3 - 0.1, value + 0.001))
    elif isinstance(value, str):
        letters = list(value)
        draw.shuffle(letters)
        parent[node[-1]] = draw.choice(("".join(letters) + "x", value[:-1], value.upper() + "A"))
    else:
        parent[node[-1]] = 1
    _write(path, whole)


def json_remove(draw: random.Random, path: Path, _: list[Path]) -> None:
    whole = json.loads(path.read_text(encoding="utf-8"))
    node = _chosen(draw, whole, _nodes(whole))
    del _parent(whole, node)[node[-1]]
    _write(path, whole)


def json_rename(draw: random.Random, path: Path, _: list[Path]) -> None:
    whole = json.loads(path.read_text(encoding="utf-8"))
    node = _chosen(draw, whole, [node for node in _nodes(whole) if isinstance(node[-1], str)])
    parent = _parent(whole, node)
    parent[draw.choice((node[-1] + "_", node[-1].upper() + "1", ""))] = parent.pop(node[-1])
    _write(path, whole)


def json_duplicate(draw: random.Random, path: Path, _: list[Path]) -> None:
    """A key comes twice in one object, with two values."""
    whole = json.loads(path.read_text(encoding="utf-8"))
    node = _chosen(draw, whole, [node for node in _nodes(whole) if isinstance(node[-1], str)])
    parent = _parent(whole, node)
    name, value = node[-1], draw.choice((1, "other", None, []))
    mark = "\u0001duplicate"
    copied = {(mark if key == name else key): own for key, own in parent.items()}
    parent.clear()
    for key, own in copied.items():
        parent[key] = own
        if key == mark:
            parent[name] = value
    _write(path, whole)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(json.dumps(mark), json.dumps(name)), encoding="utf-8")


def json_deep(draw: random.Random, path: Path, _: list[Path]) -> None:
    """A value, or the whole file, becomes a list in a list in a list..., or objects in objects."""
    deep = draw.choice(("[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP, "[" * DEEP, "[" * 900 + "]" * 900))
    whole = json.loads(path.read_text(encoding="utf-8"))
    nodes = _nodes(whole)
    if not nodes or draw.random() < 0.3:
        path.write_text(deep, encoding="utf-8")
        return
    node = _chosen(draw, whole, nodes)
    _parent(whole, node)[node[-1]] = "\u0001deep"
    path.write_text(json.dumps(whole).replace(json.dumps("\u0001deep"), deep), encoding="utf-8")


def json_whole(draw: random.Random, path: Path, _: list[Path]) -> None:
    """The whole file becomes another JSON value."""
    path.write_text(json.dumps(draw.choice(VALUES)), encoding="utf-8")


def json_version(draw: random.Random, path: Path, _: list[Path]) -> None:
    """What says which format or version it is says another."""
    whole = json.loads(path.read_text(encoding="utf-8"))
    names = [
        name for name in ("format", "version", "schema", "model_type") if isinstance(whole, dict) and name in whole
    ]
    if not names:
        raise Unfit
    whole[names[0]] = draw.choice((0, 2, 99, "1", None, True, 1.0, [1], "bert2", "roberta"))
    _write(path, whole)


def depth(draw: random.Random, path: Path, _: list[Path]) -> None:
    """Another number of layers, of depths, of heads, or another width."""
    text = path.read_text(encoding="utf-8")
    names = ("num_hidden_layers", "depth", "num_attention_heads", "hidden_size", "intermediate_size", "vocab_size")
    present = [name for name in (*names, "max_position_embeddings") if f'"{name}"' in text]
    if not present:
        raise Unfit
    name, whole = draw.choice(present), json.loads(text)
    nodes = [node for node in _nodes(whole) if node[-1] == name]
    node = draw.choice(nodes)
    parent = _parent(whole, node)
    other = draw.choice((0, 1, 3, 4, 8, 12, 1_000_000_000))
    if parent[node[-1]] == other:
        raise Unfit
    parent[node[-1]] = other
    _write(path, whole)


# JSON lines


def _lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    if not lines:
        raise Unfit
    return lines


def line_value(draw: random.Random, path: Path, _: list[Path]) -> None:
    lines = _lines(path)
    place = draw.randrange(len(lines))
    entry = json.loads(lines[place])
    if not isinstance(entry, dict) or not entry:
        raise Unfit
    name = draw.choice(list(entry))
    entry[name] = copy.deepcopy(draw.choice([value for value in VALUES if value != entry[name]]))
    lines[place] = json.dumps(entry)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def line_removed(draw: random.Random, path: Path, _: list[Path]) -> None:
    lines = _lines(path)
    del lines[draw.randrange(len(lines))]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def line_other(draw: random.Random, path: Path, _: list[Path]) -> None:
    """A line becomes another JSON value, or what is none."""
    lines = _lines(path)
    others = ("null", "[]", "7", "{}", '{"step": null}', '{"step": "3"}', '{"step": [1]}', "[" * DEEP, "{", '"a"')
    lines[draw.randrange(len(lines))] = draw.choice(others)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


# arrays


def array_edit(draw: random.Random, path: Path, _: list[Path]) -> None:
    """A number becomes another one, the header stays."""
    array = np.load(path)
    if not array.size:
        raise Unfit
    flat = array.reshape(-1)
    place = draw.randrange(len(flat))
    flat[place] = flat[(place + 1) % len(flat)] + 1
    np.save(path, array)


def array_type(draw: random.Random, path: Path, _: list[Path]) -> None:
    array = np.load(path)
    np.save(path, array.astype(draw.choice(("float64", "int16", "complex64", "S3", "bool"))))


def array_shape(draw: random.Random, path: Path, _: list[Path]) -> None:
    array = np.load(path)
    shapes = [(-1,), (1, *array.shape), (*array.shape, 1), array.shape[::-1]]
    np.save(path, array.reshape(draw.choice([shape for shape in shapes if shape != array.shape])))


def array_objects(_: random.Random, path: Path, __: list[Path]) -> None:
    """An array of Python objects, which NumPy keeps as a pickle."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    path.write_bytes(buffer.getvalue())


# tensors


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(path)
    if not tensors:
        raise Unfit
    return tensors


def _save(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)


def tensor_zeroed(draw: random.Random, path: Path, _: list[Path]) -> None:
    tensors = _tensors(path)
    name = draw.choice([name for name in sorted(tensors) if tensors[name].any()])
    tensors[name] = torch.zeros_like(tensors[name])
    _save(path, tensors)


def tensor_edited(draw: random.Random, path: Path, _: list[Path]) -> None:
    tensors = _tensors(path)
    name = draw.choice(sorted(tensors))
    flat = tensors[name].clone().reshape(-1)
    if not flat.numel():
        raise Unfit
    flat[draw.randrange(len(flat))] += 1
    tensors[name] = flat.reshape(tensors[name].shape)
    _save(path, tensors)


def tensor_nan(draw: random.Random, path: Path, _: list[Path]) -> None:
    tensors = _tensors(path)
    names = [name for name in sorted(tensors) if tensors[name].is_floating_point() and tensors[name].numel()]
    name = draw.choice(names)
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[0] = draw.choice((float("nan"), float("inf")))
    _save(path, tensors)


def tensor_transposed(draw: random.Random, path: Path, _: list[Path]) -> None:
    tensors = _tensors(path)
    names = [name for name in sorted(tensors) if tensors[name].ndim >= 2]
    if not names:
        raise Unfit
    name = draw.choice(names)
    tensors[name] = tensors[name].transpose(-1, -2)
    _save(path, tensors)


def tensors_swapped(draw: random.Random, path: Path, _: list[Path]) -> None:
    tensors = _tensors(path)
    pairs = [
        (first, second)
        for first in sorted(tensors)
        for second in sorted(tensors)
        if first < second
        and tensors[first].shape == tensors[second].shape
        and not torch.equal(tensors[first], tensors[second])
    ]
    if not pairs:
        raise Unfit
    first, second = draw.choice(pairs)
    tensors[first], tensors[second] = tensors[second], tensors[first]
    _save(path, tensors)


def tensor_type(draw: random.Random, path: Path, _: list[Path]) -> None:
    """Whole numbers, booleans or a shorter type instead of float32."""
    tensors = _tensors(path)
    name = draw.choice(sorted(tensors))
    kind = draw.choice((torch.int64, torch.int8, torch.bool, torch.bfloat16))
    tensors[name] = tensors[name].to(kind)
    _save(path, tensors)


def tensor_missing(draw: random.Random, path: Path, _: list[Path]) -> None:
    tensors = _tensors(path)
    for name in draw.sample(sorted(tensors), draw.choice((1, len(tensors)))):
        del tensors[name]
    _save(path, tensors)


def tensor_renamed(draw: random.Random, path: Path, _: list[Path]) -> None:
    tensors = _tensors(path)
    name = draw.choice(sorted(tensors))
    tensors[name + ".more"] = tensors.pop(name)
    _save(path, tensors)


# model folders


def token_ids(draw: random.Random, path: Path, _: list[Path]) -> None:
    """Words of the vocabulary have ids beyond the embedding."""
    whole = json.loads(path.read_text(encoding="utf-8"))
    if "vocab" not in whole.get("model", {}):
        raise Unfit
    vocabulary = whole["model"]["vocab"]
    for word in draw.sample(sorted(vocabulary), draw.choice((1, len(vocabulary) // 2))):
        vocabulary[word] += draw.choice((len(vocabulary), 1_000_000))
    _write(path, whole)


def pickled(draw: random.Random, path: Path, _: list[Path]) -> None:
    """The weights are there only as a pickle: as PyTorch writes one, or one with code in it."""
    tensors = load_file(path)
    other = path.with_name("pytorch_model.bin")
    if draw.random() < 0.5:
        torch.save(tensors, other)
    else:
        torch.save({**tensors, "extra": Path("x")}, other)
    path.unlink()


def no_tokenizer(_: random.Random, path: Path, files: list[Path]) -> None:
    for file in files:
        if file.name.startswith(("tokenizer", "vocab", "special_tokens")):
            file.unlink()


def vectors_folder_copied(draw: random.Random, path: Path, files: list[Path]) -> None:
    """A file comes from a folder beside its own."""
    others = [file for file in files if file.name == path.name and file.parent != path.parent]
    if not others or (other := draw.choice(others)).read_bytes() == path.read_bytes():
        raise Unfit
    shutil.copyfile(other, path)


ANY: tuple[Damage, ...] = (flip_byte, truncate, append, empty, noise, missing, directory, swapped, edit_letter)
JSON: tuple[Damage, ...] = (
    *(json_type, json_type, json_type, json_value, json_value, json_remove, json_rename, json_duplicate),
    *(json_deep, json_whole, json_version),
)
LINES: tuple[Damage, ...] = (line_value, line_value, line_removed, line_other)
ARRAY: tuple[Damage, ...] = (array_edit, array_type, array_shape, array_objects)
TENSORS: tuple[Damage, ...] = (
    *(tensor_zeroed, tensor_edited, tensor_nan, tensor_transposed, tensors_swapped, tensor_type),
    *(tensor_missing, tensor_renamed),
)
KINDS = {kind.__name__: kind for kind in (*ANY, *JSON, *LINES, *ARRAY, *TENSORS, depth, token_ids, pickled)}
KINDS |= {kind.__name__: kind for kind in (no_tokenizer, vectors_folder_copied)}


def kinds_for(path: Path) -> tuple[Damage, ...]:
    """What can be done to a file, by its name; a kind that is listed twice is drawn twice as often."""
    special: tuple[Damage, ...] = {
        "config.json": (depth, depth),
        "tokenizer.json": (token_ids, token_ids, no_tokenizer),
        "model.safetensors": (pickled, vectors_folder_copied),
    }.get(path.name, ())
    by_ending = {".json": JSON, ".jsonl": LINES, ".npy": ARRAY, ".safetensors": TENSORS}
    return (*ANY, *by_ending.get(path.suffix, ()), *special)


def damage(draw: random.Random, folder: Path, path: Path) -> str:
    """Damage a file of a folder in one way; the name of the kind."""
    before = _state(folder)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    kinds = list(kinds_for(path))
    draw.shuffle(kinds)
    for kind in kinds:
        try:
            kind(draw, path, files)
        except (Unfit, ValueError, TypeError, IndexError, RuntimeError):  # not to be done to this file
            if _state(folder) != before:
                raise
            continue
        if _state(folder) != before:
            return kind.__name__
    raise Unfit


def _state(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
