"""Put MAW into ModernBERT and encode with it.

    python examples/modernbert.py                                # answerdotai/ModernBERT-base from the hub
    python examples/modernbert.py --model FOLDER                 # a Transformers or Sentence Transformers folder
    python examples/modernbert.py --made-up                      # no download: small, random weights

ModernBERT rotates queries and keys by position, so its views start as a random frame instead of the spectral
components. That start is exact too: the difference of the vectors, which is printed, is rounding.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer

import maw

TEXTS = ("The bell in the old harbour rang twice.", "A policy chooses how much each view counts.")


def made_up(folder: Path) -> Path:
    """A small ModernBERT with random weights and the packaged encoder's tokenizer: its vectors mean nothing."""
    from transformers import AutoTokenizer, ModernBertConfig, ModernBertModel

    from maw.retrieval.models import packaged_encoder

    tokenizer = AutoTokenizer.from_pretrained(packaged_encoder())
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep")}
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        bos_token_id=special["cls_token_id"],
        eos_token_id=special["sep_token_id"],
        **special,
    )
    ModernBertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print("This model is made up, from its configuration: its weights are random.")
    return folder


def main(arguments: list[str] | None = None) -> None:
    """Attach, compare, save, load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="answerdotai/ModernBERT-base", help="a hub name or a folder")
    parser.add_argument("--made-up", action="store_true", help="a small one with random weights instead")
    parser.add_argument("--output", type=Path, default=Path(tempfile.mkdtemp()) / "model", help="the model's folder")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    name = str(made_up(options.output.with_name("made-up"))) if options.made_up else options.model
    model = SentenceTransformer(name, device="cpu")  # a bare encoder gets mean pooling
    host = model.encode(TEXTS)
    print(maw.attach(model, maw.MAWConfig(layers=[0], depth=64)))
    print(f"largest difference from the host's own vectors: {abs(model.encode(TEXTS) - host).max():.1e}")
    model.save_pretrained(str(options.output))
    # a program without `import maw` gives trust_remote_code=True, too
    again = SentenceTransformer(str(options.output), device="cpu")
    print(f"saved and loaded, largest difference: {abs(again.encode(TEXTS) - model.encode(TEXTS)).max():.1e}")


if __name__ == "__main__":
    main()
