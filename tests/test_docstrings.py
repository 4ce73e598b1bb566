from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "maw"
MODULES = [
    "maw",
    "maw.auxiliary",
    "maw.benchmark.comparison",
    "maw.benchmark.power",
    "maw.benchmark.statistics",
    "maw.choice",
    "maw.collapse",
    "maw.compiled",
    "maw.config",
    "maw.controls",
    "maw.entropy",
    "maw.errors",
    "maw.functional",
    "maw.grpo",
    "maw.interpolation",
    "maw.module",
    "maw.operations",
    "maw.random_numbers",
    "maw.records",
    "maw.reference",
    "maw.rewards",
    "maw.selector",
    "maw.shapes",
    "maw.views",
]


def modules_with_examples():
    for path in sorted(SOURCE.rglob("*.py")):
        if ">>>" in path.read_text(encoding="utf-8"):
            yield ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("name", [*modules_with_examples()])
def test_examples_in_docstrings_run(name):
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert failed == 0
    assert tried > 0


@pytest.mark.parametrize("name", [name for name in MODULES if name != "maw"])
def test_every_public_name_exists_and_is_documented(name):
    module = importlib.import_module(name)
    for public in module.__all__:
        thing = getattr(module, public)
        if inspect.isfunction(thing) or inspect.isclass(thing):
            assert thing.__module__ == name, f"{public} belongs to {thing.__module__}"
            assert thing.__doc__, f"{public} has no docstring"


@pytest.mark.parametrize(
    "name", ["maw.config", "maw.entropy", "maw.functional", "maw.grpo", "maw.module", "maw.rewards", "maw.selector"]
)
def test_every_public_function_has_an_example(name):
    module = importlib.import_module(name)
    functions = [public for public in module.__all__ if inspect.isfunction(getattr(module, public))]
    assert [public for public in functions if ">>>" not in getattr(module, public).__doc__] == []


def test_lazy_names_are_the_public_ones():
    import maw

    assert sorted(maw.__all__) == maw.__all__
    assert set(maw.__all__) <= set(dir(maw))
    assert [name for name in maw.__all__ if getattr(maw, name, None) is None] == []
    assert maw.reference is importlib.import_module("maw.reference")
    with pytest.raises(AttributeError, match="no_such_name"):
        maw.no_such_name  # noqa: B018
