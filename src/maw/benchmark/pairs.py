"""Each comparison query by query: the scatter, and the queries that moved most with their texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from maw.benchmark import formats
from maw.benchmark.folder import Folder
from maw.benchmark.per_query import pair
from maw.benchmark.scatter import scatter

__all__ = ["pairs"]

OPEN = 3
"""So many pairs are open when the page opens; of more, the first alone is."""


def pairs(folder: Folder) -> list[dict[str, Any]]:
    """One entry for each comparison that can be shown query by query."""
    found = [view for place, one in enumerate(folder.results["comparisons"]) if (view := _view(folder, one, place))]
    for number, view in enumerate(found):
        view["open"] = len(found) <= OPEN or number == 0
    return found


def _view(folder: Folder, comparison: Mapping[str, Any], place: int) -> dict[str, Any] | None:
    variant, baseline, metric = (comparison[name] for name in ("variant", "baseline", "metric"))
    split = formats.words(comparison.get("split"))
    kept = folder.moved.get((variant, baseline, split, metric), {})
    entries = {entry["query_id"]: entry for entry in kept.get("queries", [])}
    compared = pair(folder.values, variant, baseline, split, metric)
    if compared is None and not entries:
        return None
    view: dict[str, Any] = {"variant": variant, "baseline": baseline, "split": split, "metric": metric}
    view |= {"id": f"pair-{place}", "plot": None, "seeds": 1, "counts": None}
    if compared is None:
        moves = [(name, entry["before"]["mean"], entry["after"]["mean"]) for name, entry in entries.items()]
    else:
        gained, lost = compared.moved()
        before, after = compared.before, compared.after
        moves = [(str(compared.queries[one]), float(before[one]), float(after[one])) for one in (*gained, *lost)]
        title = f"{metric} of each query, {variant} against {baseline}, {split}"
        labels = f"{metric}, {baseline}", f"{metric}, {variant}"
        view["plot"] = scatter(f"scatter-{place}", title, compared, labels, [*gained, *lost])
        difference = (after - before).round(12)
        view["counts"] = int((difference > 0).sum()), int((difference < 0).sum()), int((difference == 0).sum())
        view["seeds"] = len(compared.seeds)
    items = [_item(number, move, entries, folder.documents) for number, move in enumerate(moves, start=1)]
    view["groups"] = [
        {"title": title, "items": those}
        for title, those in (
            ("Gained most", [item for item in items if item["difference"] > 0]),
            ("Lost most", [item for item in items if item["difference"] < 0]),
        )
        if those
    ]
    return view


def _item(
    number: int, move: tuple[str, float, float], entries: Mapping[str, Any], documents: Mapping[str, str]
) -> dict[str, Any]:
    name, before, after = move
    item: dict[str, Any] = {"number": number, "query_id": name, "before": before, "after": after}
    item |= {"difference": after - before, "text": None, "seed": None, "relevant": [], "more": 0}
    item["sides"] = []
    entry = entries.get(name)
    if entry is None:
        return item
    item["text"], item["seed"] = entry["text"], entry["seed"]
    item["relevant"] = [
        {"id": one["id"], "text": documents.get(one["id"]), "moved": _ranks(one["ranks"])} for one in entry["relevant"]
    ]
    item["more"] = entry["relevant_in_all"] - len(entry["relevant"])
    item["sides"] = [
        {"value": entry[side]["value"], "passages": _passages(entry[side]["top"], documents)}
        for side in ("before", "after")
    ]
    return item


def _passages(top: Mapping[str, int | None], documents: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {"id": name, "text": documents.get(name), "grade": grade if isinstance(grade, int) and grade > 0 else None}
        for name, grade in top.items()
    ]


def _ranks(ranks: Sequence[int | None]) -> str:
    """A document's rank before and after.

    >>> _ranks([12, 1]), _ranks([None, 3])
    ('rank 12 before, 1 after', 'not found before, rank 3 after')
    """
    before, after = ranks
    start = "not found before" if before is None else f"rank {before:,} before"
    end = "not found after" if after is None else f"{after:,} after" if before is not None else f"rank {after:,} after"
    return f"{start}, {end}"
