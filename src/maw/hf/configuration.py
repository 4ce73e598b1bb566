"""`MAWModelConfig`: a host's own config with MAW's settings around it, as `config.json` holds them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from maw.config import MAWConfig

__all__ = ["MAWModelConfig"]

OWN = frozenset({"adapter", "architectures", "auto_map", "backbone", "maw", "model_type", "transformers_version"})
"""What this config keeps itself. Whatever else is read, set or deleted is the host's, and is held there alone."""


CODE = Path(__file__).with_name("modeling_maw.py")
"""Goes into every saved folder: with `trust_remote_code=True` Transformers reads it, and it imports maw."""

AUTO_MAP = {"AutoConfig": f"{CODE.stem}.MAWModelConfig", "AutoModel": f"{CODE.stem}.MAWModel"}


class MAWModelConfig(PreTrainedConfig):
    """Config of a `MAWModel`: the host's config inside, MAW's settings and an adapter's beside it.

    Any setting of the host is read and set here as in the host's own config, which alone holds it.

    Args:
        backbone: the host's config, as an object or as a dictionary with its `model_type`.
        maw: `MAWConfig` as a dictionary.
        adapter: the settings of a PEFT adapter that was added after MAW, or None.
        kwargs: settings of the host, which go before those in `backbone`.

    >>> from transformers import BertConfig
    >>> config = MAWModelConfig(BertConfig(hidden_size=24), num_hidden_layers=2)
    >>> config.output_hidden_states = True
    >>> config.backbone.num_hidden_layers, config.backbone.output_hidden_states, config.hidden_size
    (2, True, 24)
    """

    model_type = "maw"
    sub_configs: ClassVar = {"backbone": AutoConfig}
    is_composition = True

    def __init__(
        self,
        backbone: PreTrainedConfig | dict[str, Any] | None = None,
        maw: dict[str, Any] | None = None,
        adapter: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        for name in ("model_type", "auto_map"):  # in a file; both are always the same
            kwargs.pop(name, None)
        kwargs.pop("tensors", None)  # the file's, which `maw.hf.checksums` reads: not what will be saved
        own = {name: kwargs.pop(name) for name in OWN & kwargs.keys()}
        super().__init__(**own)
        if isinstance(backbone, dict):  # as the host's config would take them, were they in its own file
            backbone, kwargs = AutoConfig.for_model(**{**backbone, **kwargs}), {}
        for name in vars(self).keys() - OWN:
            del vars(self)[name]
        # transformers builds an empty config to find defaults; it has no host
        self.backbone = backbone if backbone is not None else PreTrainedConfig()
        self.maw = MAWConfig.from_dict(maw or {}).to_dict()
        self.adapter = adapter
        for name, value in kwargs.items():
            setattr(self, "_attn_implementation" if name == "attn_implementation" else name, value)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The config that a file holds; `maw={"noise": 0.0}` given beside it changes what it names and no more."""
        given = kwargs.pop("maw", None) or {}
        return super().from_dict({**config_dict, "maw": {**config_dict.get("maw", {}), **given}}, **kwargs)

    @property
    def maw_config(self) -> MAWConfig:
        """MAW's settings."""
        return MAWConfig.from_dict(self.maw)

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """The host's config, which knows the sizes."""
        return vars(self).get("backbone", self)

    def validate(self) -> None:
        """Raise where the host's settings contradict each other, as its own config does when it is saved."""
        vars(self).get("backbone", super()).validate()

    def to_diff_dict(self) -> dict[str, Any]:
        """What `config.json` holds; of the host, what its own file would hold."""
        host = self.backbone.to_diff_dict()
        host.pop("transformers_version", None)
        return {**super().to_diff_dict(), "backbone": host, "auto_map": AUTO_MAP}

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write `config.json`, and beside it the file that lets a process without `import maw` load the folder."""
        super().save_pretrained(save_directory, *args, **kwargs)
        shutil.copyfile(CODE, Path(save_directory) / CODE.name)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Nothing: Transformers would copy this module into each folder, and it cannot stand alone there."""

    # A setting that Transformers computes from others, such as `num_labels`, is computed here from the host's

    def __getattribute__(self, key: str) -> Any:
        if key not in OWN and not key.startswith("__"):
            backbone = vars(self).get("backbone")
            if backbone is not None and key in vars(backbone):
                return getattr(backbone, key)
        return super().__getattribute__(key)

    def __getattr__(self, name: str) -> Any:
        """What this class does not know, such as the other names that a host has for its settings."""
        backbone = vars(self).get("backbone")
        if backbone is None or name in OWN or name.startswith("__"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(backbone, name)

    def __setattr__(self, key: str, value: Any) -> None:
        if self._held_here(key):
            super().__setattr__(key, value)
        else:
            setattr(self.backbone, key, value)

    def __delattr__(self, name: str) -> None:
        if self._held_here(name):
            super().__delattr__(name)
        else:
            delattr(self.backbone, name)

    def _held_here(self, name: str) -> bool:
        computed = isinstance(getattr(type(self), name, None), property)
        return name in OWN or computed or "backbone" not in vars(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MAWModelConfig) and vars(self) == vars(other)

    __hash__ = None


AutoConfig.register(MAWModelConfig.model_type, MAWModelConfig, exist_ok=True)
