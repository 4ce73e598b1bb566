"""Which files ir_datasets wants and where it looks for them: what to say when it cannot have them.

ir_datasets keeps everything in one folder, `$IR_DATASETS_HOME` or `~/.ir_datasets`. A file that lies at its place there
is used as it is; a large one may also lie in `downloads/` under its MD5, which is then checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from maw.errors import MAWError

__all__ = ["check_home", "explain"]

# what msmarco-passage's four splits need: the file to download -> what ir_datasets makes of it and then reads
MSMARCO = {
    "collectionandqueries": ("collection.tsv", "dev/small/queries.tsv", "dev/small/qrels"),
    "queries": ("train/queries.tsv",),
    "train/qrels": (),
    "trec-dl-2019/queries": ("trec-dl-2019/queries.tsv",),
    "trec-dl-2019/qrels": (),
    "trec-dl-2020/queries": (),
    "trec-dl-2020/qrels": (),
}


def check_home(ir: Any) -> None:
    """Refuse a hand-placed MS MARCO collection that ir_datasets would delete: one without its note of the version."""
    folder = ir.util.home_path() / "msmarco-passage"
    if (folder / "collection.tsv").exists() and not (folder / "irds_version.txt").exists():
        raise MAWError(
            f"{folder / 'collection.tsv'} lies there without {folder / 'irds_version.txt'}, and ir_datasets would "
            "delete it: write v2 into that file if the passages' encoding is repaired as ir_datasets does it, or read "
            "the published file by msmarco:FOLDER"
        )


def explain(ir: Any, identifier: str, error: BaseException) -> str:
    """Say why a data set cannot be read, what was tried, and which file goes where.

    Args:
        ir: the module ir_datasets.
        identifier: the data set.
        error: what reading it raised.
    """
    home = ir.util.home_path()
    urls = list(dict.fromkeys(_urls(error)))
    start = f"{identifier} cannot be read by ir_datasets {ir.__version__}"
    if not urls:
        kind = type(error).__name__
        return f"{start}: {kind}: {error}; its files are below {home}: one that is damaged is fetched anew once deleted"
    top = identifier.partition("/")[0]
    entries = list(_entries(ir.util.DownloadConfig.contents().get(top, {})))
    if identifier == "msmarco-passage":
        wanted = [entry for key, entry in entries if key in MSMARCO and not _there(home / top, key, entry)]
    else:
        wanted = [entry for _, entry in entries if entry.get("url") in urls]
    files = "".join(f"\n  {_place(home, top, entry)}" for entry in wanted)
    other = "beir:FOLDER" if top == "beir" else "msmarco:FOLDER" if top == "msmarco-passage" else ""
    return (
        f"{start}: it tried {', '.join(urls)} and got {type(error).__name__}. Put by hand into {home} "
        f"($IR_DATASETS_HOME, by default ~/.ir_datasets):{files or f' what belongs into {home / top}'}"
        + (f"\nor unpack the files into a folder of their own and read it as {other}" if other else "")
    )


def _urls(error: BaseException | None) -> Iterator[str]:
    """The addresses that could not be fetched, from an exception and what it came from."""
    while error is not None:
        url = getattr(getattr(error, "request", None), "url", None)
        if url:
            yield url
        for argument in error.args:  # ir_datasets: ("All download sources failed", [(source, error), ...])
            if isinstance(argument, list):
                for item in argument:
                    if isinstance(item, tuple) and isinstance(item[-1], BaseException):
                        yield from _urls(item[-1])
        error = error.__cause__ or error.__context__


def _entries(contents: Mapping[str, Any], key: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every file that ir_datasets knows how to get, with its key."""
    if "url" in contents or "instructions" in contents:
        yield key, contents
        return
    for name, inner in contents.items():
        if isinstance(inner, Mapping):
            yield from _entries(inner, f"{key}/{name}".strip("/"))


def _there(folder: Path, key: str, entry: Mapping[str, Any]) -> bool:
    made = [folder / name for name in MSMARCO[key]]
    if made and all(path.exists() for path in made):
        return True
    own = folder / entry["cache_path"] if "cache_path" in entry else None
    return (own is not None and own.exists()) or (folder.parent / "downloads" / entry["expected_md5"]).exists()


def _place(home: Path, top: str, entry: Mapping[str, Any]) -> str:
    places = [str(home / top / entry["cache_path"])] if "cache_path" in entry else []
    if entry.get("size_hint", 0) >= 5_000_000 and entry.get("expected_md5"):
        places.append(f"{home / 'downloads' / entry['expected_md5']} (checked)")
    for key, made in MSMARCO.items():
        if not places and entry.get("url", "").endswith("queries.tsv.gz") and key == "trec-dl-2019/queries":
            places.append(f"{home / top / made[0]} (unpacked)")
    return f"{' or '.join(places)}: {entry['url']} (MD5 {entry.get('expected_md5', 'not known')})"
