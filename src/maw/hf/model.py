"""`MAWModel`: a host encoder with MAW inside as a Transformers model of its own, so that it saves and loads exactly.

A host that only had its layers changed would save MAW's weights and silently drop them on reload. A registered config
and model class around it is the supported way: `AutoModel.from_pretrained` and `SentenceTransformer` find it by its
model type, `maw`, once this package is imported. Each folder has a small file that imports it, for who loads it with
`trust_remote_code=True` instead.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from maw.config import MAWConfig
from maw.errors import MAWError
from maw.hf.attach import has_maw, insert
from maw.hf.checksums import check_tensors, note_tensors
from maw.hf.configuration import MAWModelConfig
from maw.hf.folders import CHECKSUMS
from maw.hf.loading import check_config, check_loaded, weight_files

__all__ = ["MAWModel"]


class MAWModel(PreTrainedModel):
    """A host encoder with MAW in some of its layers; its inputs, outputs, settings and parts are the host's.

    `model.config` reads and sets the host's config, and what this class has not is looked up, and set, in the host:
    `model.encoder` is `model.backbone.encoder`.

    Args:
        config: what `config.json` holds.
        backbone: an encoder that already carries MAW; None builds one from `config`.
    """

    config_class = MAWModelConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict: set[str] | list[str] | None = [  # noqa: RUF012 (as Transformers declares it)
        *("maw", "lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")
    ]

    def __init__(self, config: MAWModelConfig, backbone: PreTrainedModel | None = None) -> None:
        if backbone is None:  # before anything else: the host chooses its attention implementation
            backbone = AutoModel.from_config(config.backbone)
            insert(backbone, config.maw_config)
        config.backbone = backbone.config  # `from_config` made a copy, which the host reads
        super().__init__(config)
        self.backbone = backbone
        self.supports_gradient_checkpointing = backbone.supports_gradient_checkpointing
        self.post_init()
        if config.adapter is not None:
            from maw.hf.lora import restore_adapter

            restore_adapter(self, config.adapter)

    @classmethod
    def around(cls, backbone: PreTrainedModel, maw: MAWConfig) -> MAWModel:
        """A model around a host that already carries MAW; saved alone, the host would lose it (`refuse_to_lose`)."""
        model = cls(MAWModelConfig(backbone=backbone.config, maw=maw.to_dict()), backbone)
        model.train(backbone.training)
        model.name_or_path = backbone.name_or_path
        return model

    def init_weights(self) -> None:
        """Nothing: host and MAW initialised themselves, and again would undo MAW's uniform start."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args: Any,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The host's forward; the usual inputs are named for those who read signatures, such as `torch.export`."""
        named = {"token_type_ids": token_type_ids, "position_ids": position_ids, "inputs_embeds": inputs_embeds}
        given = {name: value for name, value in named.items() if value is not None} | kwargs
        if args:
            return self.backbone(input_ids, attention_mask, *args, **given)
        return self.backbone(input_ids=input_ids, attention_mask=attention_mask, **given)

    def __getattr__(self, name: str) -> Any:
        """What only the host has: its parts and its own methods."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            # names with an underscore are flags that Transformers and torch keep with each module
            if name.startswith("_") or "backbone" not in self._modules:
                raise
            return getattr(self.backbone, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if self._is_only_the_hosts(name):
            setattr(self.backbone, name, value)
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if self._is_only_the_hosts(name):
            delattr(self.backbone, name)
        else:
            super().__delattr__(name)

    def _is_only_the_hosts(self, name: str) -> bool:
        modules = vars(self).get("_modules", {})
        if name.startswith("_") or name in vars(self) or name in modules or hasattr(type(self), name):
            return False
        return "backbone" in modules and hasattr(self.backbone, name)

    def set_attn_implementation(self, attn_implementation: str | dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Set the host's attention implementation, by the host's own rules."""
        if isinstance(attn_implementation, dict):
            attn_implementation = attn_implementation.get("backbone", attn_implementation)
        self.backbone.set_attn_implementation(attn_implementation, *args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """The host's token embeddings."""
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Set the host's token embeddings."""
        self.backbone.set_input_embeddings(value)

    def add_adapter(self, adapter_config: Any, adapter_name: str | None = None) -> None:
        """Add a PEFT adapter beside MAW, which stays trainable in full.

        It has the type that `peft.get_peft_model` gives adapters: float32 in any host.

        Args:
            adapter_config: such as `maw.lora_config(model)`.
            adapter_name: None is "default".

        Raises:
            MAWError: the adapter would freeze MAW, or sit inside it: its `modules_to_save` does not name "maw".
        """
        if "maw" not in (getattr(adapter_config, "modules_to_save", None) or ()):
            raise MAWError(
                "this adapter would freeze MAW: its modules_to_save does not name 'maw'. Take maw.lora_config(model, "
                f"...) with the same arguments, or give the {type(adapter_config).__name__} modules_to_save=['maw']; "
                "to train the adapter alone, freeze MAW afterwards by requires_grad_(False)"
            )
        from peft.tuners.tuners_utils import cast_adapter_dtype

        super().add_adapter(adapter_config, adapter_name)
        cast_adapter_dtype(self, adapter_name or "default")

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save everything into one folder: host, MAW and, where there is one, the adapter; and checksums of it."""
        adapters = getattr(self, "peft_config", {})
        if len(adapters) > 1:
            raise MAWError(f"a folder holds one adapter, this model has {sorted(adapters)}: delete or merge the others")
        self.config.adapter = next((_plain(adapter) for adapter in adapters.values()), None)
        self.config.backbone.architectures = [type(self.backbone).__name__]  # what its weights are
        loaded, self._hf_peft_config_loaded = getattr(self, "_hf_peft_config_loaded", False), False
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self._hf_peft_config_loaded = loaded
        if kwargs.get("is_main_process", not args or args[0]):
            (Path(save_directory) / CHECKSUMS).unlink(missing_ok=True)  # of what was there before
            note_tensors(Path(save_directory), kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Nothing: Transformers would copy this module into each folder, and it cannot stand alone there."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a folder written by `save_pretrained`.

        Raises:
            MAWError: tensors of the host, of MAW or of an adapter are missing in the folder, are there and fit
                nowhere, have another shape, hold whole numbers or NaN, or are not those that were saved.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        allowed = kwargs.pop("ignore_mismatched_sizes", False)
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
        model, info = loaded
        if model.config.adapter is not None:
            from maw.hf.lora import wake_adapter

            wake_adapter(model)
        name = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        check_config(name, model.config.backbone)
        checked = {**info, "mismatched_keys": set()} if allowed else info
        files = weight_files(name, kwargs)
        check_loaded(model, checked, name, files)
        check_tensors(name, files, kwargs)
        return (model, info) if wants_info else model


def _plain(adapter: Any) -> dict[str, Any]:
    """A PEFT config as JSON values (it holds sets); not where its base model was: that is in the same folder."""
    return {
        name: sorted(value) if isinstance(value, set) else value
        for name, value in adapter.to_dict().items()
        if value is not None and name != "base_model_name_or_path"
    }


# Everything but `MAWModel` is saved by its own class, which knows nothing of MAW: the folder would be written, and be
# loaded without MAW or with a new encoder, with no more than a warning among others


def refuse_to_lose(model: PreTrainedModel) -> None:
    """Raise where a folder that `model` is saved into would lose MAW.

    Raises:
        MAWError: it is a host that carries MAW, or holds one, such as a task model.
    """
    if isinstance(model, MAWModel) or not has_maw(model):
        return
    kind = type(model).__name__
    if model.base_model is model and not any(isinstance(part, MAWModel) for part in model.modules()):
        raise MAWError(
            "this encoder carries MAW in its layers; saved alone it would lose it on reload: "
            "save the model that maw.attach returned (`attachment.model.save_pretrained(folder)`), or detach MAW first"
        )
    raise MAWError(
        f"this {kind} holds MAW in its encoder and cannot be saved with it yet: what is loaded from its folder would "
        "have lost MAW, or the whole encoder. Save the encoder that maw.attach returned "
        "(`attachment.model.save_pretrained(folder)`) and the head by torch.save, or take MAW out first (maw.detach)"
    )


def _refusing(save: Any) -> Any:
    @functools.wraps(save)
    def save_pretrained(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        refuse_to_lose(self)
        return save(self, *args, **kwargs)

    return save_pretrained


setattr(PreTrainedModel, "save_pretrained", _refusing(PreTrainedModel.save_pretrained))  # noqa: B010 (for types)
AutoModel.register(MAWModelConfig, MAWModel, exist_ok=True)
