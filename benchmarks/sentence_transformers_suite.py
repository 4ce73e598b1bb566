"""Sentence Transformers' own tests, on plain MiniLM and on MiniLM with MAW: which outcomes differ?

    python benchmarks/sentence_transformers_suite.py CHECKOUT [--output FILE.json] [--commit COMMIT] [FILE ...]

CHECKOUT is a checkout of the Sentence Transformers repository, of which only `tests/` is used: it is copied, and run
against the installed package. The tests load models from the hub. Here they find a cache in the hub's layout, made from
the packaged MiniLM: itself, and its first two layers cut to 128 channels for the hub's test models of that size. A test
that needs another model, another data set, or the network, cannot run. FILE names test files below `tests/`; the
default is those about what carries MAW.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from maw.commands import quiet_libraries
from maw.retrieval.models import packaged_encoder

FILES = (
    "base/test_model.py",
    "base/test_trainer.py",
    "base/test_model_card.py",
    "base/test_data_collator.py",
    "base/test_model_type_subclass.py",
    "base/test_modality.py",
    "base/modules/test_router.py",
    "base/modules/test_transformer.py",
    "base/modules/test_dense.py",
    "base/modules/test_input_module.py",
    "sentence_transformer/losses",
    "sentence_transformer/evaluation",
    "sentence_transformer/modules",
    "sentence_transformer/test_model.py",
    "sentence_transformer/test_model_card.py",
    "sentence_transformer/test_model_card_data.py",
    "sentence_transformer/test_trainer.py",
    "sentence_transformer/test_training_args.py",
    "sentence_transformer/test_compute_embeddings.py",
    "sentence_transformer/test_train_stsb.py",
    "multi_vector_encoder/test_model.py",
    "multi_vector_encoder/test_trainer.py",
    "sparse_encoder/test_model.py",
    "util/test_hard_negatives.py",
    "util/test_retrieval.py",
)
SHA = "0" * 40
TINY = "sentence-transformers-testing/stsb-bert-tiny-safetensors"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
ALIASES = ("sentence-transformers/paraphrase-distilroberta-base-v1", "sentence-transformers/paraphrase-MiniLM-L6-v2")
ENCODERS = ("distilbert/distilbert-base-uncased", "google-bert/bert-base-uncased", "nreimers/MiniLM-L6-H384-uncased")
ABSENT = re.compile(
    r"OfflineModeIsEnabled|LocalEntryNotFound|[Oo]ffline mode|couldn't connect|no hub here"
    r"|Cannot find the requested files|Cannot send a request|not a valid model identifier|No module named"
    r"|requires the .* library|pip install"
    r"|[Cc]annot find an appropriate cached|Connection|is not installed|not a local folder"
)
"""What an outcome says that comes of a model, data set or package that is not there."""


def build_hub(folder: Path) -> None:
    """A cache of models in the layout of the hub's own, so that each is found by its name."""
    from peft import LoraConfig
    from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling, StaticEmbedding, Transformer
    from sentence_transformers.sparse_encoder.modules import SpladePooling
    from transformers import (
        AutoTokenizer,
        BertForMaskedLM,
        BertForSequenceClassification,
        LlamaConfig,
        LlamaForCausalLM,
    )

    def snapshot(name: str) -> Path:
        repository = folder / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(SHA)
        return repository / "snapshots" / SHA

    for name in (MINILM, *ALIASES):
        shutil.copytree(packaged_encoder(), snapshot(name))
    tokenizer = AutoTokenizer.from_pretrained(packaged_encoder())
    for name in ENCODERS:
        SentenceTransformer(str(packaged_encoder()), device="cpu")[0].model.save_pretrained(snapshot(name))
        tokenizer.save_pretrained(folder / f"models--{name.replace('/', '--')}" / "snapshots" / SHA)
    tiny = _tiny_bert()
    bare = folder / "tiny"
    tiny.save_pretrained(bare)
    tokenizer.save_pretrained(bare)
    transformer = Transformer(str(bare))
    pooling = Pooling(transformer.get_embedding_dimension())
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(snapshot(TINY)))
    dense = [Transformer(str(bare)), pooling, Dense(128, 128)]
    name = "sentence-transformers-testing/all-nli-bert-tiny-dense"
    SentenceTransformer(modules=dense, device="cpu").save(str(snapshot(name)))
    adapted = Transformer(str(bare)).model
    adapted.add_adapter(LoraConfig(target_modules=["query", "value"], r=4, init_lora_weights=False))
    adapter = snapshot("sentence-transformers-testing/stsb-bert-tiny-lora")
    adapted.save_pretrained(adapter)
    settings = adapter / "adapter_config.json"
    settings.write_text(settings.read_text().replace(json.dumps(str(bare)), json.dumps(TINY)))
    words = StaticEmbedding(tokenizer, embedding_dim=300)
    name = "sentence-transformers/average_word_embeddings_levy_dependency"
    SentenceTransformer(modules=[words], device="cpu").save(str(snapshot(name)))
    name = "hf-internal-testing/tiny-random-LlamaForCausalLM"
    sizes = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    llama = LlamaConfig(vocab_size=tokenizer.vocab_size, pad_token_id=0, bos_token_id=101, eos_token_id=102, **sizes)
    LlamaForCausalLM(llama).save_pretrained(snapshot(name))
    tokenizer.save_pretrained(folder / f"models--{name.replace('/', '--')}" / "snapshots" / SHA)
    for name, kind, labels in (
        ("cross-encoder-testing/reranker-bert-tiny-gooaq-bce", BertForSequenceClassification, 1),
        ("sparse-encoder-testing/splade-bert-tiny-nq", BertForMaskedLM, 2),
    ):
        tiny.config.num_labels = labels
        headed = kind(tiny.config)
        headed.bert.load_state_dict(tiny.state_dict(), strict=False)
        headed.save_pretrained(bare)
        if labels == 1:
            CrossEncoder(str(bare), device="cpu").save(str(snapshot(name)))
        else:
            masked = Transformer(str(bare), transformer_task="fill-mask")
            SparseEncoder(modules=[masked, SpladePooling("max")], device="cpu").save(str(snapshot(name)))


def _tiny_bert() -> Any:
    """MiniLM's first two layers, cut to 128 channels: 4 heads of 32, and 512 channels between."""
    from transformers import AutoModel, BertModel

    whole = AutoModel.from_pretrained(packaged_encoder())
    config = whole.config
    config.hidden_size, config.num_hidden_layers, config.num_attention_heads = 128, 2, 4
    config.intermediate_size = 512
    tiny, weights = BertModel(config), whole.state_dict()
    tiny.load_state_dict(
        {name: weights[name][tuple(slice(size) for size in part.shape)] for name, part in tiny.state_dict().items()}
    )
    return tiny


def run(tests: Path, hub: Path, file: str, *, attach: bool, seconds: int) -> dict[str, dict[str, Any]]:
    """Outcome and message of every test in a file or folder, by its name."""
    here = Path(__file__).resolve().parent
    environment = {
        **os.environ,
        "HF_HUB_CACHE": str(hub),
        "HF_MODULES_CACHE": str(hub / "modules"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_MODE": "disabled",
        "PYTHONPATH": os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")]),
        "MAW_SUITE_ATTACH": str(int(attach)),
        "MAW_SUITE_SECONDS": str(seconds),
    }
    report = tests.parent / "report.xml"
    report.unlink(missing_ok=True)
    command = ["-m", "pytest", "-p", "sentence_transformers_plugin", f"tests/{file}", "-q", f"--junitxml={report}"]
    options = ["-m", "not slow and not custom", "-p", "no:cacheprovider", "--rootdir", str(tests.parent)]
    done = subprocess.run(
        [sys.executable, *command, *options],
        cwd=tests.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if not report.is_file():
        raise SystemExit(f"{file}: pytest wrote no report\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    outcomes = read(report)
    print("MAW  " if attach else "plain", file, dict(count(outcomes)), flush=True)
    return outcomes


def read(report: Path) -> dict[str, dict[str, Any]]:
    """The outcomes in pytest's report, and in which tests MAW computed."""
    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        outcome, message = "passed", ""
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                text = f"{child.get('message', '')}\n{child.text or ''}"
                outcome = "skipped" if child.tag == "skipped" else "failed"
                if outcome == "failed" and ABSENT.search(text):
                    outcome = "not run"
                message = text
        computed = any(part.get("name") == "maw" for part in case.iter("property"))
        name = f"{case.get('classname')}::{case.get('name')}"
        outcomes[name] = {"outcome": outcome, "message": message, "computed": computed}
    return outcomes


def count(outcomes: dict[str, dict[str, Any]]) -> Counter[str]:
    """How many tests ended in each way."""
    return Counter(result["outcome"] for result in outcomes.values())


def main() -> None:
    """Run both, print the table and every difference."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkout", type=Path, help="a checkout of the Sentence Transformers repository")
    parser.add_argument("files", nargs="*", default=FILES, help="test files or folders below tests/")
    parser.add_argument("--output", type=Path, help="a JSON file for all outcomes; files in it are done")
    parser.add_argument("--seconds", type=int, default=60, help="a test that takes longer fails")
    parser.add_argument("--commit", default="unknown", help="of the checkout")
    arguments = parser.parse_intermixed_args()
    quiet_libraries()
    sides: dict[str, Any] = {"commit": arguments.commit, "plain": {}, "maw": {}, "files": []}
    if arguments.output and arguments.output.is_file():
        sides = json.loads(arguments.output.read_text())
    todo = [file for file in arguments.files if file not in sides["files"]]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        if todo:
            shutil.copytree(arguments.checkout / "tests", work / "tests")
            (work / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow: slow\n    custom: custom\n")
            build_hub(work / "hub")
        for file in todo:
            for side, attach in (("plain", False), ("maw", True)):
                sides[side] |= run(work / "tests", work / "hub", file, attach=attach, seconds=arguments.seconds)
            sides["files"].append(file)
            if arguments.output:
                arguments.output.write_text(json.dumps(sides, indent=1))
    print(table(sides["plain"], sides["maw"]))


def table(plain: dict[str, dict[str, Any]], with_maw: dict[str, dict[str, Any]]) -> str:
    """Counts a file, and each test whose outcomes differ."""
    kinds = ("passed", "failed", "skipped", "not run")
    titles = ["tests", *(f"{kind}, plain / MAW" for kind in kinds), "MAW computed in"]
    rows = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    files = sorted({name.split("::")[0].split(".Test")[0] for name in plain})
    for file in [*files, ""]:
        pairs = [
            count({key: value for key, value in side.items() if key.startswith(file)}) for side in (plain, with_maw)
        ]
        computed = sum(value["computed"] for key, value in with_maw.items() if key.startswith(file))
        cells = [*(f"{pairs[0][kind]} / {pairs[1][kind]}" for kind in kinds), str(computed)]
        rows.append(f"| {file.removeprefix('tests.') or 'all'} | " + " | ".join(cells) + " |")
    rows.append("")
    nothing = {"outcome": "absent", "message": ""}
    for name in sorted(plain.keys() | with_maw.keys()):
        first, second = plain.get(name, nothing), with_maw.get(name, nothing)
        if first["outcome"] != second["outcome"]:
            reason = (second["message"] or first["message"]).strip().splitlines()
            rows.append(f"- {name}: {first['outcome']} / {second['outcome']}: {(reason or [''])[0][:300]}")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
