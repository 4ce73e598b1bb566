#!/usr/bin/env bash
# Fact: LoRA on an input embedding that is tied to the output layer: merging moves the output layer too, so the merged
#   model gives other logits than the model that was trained. PEFT warns for a Llama and says nothing for a BERT.
# Why a good guess errs: PEFT is known to warn of tied layers, so no warning reads as "not tied" or "taken care of". The
#   warning looks for two names, embed_tokens and lm_head; BERT's word_embeddings and decoder are not among them.
# Whom it hits: those who adapt an encoder's embedding for a masked language model or SPLADE and merge it for use.
#   Untie the weights before, or compare the logits before and after merging.
# Source: peft/tuners/tuners_utils.py (_get_tied_target_modules) and peft/utils/constants.py (EMBEDDING_LAYER_NAMES);
#   the documentation of LoraConfig under ensure_weight_tying.
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
import warnings

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

print("transformers", transformers.__version__, "peft", peft.__version__, "torch", torch.__version__)
torch.manual_seed(0)
sizes = dict(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
models = {
    "word_embeddings": BertForMaskedLM(BertConfig(**sizes)),
    "embed_tokens": LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, **sizes)),
}
ids = torch.tensor([[5, 6, 7]])
seen = {}
for target, model in models.items():
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    with warnings.catch_warnings(record=True) as told, torch.no_grad():
        warnings.simplefilter("always")
        adapted = get_peft_model(model, LoraConfig(target_modules=[target])).eval()
        for name, weights in adapted.named_parameters():
            if "lora_" in name:
                weights.normal_(std=0.1)  # as if trained
        before = adapted(ids).logits
        after = adapted.merge_and_unload()(ids).logits
    change = (before - after).abs().max().item()
    warned = any("tie_word_embeddings" in str(warning.message) for warning in told)
    print(f"{type(model).__name__}: merging changes logits by up to {change:.2f}, PEFT warned: {warned}")
    seen[target] = (change > 0.01, warned)
expected = {"word_embeddings": (True, False), "embed_tokens": (True, True)}
assert seen == expected, f"changed: expected {expected}"
END
