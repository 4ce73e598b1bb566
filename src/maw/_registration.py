"""Tell other packages about MAW as soon as both are imported, whichever comes first.

Transformers learns the model type `maw`; Sentence Transformers, what a model card says of loading it.

Importing Transformers' model classes takes seconds, so `import maw` does not: it registers at once if they are there
already, and otherwise when they are imported.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

__all__ = ["register_model_type"]


# another package's module: ours that registers itself at its end
WAITING = {
    "transformers.models.auto.configuration_auto": "maw.hf.configuration",
    "transformers.models.auto.modeling_auto": "maw.hf.model",
    "sentence_transformers.base.model_card": "maw.hf.cards",
}


class _AfterImport(importlib.abc.MetaPathFinder):
    """Imports our module right after the module it waits for, then steps aside."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        ours = WAITING.pop(name, None)
        if ours is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_then_register(module: ModuleType) -> None:
            execute(module)
            importlib.import_module(ours)

        spec.loader.exec_module = execute_then_register
        return spec


def register_model_type() -> None:
    """Register with each package now, or when it is imported."""
    for name in list(WAITING):
        if name in sys.modules:
            importlib.import_module(WAITING.pop(name))
    if WAITING and not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())
