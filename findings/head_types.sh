#!/usr/bin/env bash
# Fact: get_peft_model on a bfloat16 model raises LoRA's weights to float32 but not the modules trained whole beside
#   them: modules_to_save, and the classifier that task_type="SEQ_CLS" adds to them, stay bfloat16.
# Why a good guess errs: autocast_adapter_dtype=True is said to raise the adapter's weights for stable training, and
#   modules_to_save are trained and saved as part of the adapter. The cast walks over LoRA's layers only.
# Whom it hits: cross-encoders, classifiers and new poolers: the one part that starts from random numbers takes its small
#   steps in bfloat16 and stands still (shown below: 100 steps of 0.001 from 1.0). Raise it to float32 yourself.
# Source: peft/tuners/tuners_utils.py, cast_adapter_dtype (only BaseTunerLayer); the documentation of
#   autocast_adapter_dtype under get_peft_model.
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
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

print("transformers", transformers.__version__, "peft", peft.__version__, "torch", torch.__version__)
sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
model = BertForSequenceClassification(BertConfig(vocab_size=20, num_labels=1, **sizes)).to(torch.bfloat16)
model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["query"], modules_to_save=["pooler"]))

seen = {"LoRA": set(), "pooler": set(), "classifier": set()}
for name, weights in model.named_parameters():
    if weights.requires_grad:
        part = next(part for part in ("pooler", "classifier", "LoRA") if part in name or part == "LoRA")
        seen[part].add(str(weights.dtype))
print("what trains:", seen)
expected = {"LoRA": {"torch.float32"}, "pooler": {"torch.bfloat16"}, "classifier": {"torch.bfloat16"}}
assert seen == expected, f"changed: expected {expected}"

head = next(weights for name, weights in model.named_parameters() if "classifier.modules_to_save" in name)
with torch.no_grad():
    head.fill_(1)
optimizer = torch.optim.SGD([head], lr=1e-3)
for _ in range(100):
    head.grad = torch.ones_like(head)
    optimizer.step()
moved = 1 - head.float().mean().item()
print(f"100 steps of 0.001 moved the classifier's weights by {moved} (0.1 in float32)")
assert moved == 0, "changed: expected 0.0"
END
