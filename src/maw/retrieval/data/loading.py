"""From the name that a user types to a data set: which reader serves it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from maw.errors import MAWError
from maw.retrieval.data import beir, irdatasets, msmarco, pydocs
from maw.retrieval.data.dataset import RetrievalDataset

__all__ = ["load_dataset"]


def load_dataset(spec: str, *, drop_own: bool | None = None, strict: bool = False) -> RetrievalDataset:
    """Return the data set that a user names.

    Args:
        spec: one of

            - "pydocs": docstring -> function, read from the running Python's standard library;
            - "msmarco": the MS MARCO passages, by ir_datasets (`maw.retrieval.data.irdatasets`);
            - "ir:ID": an id of ir_datasets, such as "ir:beir/scifact" or "ir:lotte/writing/test/search";
            - "beir:FOLDER": a folder with `corpus.jsonl`, `queries.jsonl` and `qrels/SPLIT.tsv`;
            - "msmarco:FOLDER": a folder with `collection.tsv`, `queries.SPLIT.tsv` and `qrels.SPLIT.tsv`.
        drop_own: whether a document with the query's own id is left out of every ranking; None is yes for ArguAna and
            no for others.
        strict: whether a judged document that the collection lacks is refused; otherwise it is counted.

    Raises:
        MAWError: another name, data that cannot be used as they are, or data that cannot be had: the message says
            what was tried and which file goes where.

    >>> load_dataset("nfcorpus")
    Traceback (most recent call last):
    ...
    maw.errors.MAWError: wanted a data set, got 'nfcorpus': write pydocs (built in), msmarco or ir:ID (by \
ir_datasets), beir:FOLDER (a folder with corpus.jsonl, queries.jsonl and qrels/*.tsv) or msmarco:FOLDER (a folder with \
collection.tsv, queries.*.tsv and qrels.*.tsv)
    """
    data = _load(spec, strict=strict)
    return data if drop_own is None else replace(data, drop_own=drop_own)


def _load(spec: str, *, strict: bool) -> RetrievalDataset:
    kind, _, what = spec.partition(":")
    if spec == "pydocs":
        return pydocs.build()
    if spec == "msmarco":
        return irdatasets.read_msmarco(strict=strict)
    if kind == "ir" and what:
        return irdatasets.read_ir(what, strict=strict)
    if kind == "beir" and what:
        return beir.read_beir(Path(what).expanduser(), name=spec, strict=strict)
    if kind == "msmarco" and what:
        return msmarco.read_msmarco_folder(Path(what).expanduser(), name=spec, strict=strict)
    raise MAWError(
        f"wanted a data set, got {spec!r}: write pydocs (built in), msmarco or ir:ID (by ir_datasets), beir:FOLDER (a "
        "folder with corpus.jsonl, queries.jsonl and qrels/*.tsv) or msmarco:FOLDER (a folder with collection.tsv, "
        "queries.*.tsv and qrels.*.tsv)"
    )
