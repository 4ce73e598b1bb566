"""Tell Transformers about the model type `maw` as soon as both packages are imported, whichever comes first.

Importing Transformers' model classes takes seconds, so `import maw` does not: it registers at once if they are there
already, and otherwise when they are imported.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

__all__ = ["register_model_type"]


def _register_config(module: ModuleType) -> None:
    from maw.hf.configuration import MAWModelConfig

    module.AutoConfig.register(MAWModelConfig.model_type, MAWModelConfig, exist_ok=True)


def _register_model(module: ModuleType) -> None:
    from maw.hf.configuration import MAWModelConfig
    from maw.hf.model import MAWModel

    module.AutoModel.register(MAWModelConfig, MAWModel, exist_ok=True)


WAITING: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_model,
}


class _AfterImport(importlib.abc.MetaPathFinder):
    """Runs the waiting registration right after its module has been imported, then steps aside."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        action = WAITING.pop(name, None)
        if action is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_then_register(module: ModuleType) -> None:
            execute(module)
            action(module)

        spec.loader.exec_module = execute_then_register
        return spec


def register_model_type() -> None:
    """Register `maw` with Transformers now, or when it is imported."""
    for name in list(WAITING):
        if name in sys.modules:
            WAITING.pop(name)(sys.modules[name])
    if WAITING and not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())
