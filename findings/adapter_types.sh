#!/usr/bin/env bash
# Fact: on a bfloat16 or float16 encoder, one and the same LoraConfig gives float32 adapters through
#   peft.get_peft_model and PeftModel.from_pretrained, but adapters of the encoder's type through Transformers'
#   add_adapter and load_adapter, and through Sentence Transformers' add_adapter.
# Why a good guess errs: Transformers hands the config to PEFT, so the two look like two spellings of one call, and PEFT
#   documents that it raises adapters to float32. That is done by get_peft_model's own class, which Transformers goes past.
# Whom it hits: comparisons of runs made in the two ways, and training in bfloat16: an update below about 1/512 of a weight
#   is lost. Raise the adapter's parameters to float32 yourself after add_adapter.
# Source: transformers/integrations/peft.py (add_adapter, load_adapter), peft/tuners/tuners_utils.py
#   (cast_adapter_dtype), sentence_transformers/base/peft_mixin.py (passes on to Transformers); PEFT's page on
#   troubleshooting, the part on the dtype of the adapter.
set -euo pipefail
packages="torch==2.13.0 transformers==5.23.0 peft==0.21.2"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
environment=${FINDINGS_VENV:-$folder/venv}
if [ ! -x "$environment/bin/python" ]; then
    python3 -m venv "$environment"
    # shellcheck disable=SC2086
    "$environment/bin/pip" install -q $packages
fi
cd "$folder"
HF_HUB_OFFLINE=1 TQDM_DISABLE=1 TRANSFORMERS_VERBOSITY=error "$environment/bin/python" -W ignore - <<'END'
import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import BertConfig, BertModel

print("transformers", transformers.__version__, "peft", peft.__version__, "torch", torch.__version__)
sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
BertModel(BertConfig(vocab_size=20, **sizes)).save_pretrained("encoder")


def types(model):
    return {str(weights.dtype) for name, weights in model.named_parameters() if "lora_" in name}


for dtype in (torch.bfloat16, torch.float16):
    def encoder(dtype=dtype):
        return BertModel.from_pretrained("encoder", dtype=dtype)

    config = LoraConfig(target_modules=["query"])
    wrapped = get_peft_model(encoder(), config)
    wrapped.save_pretrained("adapter")
    added, loaded = encoder(), encoder()
    added.add_adapter(config)
    loaded.load_adapter("adapter")
    seen = {
        "get_peft_model": types(wrapped),
        "PeftModel.from_pretrained": types(PeftModel.from_pretrained(encoder(), "adapter")),
        "add_adapter": types(added),
        "load_adapter": types(loaded),
    }
    print(f"{dtype} encoder:", seen)
    expected = dict(zip(seen, [{"torch.float32"}] * 2 + [{str(dtype)}] * 2, strict=True))
    assert seen == expected, f"changed: expected {expected}"
END
