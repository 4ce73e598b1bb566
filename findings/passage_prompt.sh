#!/usr/bin/env bash
# Fact: SentenceTransformer(..., prompts={"query": ..., "passage": ...}), the very example of its documentation, gives
#   encode_document() no prompt at all. Prompts set as an attribute work, until the model is saved and loaded.
# Why a good guess errs: encode_document is documented to take the first available of "document", "passage", "corpus";
#   nobody gave "document", so "passage" should be it. But the constructor puts an empty "document" among the prompts, and
#   an empty prompt counts as available.
# Whom it hits: models of the E5 kind, whose passages need their prompt; they lose quality and say nothing.
#   Name the prompt "document" instead.
# Source: sentence_transformers/sentence_transformer/model.py (_default_prompts, encode_document) and base/model.py
#   (_validate_prompts); the example stands under `prompts` in the documentation of SentenceTransformer.
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
import numpy as np
import sentence_transformers
import torch
import transformers
from sentence_transformers import SentenceTransformer
from transformers import BertConfig, BertModel, BertTokenizerFast

print("sentence-transformers", sentence_transformers.__version__, "transformers", transformers.__version__)
torch.manual_seed(0)
words = "[PAD] [UNK] [CLS] [SEP] [MASK] query passage : red green blue".split()
sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained("encoder")
BertTokenizerFast(vocab={word: number for number, word in enumerate(words)}).save_pretrained("encoder")
prompts = {"query": "query: ", "passage": "passage: "}


def passage_prompt_is_used(model):
    vector = model.encode_document("red green")
    used, bare = (model.encode("red green", prompt=prompt) for prompt in (prompts["passage"], ""))
    assert not np.allclose(used, bare, atol=1e-3)
    assert np.allclose(vector, used, atol=1e-6) or np.allclose(vector, bare, atol=1e-6)
    return np.allclose(vector, used, atol=1e-6)


given = SentenceTransformer("encoder", prompts=prompts, device="cpu")
later = SentenceTransformer("encoder", device="cpu")
later.prompts = dict(prompts)
later.save_pretrained("saved")
loaded = SentenceTransformer("saved", device="cpu")
seen = {}
for name, model in (("given to the constructor", given), ("set as an attribute", later), ("loaded again", loaded)):
    seen[name] = passage_prompt_is_used(model)
    print(f"{name}: {model.prompts}, encode_document uses the passage prompt: {seen[name]}")
expected = {"given to the constructor": False, "set as an attribute": True, "loaded again": False}
assert seen == expected, f"changed: expected {expected}"
END
