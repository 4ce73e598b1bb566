#!/usr/bin/env bash
# Fact: hooks on the encoder inside a SentenceTransformer (model[0].model.register_forward_hook, and pre-hooks) never
#   run in encode(), nor when the model is called. Hooks on model[0] and on the encoder's own parts run.
# Why a good guess errs: a module called by another is called, so its hooks run. Here the wrapper looks up the method to
#   use by its name and calls encoder.forward(...) itself, which goes past PyTorch's __call__ and all that hangs on it.
# Whom it hits: whoever records, replaces or measures hidden states with a hook on the encoder: the list stays empty, or
#   the change is not made. Hook model[0], or model[0].model.encoder and deeper.
# Source: sentence_transformers/base/modules/transformer.py, Transformer.forward (getattr(self.model, method_name)), and
#   the note on hooks under torch.nn.Module.forward in PyTorch's documentation.
set -euo pipefail
packages="torch==2.13.0 transformers==5.23.0 sentence-transformers==6.2.0"
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
import sentence_transformers
import torch
import transformers
from sentence_transformers import SentenceTransformer
from transformers import BertConfig, BertModel, BertTokenizerFast

print("sentence-transformers", sentence_transformers.__version__, "transformers", transformers.__version__)
words = "[PAD] [UNK] [CLS] [SEP] [MASK] red green blue".split()
sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained("encoder")
BertTokenizerFast(vocab={word: number for number, word in enumerate(words)}).save_pretrained("encoder")

model = SentenceTransformer("encoder", device="cpu")
ran = set()
encoder = model[0].model
encoder.register_forward_pre_hook(lambda *_: ran.add("before the encoder"))
encoder.register_forward_hook(lambda *_: ran.add("after the encoder"))
encoder.encoder.register_forward_hook(lambda *_: ran.add("after its layers"))
model[0].register_forward_hook(lambda *_: ran.add("after model[0]"))
expected = {"after its layers", "after model[0]"}

model.encode("red green")
print("encode() runs the hooks", sorted(ran))
assert ran == expected, f"changed: expected {expected}"
ran.clear()
model(model.preprocess(["red green"]))
print("calling the model runs the hooks", sorted(ran))
assert ran == expected, f"changed: expected {expected}"
ran.clear()
encoder(torch.tensor([[2, 5, 3]]))
print("calling the encoder runs the hooks", sorted(ran))
assert {"before the encoder", "after the encoder"} <= ran, "the hooks themselves are sound"
END
