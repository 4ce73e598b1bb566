"""Imports point one way: between the parts of `maw`, and between the rooms of `maw.retrieval`, anywhere in a file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

RETRIEVAL = Path(__file__).resolve().parents[1] / "src" / "maw" / "retrieval"
MIRROR = Path(__file__).resolve().parent / "retrieval"

GROUND = {"identity", "models", "processes", "similarity"}
"""Single files that every room may use and that use none."""

ROOMS = {
    "data": set(),
    "ranking": {"data"},
    "evaluation": {"data", "ranking"},
    "vectors": {"data", "ranking"},
    "training": {"data", "ranking", "evaluation"},
}
"""Room -> the rooms it imports from; evaluation and vectors stand side by side."""


def files(room):
    """What is in a room; a single file is a room of its own."""
    return [RETRIEVAL / f"{room}.py"] if room in GROUND else sorted((RETRIEVAL / room).glob("*.py"))


def used(code):
    """The rooms that a file imports from, wherever in it and for types too; "" is `maw.retrieval` itself."""
    rooms = set()
    for node in ast.walk(ast.parse(code)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            first, _, rest = f"{name}.".partition("maw.retrieval.")
            if not first:
                rooms.add(rest.partition(".")[0])
    return rooms


def allowed(room):
    return set() if room in GROUND else {room} | ROOMS[room] | GROUND


def test_every_file_is_in_a_room():
    assert {path.stem for path in RETRIEVAL.glob("*.py")} == GROUND | {"__init__"}
    assert {path.parent.name for path in RETRIEVAL.glob("*/*.py")} == set(ROOMS)
    assert {path.parent.name for path in MIRROR.glob("*/*.py")} == set(ROOMS), "tests mirror the sources"


def test_the_rooms_are_in_order():
    before = set()
    for room, needs in ROOMS.items():
        assert needs <= before, f"{room} may use only what comes before it"
        before.add(room)


@pytest.mark.parametrize("room", [*sorted(GROUND), *ROOMS])
def test_imports_between_rooms_go_one_way(room):
    paths = files(room)
    assert paths
    wrong = {path.name: used(path.read_text(encoding="utf-8")) - allowed(room) for path in paths}
    assert {name: rooms for name, rooms in wrong.items() if rooms} == {}


@pytest.mark.parametrize("room", ROOMS)
def test_every_way_between_rooms_is_walked(room):
    taken = set().union(*(used(path.read_text(encoding="utf-8")) for path in files(room)))
    assert ROOMS[room] <= taken, "ROOMS allows what nobody needs: take it out"


@pytest.mark.parametrize("room", ["", *ROOMS])
def test_a_room_imports_nothing_by_itself(room):
    tree = ast.parse((RETRIEVAL / room / "__init__.py").read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "it says what the room is for"
    assert len(tree.body) == 1, "else the room's light files would load its heavy ones"


@pytest.mark.parametrize(
    ("line", "rooms"),
    [
        ("from maw.retrieval.training.losses import AuxiliaryLoss", {"training"}),
        ("from maw.retrieval import training", {"training"}),
        ("from maw.retrieval.training import losses", {"training"}),
        ("import maw.retrieval.data.texts as texts", {"data"}),
        ("import maw.retrieval", {""}),
        ("if TYPE_CHECKING:\n    from maw.retrieval.vectors.store import VectorStore", {"vectors"}),
        ("def f():\n    from maw.retrieval.data import beir\n    from maw.retrieval import models", {"data", "models"}),
        ("import torch\nfrom maw.errors import MAWError", set()),
    ],
)
def test_imports_are_read(line, rooms):
    assert used(line) == rooms


# The parts of the package

SOURCE = RETRIEVAL.parent
MATHEMATICS = {
    *(
        "auxiliary",
        "choice",
        "compiled",
        "config",
        "controls",
        "entropy",
        "errors",
        "functional",
        "grpo",
        "interpolation",
    ),
    *("kernels", "operations", "random_numbers", "records", "reference", "rewards", "selector", "shapes", "views"),
}
PARTS = {
    "module": MATHEMATICS,
    "hf": MATHEMATICS | {"io", "module"},
    "inspection": MATHEMATICS | {"module", "hf"},
    "collapse": set(),
    "io": {"errors"},
    "console": {"io"},
    "progress": {"io"},
    "retrieval": MATHEMATICS | {"module", "hf", "collapse", "console", "io", "progress"},
    "benchmark": MATHEMATICS | {"module", "hf", "collapse", "io", "retrieval"},
    "display": {"errors", "inspection", "io", "retrieval"},
}
"""Part -> what it may import; the rest is the terminal, which may import everything."""


def parts_used(path):
    """The parts of `maw` that a file imports from."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("maw.")}
    return found


@pytest.mark.parametrize("part", [*sorted(MATHEMATICS), *PARTS])
def test_a_part_imports_from_those_before_it(part):
    files = sorted((SOURCE / part).rglob("*.py")) or [SOURCE / f"{part}.py"]
    needs = PARTS.get(part, MATHEMATICS) | {part}
    assert set().union(*map(parts_used, files)) <= needs


def test_one_module_alone_uses_the_reference():
    users = [path.stem for path in SOURCE.rglob("*.py") if "reference" in parts_used(path)]
    assert sorted(users) == ["__init__", "inspection"]


def test_no_two_test_files_have_one_name():
    """pytest imports them by their names alone."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
