"""JSON files that are damaged end in a sentence; a sealed one that was edited does, too."""

from __future__ import annotations

import json

import pytest

from maw.errors import MAWError
from maw.io.json import check_seal, field, read_json, read_sealed, sealed

DEEP = 100_000


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "is no JSON"),
        (b'{"a": 1', "is no JSON"),
        (b"\xff\xfe{}", "is no JSON"),
        (b"[" * DEEP + b"]" * DEEP, "more than 100 inside one another"),
        (b'{"a":' * 900 + b"1" + b"}" * 900, "more than 100 inside one another"),
        (b"[" * DEEP, "more than 100 inside one another"),
        (b'{"b": [{"a": 1, "a": 2}]}', 'the key "a" comes twice'),
        (b"[1]", r"wanted an object, got \[1\]"),
        (b"true", "wanted an object, got true"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, raw, words):
    path = tmp_path / "plan.json"
    path.write_bytes(raw)
    with pytest.raises(MAWError, match=f"plan.json is damaged: .*{words}.*Encode again"):
        read_json(path, "Encode again.", wanted=dict)


def test_what_is_not_there_or_a_folder_is_named(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(MAWError, match=f"{path.name} cannot be read: .*Encode again"):
            read_json(path, "Encode again.")


def test_what_is_deep_but_not_too_deep_is_read(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text("[" * 100 + "]" * 100)
    assert json.dumps(read_json(path)) == path.read_text()


@pytest.mark.parametrize(
    ("value", "wanted", "fits"),
    [(3, int, True), (True, int, False), (3, float, True), (True, float, False), (3.0, int, False), (True, bool, True),
     ("3", int, False), (None, dict, False), ({}, dict, True), ([], list, True), (1, bool, False)],
)  # fmt: skip
def test_a_value_is_of_the_wanted_type_or_named(value, wanted, fits):
    if fits:
        assert field({"rows": value}, "rows", wanted, "plan.json") is value
        return
    with pytest.raises(MAWError, match=r'plan.json is damaged: wanted .* as "rows", got'):
        field({"rows": value}, "rows", wanted, "plan.json")


def test_an_edit_of_a_sealed_file_is_found(tmp_path):
    path, values = tmp_path / "plan.json", {"rows": 3, "parts": [1.5, float("nan"), {"7": None}], "name": "é"}
    path.write_text(json.dumps(sealed(values), indent=1))
    assert repr(read_sealed(path)) == repr(values)
    path.write_text(path.read_text().replace('"rows": 3', '"rows": 4'))
    with pytest.raises(MAWError, match=r'plan.json was changed after it was written.*take the line with "checksum"'):
        read_sealed(path)
    edited = json.loads(path.read_text())
    del edited["checksum"]
    path.write_text(json.dumps(edited))
    assert read_sealed(path)["rows"] == 4
    with pytest.raises(MAWError, match='wanted a text as "checksum", got none'):
        check_seal(edited, path, required=True)


def test_values_that_json_writes_otherwise_are_sealed_as_they_are_read(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(sealed({"by seed": {3: (1, 2)}})))
    assert read_sealed(path) == {"by seed": {"3": [1, 2]}}
