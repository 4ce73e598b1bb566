#!/usr/bin/env bash
# Fact: in one call of ir_measures, RR and RR@10 rank documents of equal score in opposite orders: RR (with P, AP, nDCG)
#   puts the greater document id first, RR@10 the smaller. Scores that differ by less than float32 resolves are
#   equal for RR and differ for RR@10.
# Why a good guess errs: a cutoff should only cut off, and one library should have one rule for ties. But pytrec_eval has
#   no reciprocal rank with a cutoff, so RR@10 goes on, unsaid, to another implementation, that of MS MARCO.
# Whom it hits: whoever reports MRR@10 beside nDCG@10 for runs with many ties: int8 or bfloat16 scores, BM25, copies of
#   a passage. MRR@10 may be 1 where P@1 is 0. Break ties yourself, by scores that float32 keeps apart.
# Source: ir_measures/__init__.py (the order of providers), providers/pytrec_eval_provider.py (RR only without a
#   cutoff), providers/msmarco_provider.py (the sort); the documentation's page of providers lists each one's measures.
set -euo pipefail
packages="ir_measures==0.4.3 pytrec_eval-terrier==0.5.11"
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
from importlib.metadata import version

import ir_measures
from ir_measures import RR, P, nDCG

print("ir_measures", version("ir_measures"), "pytrec_eval-terrier", version("pytrec_eval-terrier"))
qrels = {"q": {"a": 1}}
runs = {
    "tie, relevant document first": {"q": {"a": 1.0, "b": 1.0}},
    "tie, relevant document last": {"q": {"b": 1.0, "a": 1.0}},
    "relevant document ahead by 1e-9": {"q": {"a": 1.0 + 1e-9, "b": 1.0}},
    "relevant document behind by 1e-9": {"q": {"a": 1.0, "b": 1.0 + 1e-9}},
    "relevant document ahead by 1e-3": {"q": {"a": 1.0 + 1e-3, "b": 1.0}},
}
expected = {name: {"RR": 0.5, "RR@10": 1.0, "P@1": 0.0, "nDCG@10": 0.63} for name in runs}
expected["relevant document behind by 1e-9"]["RR@10"] = 0.5
expected["relevant document ahead by 1e-3"] = dict.fromkeys(["RR", "RR@10", "P@1", "nDCG@10"], 1.0)
for name, run in runs.items():
    means = ir_measures.calc_aggregate([RR, RR @ 10, P @ 1, nDCG @ 10], qrels, run)
    seen = {str(measure): round(value, 2) for measure, value in means.items()}
    print(f"{name}: {seen}")
    assert seen == expected[name], f"changed: expected {expected[name]}"
END
