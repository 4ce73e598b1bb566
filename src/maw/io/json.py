"""Reading JSON files strictly, whoever wrote them, and sealing our own with a checksum of their contents.

A file that is damaged ends in a sentence that names it, what was wanted and what was found: bytes that are no UTF-8,
text that is no JSON, a key that comes twice in one object, lists in lists without end, a value of another type. A
sealed file says under `checksum` what its other values came to when it was written, so that an edit that leaves valid
JSON is found, too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from maw.errors import MAWError
from maw.io.failures import refuse_reading

__all__ = [
    "DEEPEST",
    "LARGEST",
    "SEAL",
    "check_seal",
    "field",
    "parse_json",
    "read_json",
    "read_sealed",
    "sealed",
    "shown",
]

T = TypeVar("T")

LARGEST = 2**31
"""Bytes of the largest file that is read: benchmarks of many queries have results of some megabytes."""

DEEPEST = 100
"""Lists and objects inside one another; what `maw` and Transformers write has fewer than twenty."""

SEAL = "checksum"
"""The name under which a sealed file has its checksum; a person who edits such a file takes that line out."""

_KINDS: dict[Any, str] = {
    **{
        dict: "an object",
        list: "a list",
        str: "a text",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
    },
    type(None): "null",
}


def read_json(path: Path, remedy: str = "", *, wanted: type[T] | None = None) -> T:
    """Read a JSON file.

    Args:
        path: the file.
        remedy: what to do where it is damaged, as a sentence; it ends the message.
        wanted: the type of the whole, such as `dict`; None takes any.

    Raises:
        MAWError: it is not there, no JSON, too large or too deeply nested, has a key twice, or is of another type.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "plan.json"
    >>> _ = path.write_text('{"rows": 3}')
    >>> read_json(path)
    {'rows': 3}
    """
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise MAWError(_sentences(f"{path} has {size:,} bytes, more than the {LARGEST:,} that are read", remedy))
        raw = path.read_bytes()
    except OSError as error:
        refuse_reading(path, error, remedy)
    return parse_json(raw, str(path), remedy, wanted=wanted)


def parse_json(raw: bytes | str, name: str, remedy: str = "", *, wanted: type[T] | None = None) -> T:
    """The value of a JSON text, as strictly as `read_json`.

    Args:
        raw: the text, or its UTF-8 bytes.
        name: where it comes from, for messages.
        remedy, wanted: as in `read_json`.

    Raises:
        MAWError: as `read_json`.

    >>> parse_json('{"a": 1, "a": 2}', "plan.json", "Encode again.")
    Traceback (most recent call last):
    ...
    maw.errors.MAWError: plan.json is damaged: the key "a" comes twice in one object. Encode again.
    """
    try:
        text = raw if isinstance(raw, str) else raw.decode("utf-8")
        value: Any = json.loads(text, object_pairs_hook=_object)
        deep = _depth(value) > DEEPEST
    except RecursionError:
        deep, value = True, cast("Any", None)
    except _Twice as error:
        raise MAWError(_sentences(f"{name} is damaged: the key {error} comes twice in one object", remedy)) from None
    except ValueError as error:
        raise MAWError(_sentences(f"{name} is damaged: it is no JSON ({error})", remedy)) from error
    if deep:
        raise MAWError(
            _sentences(f"{name} is damaged: its lists and objects are more than {DEEPEST} inside one another", remedy)
        )
    if wanted is not None and not _is(value, wanted):
        raise MAWError(_sentences(f"{name} is damaged: wanted {_KINDS[wanted]}, got {shown(value)}", remedy))
    return value


def field(values: Mapping[str, Any], name: str, wanted: type[T], path: Path | str, remedy: str = "") -> T:
    """A value of an object that was read from a file, if it is there and of the wanted type.

    Args:
        values: the object.
        name: its key.
        wanted: the type; `float` takes whole numbers, too, and `int` no truth values.
        path: the file, for messages.
        remedy: as in `read_json`.

    Raises:
        MAWError: it is missing or of another type.

    >>> field({"rows": "3"}, "rows", int, "plan.json")
    Traceback (most recent call last):
    ...
    maw.errors.MAWError: plan.json is damaged: wanted a whole number as "rows", got "3"
    """
    kind = _KINDS[wanted]
    if name not in values:
        raise MAWError(_sentences(f'{path} is damaged: wanted {kind} as "{name}", got none', remedy))
    if not _is(values[name], wanted):
        got = shown(values[name])
        raise MAWError(_sentences(f'{path} is damaged: wanted {kind} as "{name}", got {got}', remedy))
    return values[name]


def shown(value: Any) -> str:
    """A value for a message: as JSON, short.

    >>> shown([None, True])
    '[null, true]'
    """
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same object with a checksum of what it holds; what was there under `checksum` is replaced.

    >>> sealed({"rows": 3})
    {'rows': 3, 'checksum': '47b702429120a0b9ee229045e2b9cd07'}
    """
    own = {name: value for name, value in values.items() if name != SEAL}
    return own | {SEAL: _digest(own)}


def check_seal(values: dict[str, Any], name: Path | str, remedy: str = "", *, required: bool = False) -> dict[str, Any]:
    """What was sealed, without its checksum; an object without one is taken as it is, unless it is `required`.

    Raises:
        MAWError: its values are not those that were sealed.
    """
    own = {key: value for key, value in values.items() if key != SEAL}
    if required:
        field(values, SEAL, str, name, remedy)
    if SEAL in values and values[SEAL] != _digest(own):
        raise MAWError(
            _sentences(
                f'{name} was changed after it was written: its values do not have its "{SEAL}" any more',
                remedy or f'If the change is meant, take the line with "{SEAL}" out of the file',
            )
        )
    return own


def read_sealed(path: Path, remedy: str = "") -> dict[str, Any]:
    """Read an object that `sealed` made; one without a checksum, of an earlier version, is taken as it is.

    Raises:
        MAWError: as `read_json` and `check_seal`.
    """
    return check_seal(read_json(path, remedy, wanted=dict), path, remedy)


class _Twice(Exception):
    """A key comes twice in one object."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _Twice(json.dumps(next(key for key in keys if keys.count(key) > 1)))
    return found


def _digest(values: Mapping[str, Any]) -> str:
    # keys are written as JSON has them (texts), so that a number as a key counts the same before and after reading
    text = json.dumps(json.loads(json.dumps(values)), sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _depth(value: Any) -> int:
    """How many lists and objects are inside one another; stops where there are too many."""
    level, depth = [value], 0
    while depth <= DEEPEST:
        level = [
            part
            for whole in level
            if isinstance(whole, dict | list)
            for part in (whole.values() if isinstance(whole, dict) else whole)
            if isinstance(part, dict | list)
        ]
        if not level:
            break
        depth += 1
    return depth


def _is(value: Any, wanted: type) -> bool:
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))


def _sentences(first: str, remedy: str) -> str:
    return f"{first}. {remedy}" if remedy else first
