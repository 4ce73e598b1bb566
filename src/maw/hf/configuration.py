"""`MAWModelConfig`: a host's own config with MAW's settings around it, as `config.json` holds them."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from maw.config import MAWConfig

__all__ = ["MAWModelConfig"]


class MAWModelConfig(PreTrainedConfig):
    """Config of a `MAWModel`: the host's config inside, MAW's settings and an adapter's beside it.

    Args:
        backbone: the host's config, as an object or as a dictionary with its `model_type`.
        maw: `MAWConfig` as a dictionary.
        adapter: the settings of a PEFT adapter that was added after MAW, or None.
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
        if isinstance(backbone, dict):
            backbone = AutoConfig.for_model(**backbone)
        # transformers builds an empty config to find defaults; it has no host
        self.backbone = backbone if backbone is not None else PreTrainedConfig()
        self.maw = MAWConfig.from_dict(maw or {}).to_dict()
        self.adapter = adapter
        super().__init__(**kwargs)

    @property
    def maw_config(self) -> MAWConfig:
        """MAW's settings."""
        return MAWConfig.from_dict(self.maw)

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """The host's config, which knows the sizes."""
        return self.backbone

    @property
    def hidden_size(self) -> int:
        """M of the host."""
        return self.backbone.hidden_size

    @property
    def max_position_embeddings(self) -> int:
        """The longest text the host takes, in tokens."""
        return self.backbone.max_position_embeddings


AutoConfig.register(MAWModelConfig.model_type, MAWModelConfig, exist_ok=True)
