"""LoRA beside MAW: MAW is attached first, then the adapter is added; both live in one folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from maw.errors import MAWError

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

__all__ = ["lora_config", "merge_lora", "restore_adapter", "wake_adapter"]


def lora_config(model: nn.Module, **changes: Any) -> LoraConfig:
    """A LoRA configuration for an encoder: on query, key and value projections; MAW, where there is some, in full.

    Args:
        model: the encoder, with or without MAW.
        changes: any argument of `peft.LoraConfig`; `target_modules` is needed for families that MAW does not know. MAW
            stays in `modules_to_save` whatever it names, which also keeps LoRA out of MAW's own linear layers whatever
            `target_modules` names.

    Returns:
        rank 16, alpha 32, dropout 0.1 on query, key and value; `modules_to_save=["maw"]` if the model carries MAW.

    Raises:
        MAWError: the names of the projections are not known.
    """
    from peft import LoraConfig

    from maw.hf.attach import has_maw

    settings: dict[str, Any] = {
        "r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.1,
        "bias": "none",
    }
    if "target_modules" not in changes:
        settings["target_modules"] = _projections(model)
    settings |= changes
    if has_maw(model):
        settings["modules_to_save"] = sorted({"maw", *(settings.get("modules_to_save") or ())})
    return LoraConfig(**settings)


def _projections(model: nn.Module) -> list[str]:
    """The names of the query, key and value projections in the encoder that `model` is or holds."""
    from transformers import PreTrainedModel

    from maw.hf.hosts import FAMILIES

    held = [part.config.model_type for part in model.modules() if isinstance(part, PreTrainedModel)]
    known = [FAMILIES[kind] for kind in held if kind in FAMILIES]
    if not known:
        raise MAWError(
            f"lora_config knows the projections of {', '.join(FAMILIES)}, and found none of them in this "
            f"{type(model).__name__} ({', '.join(held) or 'no encoder'}): give target_modules"
        )
    return list(known[0].projections)


def merge_lora(model: nn.Module) -> None:
    """Add the adapter's weights into the host's projections, in place; MAW stays, no PEFT layer remains.

    Args:
        model: an encoder or a SentenceTransformer with an adapter.

    Raises:
        MAWError: there is no adapter.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper
    from transformers import PreTrainedModel

    wrapped = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, (BaseTunerLayer, ModulesToSaveWrapper))
    ]
    if not any(isinstance(module, BaseTunerLayer) for _, module in wrapped):
        raise MAWError(f"there is no LoRA adapter in this {type(model).__name__}: nothing to merge")
    for name, module in wrapped:
        parent, _, child = name.rpartition(".")
        if isinstance(module, ModulesToSaveWrapper):
            plain = module.modules_to_save[module.active_adapters[0]]
        else:
            module.merge(safe_merge=True)
            plain = module.get_base_layer()
        setattr(model.get_submodule(parent), child, plain)
    for encoder in model.modules():
        if isinstance(encoder, PreTrainedModel) and getattr(encoder, "_hf_peft_config_loaded", False):
            encoder._hf_peft_config_loaded = False
            del encoder.peft_config
    model.requires_grad_(True)


def restore_adapter(model: PreTrainedModel, settings: dict[str, Any]) -> None:
    """Add the adapter a `config.json` names, empty; its weights are loaded with the model's."""
    try:
        from peft import PeftConfig
    except ImportError:
        raise MAWError("this folder holds a LoRA adapter: install peft (pip install peft) to load it") from None
    from transformers import PreTrainedModel

    PreTrainedModel.add_adapter(model, PeftConfig.from_peft_type(**settings))  # of older folders any adapter
    # Transformers would otherwise look for adapter files while it loads this model's own weights.
    model._hf_peft_config_loaded = False


def wake_adapter(model: PreTrainedModel) -> None:
    """After loading: the adapter is active, and it and MAW alone are trainable, as when they were saved."""
    model._hf_peft_config_loaded = True
    model.requires_grad_(False)
    model.set_adapter(next(iter(model.peft_config)))
