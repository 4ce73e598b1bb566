"""Run by test_distributed.py in several processes: one training, and what each process saw of it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from toys import SETTINGS, encoder, note_depth_weights, toy

import maw
from maw.hf.attach import maw_layers
from maw.retrieval.identity import fingerprint
from maw.retrieval.training.fine_tuning import train
from maw.retrieval.training.settings import TrainingSettings


def main(folder: Path, settings: dict) -> None:
    torch.set_num_threads(1)
    lora, checkpointing = settings.pop("lora", False), settings.pop("gradient_checkpointing", False)
    model = encoder(maw.MAWConfig(depth=8, group_size=4, **settings))
    if lora:
        model.add_adapter(maw.lora_config(model))
    start, texts = fingerprint(model), []
    drawn = note_depth_weights(maw_layers(model)[0])
    first = model[0].register_forward_pre_hook(
        lambda module, arguments: (
            texts.extend(str(row) for row in arguments[0]["input_ids"].tolist())
            if module.training and len(texts) < SETTINGS.batch_size
            else None
        )
    )
    chosen = {**SETTINGS.__dict__, "epochs": 3, "warmup_share": 0.0, "gradient_checkpointing": checkpointing}
    outcome = train(model, toy(), folder / "training", TrainingSettings(**chosen))
    first.remove()
    seen = {
        "start": start,
        "weights": fingerprint(model),
        "outcome": outcome,
        "drawn": drawn[0][1][0].tolist() if drawn else None,
        "texts": texts,
    }
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
