"""What the checks of a data set found, in a few lines for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maw.retrieval.data.dataset import RetrievalDataset

__all__ = ["render_report"]


def render_report(dataset: RetrievalDataset) -> str:
    """Return the counts of a data set as a few lines for people."""
    counts, shown = dataset.counts, []
    shown.append(f"{dataset.name}, licence: {dataset.licence or 'not stated by the source'}")
    if "subset" in counts:
        subset = counts["subset"]
        kept = ", ".join(f"{subset['kept'][key]:,} {key} (asked {n:,})" for key, n in subset["asked"].items())
        shown.append(f"  SUBSET of {subset['of']}, seed {subset['seed']}: {kept}")
    for part in ("documents", "queries"):
        found = counts[part]
        notes = [f"{found[key]:,} {words}" for key, words in _NOTES if found.get(key)]
        shown.append(f"  {found['total']:,} {part}" + (f" ({', '.join(notes)})" if notes else ""))
    for split, found in counts["splits"].items():
        line = f"  {split}: {found['queries']:,} queries, {found['relevant']:,} relevant pairs"
        no_answer = found["queries_without_relevant"]
        shown.append(line + (f", {no_answer:,} queries without a relevant document" if no_answer else ""))
    for key, what in (("shared_query_ids", "queries"), ("shared_query_texts", "query texts under other ids")):
        if counts[key]:
            shown.append(f"  {what} in two splits: " + ", ".join(f"{pair} {n:,}" for pair, n in counts[key].items()))
    if counts["dropped_train_queries"]:
        number = len(counts["dropped_train_queries"])
        shown.append(f"  {number:,} queries dropped from train: an evaluation split has the same text")
    for whole, parts in counts["unions"].items():
        shown.append(f"  {whole} is {' and '.join(parts)} together: a benchmark reports the parts")
    if "train" in dataset.splits:
        shown.append(f"  {_choosing(dataset)}")
    for split, number in counts["judged_but_not_in_collection"].items():
        shown.append(f"  {number:,} judged documents of {split} are not in the corpus: {_consequence(split)}")
    if number := counts["queries_that_are_documents"]:
        done = "dropped from their rankings" if dataset.drop_own else "NOT dropped from their rankings (--drop-own)"
        shown.append(f"  {number:,} queries to evaluate on are documents themselves: {done}")
    if dataset.relevant_grade:
        shown.append(
            "  relevant in measures without grades from grade: "
            + ", ".join(f"{split} {grade}" for split, grade in dataset.relevant_grade.items())
        )
    shown.extend(f"  {key}: {value}" for key, value in counts.get("source", {}).items() if value)
    return "\n".join(shown)


def _choosing(dataset: RetrievalDataset) -> str:
    if dataset.dev_split is None:
        return "no split chooses checkpoints: a training keeps its last epoch"
    also = dataset.dev_split in dataset.reported_splits
    return f"{dataset.dev_split} chooses checkpoints" + (
        " AND is reported: its figures are of the epoch that is best there, those of the other splits are not"
        if also
        else ""
    )


def _consequence(split: str) -> str:
    return "left out" if split == "train" else "no system can find them, as in published figures"


_NOTES = (("empty", "empty"), ("repeated", "with a text met before"), ("not_judged", "in no split"))
