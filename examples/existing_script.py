"""MAW in a training script for Sentence Transformers that is there already: the lines marked MAW are what is added.

    python examples/existing_script.py --output model/

The data are docstrings and their functions, from your own Python's standard library.
"""

import argparse
from pathlib import Path

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

import maw  # MAW
from maw.retrieval.data.loading import load_dataset
from maw.retrieval.models import packaged_encoder
from maw.retrieval.training.losses import AuxiliaryLoss  # MAW


def main(arguments: list[str] | None = None) -> None:
    """Train as always."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the model's folder")
    parser.add_argument("--model", help="a model folder or a hub name; default: the packaged encoder")
    parser.add_argument("--pairs", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=64)
    options = parser.parse_args(arguments)

    data = load_dataset("pydocs")
    pairs = data.training_pairs()[: options.pairs]
    rows = Dataset.from_dict(
        {"anchor": [data.queries[q] for q, _ in pairs], "positive": [data.documents[d] for _, d in pairs]}
    )
    model = SentenceTransformer(options.model or str(packaged_encoder())).float()  # small steps are lost in bfloat16
    model.max_seq_length = options.max_length
    config = maw.MAWConfig(layers=[0], depth=64)  # MAW
    print(maw.attach(model, config))  # MAW
    with maw.calibrating(model):  # MAW: its policy begins where it can tell these texts apart
        model.encode(rows["anchor"][:128] + rows["positive"][:128], show_progress_bar=False)  # MAW
    loss = MultipleNegativesRankingLoss(model)
    loss = AuxiliaryLoss(loss, model)  # MAW: the policy's loss, weighed like the rest
    training = SentenceTransformerTrainingArguments(
        output_dir=str(options.output.with_name("checkpoints")),
        num_train_epochs=1,
        per_device_train_batch_size=options.batch_size,
        learning_rate=5e-5,
        learning_rate_mapping={r"\.maw\.": config.learning_rate},  # MAW: its own learning rate
        save_strategy="no",
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to=[],
    )
    SentenceTransformerTrainer(model=model, args=training, train_dataset=rows, loss=loss).train()
    model.save_pretrained(str(options.output))
    # MAW: a program without `import maw` loads it with trust_remote_code=True
    print(SentenceTransformer(str(options.output)).encode(["Open a file for reading."]).shape)


if __name__ == "__main__":
    main()
