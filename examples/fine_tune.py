"""Fine-tune an encoder with MAW on your own data, a folder in BEIR's layout, and measure it before and after.

    python examples/fine_tune.py FOLDER --output model/
    python examples/fine_tune.py FOLDER --output model/ --dense          # the same without MAW, to compare with

FOLDER has corpus.jsonl, queries.jsonl and qrels/{train,dev,test}.tsv; dev is optional and chooses the best epoch.
"""

import argparse
from pathlib import Path

import maw
from maw.retrieval.data.loading import load_dataset
from maw.retrieval.evaluation.assessment import assess_model
from maw.retrieval.models import choose_device, load_encoder
from maw.retrieval.training.fine_tuning import train
from maw.retrieval.training.settings import TrainingSettings


def main(arguments: list[str] | None = None) -> None:
    """Train, save, and print both measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the data, in BEIR's layout")
    parser.add_argument("--output", type=Path, required=True, help="the model's folder")
    parser.add_argument("--model", default="packaged", help="packaged, a model folder, or a hub name")
    parser.add_argument("--dense", action="store_true", help="without MAW")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--max-length", type=int, default=128, help="tokens a text is cut to")
    parser.add_argument("--positives-per-query", type=int, help="at most so many; default: all")
    parser.add_argument("--small", action="store_true", help="64 pairs and 200 documents: does it run?")
    options = parser.parse_args(arguments)

    data = load_dataset(f"beir:{options.folder}")
    if options.small:
        data = data.subset(train_pairs=64, documents=200, test_queries=4, dev_queries=4)
    model = load_encoder(options.model, device=choose_device("auto"), max_length=options.max_length)
    before = assess_model(model, data, data.default_split)
    if not options.dense:
        print(maw.attach(model, maw.MAWConfig(layers=[0], depth=64)))  # nothing changes until training does
    settings = TrainingSettings(
        epochs=options.epochs,
        batch_size=options.batch_size,
        max_length=options.max_length,
        positives_per_query=options.positives_per_query,
    )
    training = options.output.with_name(f"{options.output.name}.training")  # a training that was killed goes on there
    outcome = train(model, data, training, settings, show_progress=True)
    after = assess_model(model, data, data.default_split)
    model.save_pretrained(str(options.output))
    for name, value in after.evaluation.means.items():
        print(f"{name:8} untuned {before.evaluation.means[name]:.4f}   tuned {value:.4f}")
    for finding in outcome["findings"]:
        print("look at this:", finding["name"])


if __name__ == "__main__":
    main()
