"""How many texts are longer than what the encoder reads of them, so that nobody loses their ends without knowing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from maw.retrieval.identity import document_prompt, query_prompt

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["SAMPLE", "Truncation", "count_truncated", "dataset_truncation"]

SAMPLE = 5_000
"""Texts that are looked at, at most: more would cost more than the count is worth."""

BATCH = 1000

WHOLE: Any = {"text": {"padding": False, "truncation": False}, "common": {"return_tensors": None, "verbose": False}}


@dataclass(frozen=True)
class Truncation:
    """How many texts of a kind are cut.

    Args:
        kind: what they are.
        texts: how many there are; None where nobody counted them.
        looked_at: how many of them were tokenised for this.
        truncated: how many of those are longer than `limit`.
        limit: tokens that the encoder reads, special ones and the prompt included; None is any number.
        longest: tokens of the longest text looked at.

    >>> print(Truncation("documents", 20_000, 5_000, 65, 128, 411))
    documents: 65 of 5,000 looked at (1.3 %) are cut at 128 tokens, the longest has 411
    >>> print(Truncation("queries", 50, 50, 0, 128, 31))
    queries: none of 50 is cut at 128 tokens, the longest has 31
    """

    kind: str
    texts: int | None
    looked_at: int
    truncated: int
    limit: int | None
    longest: int

    def __str__(self) -> str:
        whole = f"{self.looked_at:,}" + ("" if self.texts == self.looked_at else " looked at")
        if self.limit is None:
            return f"{self.kind}: this model reads texts of any length, none of {whole} is cut"
        many = "none of " + whole + " is"
        if self.truncated:
            many = f"{self.truncated:,} of {whole} ({100 * self.truncated / self.looked_at:.1f} %) are"
        return f"{self.kind}: {many} cut at {self.limit:,} tokens, the longest has {self.longest:,}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def count_truncated(
    model: SentenceTransformer,
    texts: Sequence[str],
    kind: Literal["query", "document"],
    of: int | None,
) -> Truncation:
    """Tokenise texts as the encoder does, but whole, and count those that are longer than it reads.

    Args:
        model: the encoder; one that does not begin with a transformer for texts cuts by rules of its own: none is
            counted as cut.
        texts: what is to be looked at, all of it.
        kind: what they are, which decides the prompt.
        of: how many texts there are, `texts` being a part of them; None where nobody counted them.

    Returns:
        the count.
    """
    from sentence_transformers.sentence_transformer.modules import Transformer

    name = "queries" if kind == "query" else "documents"
    module, limit, lengths = model[0], model.max_seq_length, [0]
    if isinstance(module, Transformer) and "text" in module.modality_config and limit is not None:
        prompt = query_prompt(model) if kind == "query" else document_prompt(model)
        for begin in range(0, len(texts), BATCH):
            made: Any = module.preprocess(
                list(texts[begin : begin + BATCH]), prompt=prompt, task=kind, processing_kwargs=WHOLE
            )
            lengths += [len(row) for row in made["input_ids"]]
    else:
        limit = None
    over = 0 if limit is None else sum(length > limit for length in lengths)
    return Truncation(name, of, len(texts), over, limit, max(lengths))


def dataset_truncation(
    model: SentenceTransformer, queries: Mapping[str, str], documents: Mapping[str, str]
) -> list[Truncation]:
    """The counts of queries and of documents; of more than `SAMPLE`, of as many at even distances.

    Args:
        model: the encoder.
        queries: id to text.
        documents: id to text.
    """
    kinds: tuple[tuple[Literal["query", "document"], Mapping[str, str]], ...] = (
        ("query", queries),
        ("document", documents),
    )
    return [count_truncated(model, _spread(texts), kind, len(texts)) for kind, texts in kinds]


def _spread(texts: Mapping[str, str]) -> list[str]:
    step = -(-len(texts) // SAMPLE) or 1
    return [texts[name] for name in islice(texts, 0, None, step)]
