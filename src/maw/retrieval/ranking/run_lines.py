"""The lines of a run file, strictly, in any of three forms.

    query Q0 document rank score tag               TREC: six columns, separated by blanks or tabs
    query document rank                            MS MARCO: three columns
    query-id <TAB> corpus-id <TAB> rank <TAB> score   this header, then four columns separated by tabs

The first line that is not empty and no comment decides; every other one must be like it. The file may be packed with
gzip and may begin with a byte order mark. White space at the end of a line is not read, nor is a line of comment, which
begins with `#` as in trec_eval 10; under the header nothing is a comment. Columns of TREC and MS MARCO are separated by
any mixture of ASCII blanks and tabs, so that an id may hold other white space, such as a no-break space.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from maw.errors import MAWError
from maw.io.ids import check_id
from maw.io.reading import text_lines
from maw.retrieval.data.lines import is_comment

__all__ = ["RunLine", "find_line", "run_lines"]

HEADER = ["query-id", "corpus-id", "rank", "score"]
FORMS = {
    6: "six columns (query Q0 document rank score tag)",
    4: "four columns separated by tabs (query, document, rank, score)",
    3: "three columns (query, document, rank)",
}


class RunLine(NamedTuple):
    """One retrieved document; `score` is None where the file has none, `rank` where it was not read."""

    number: int
    query: str
    document: str
    rank: int | None
    score: float | None


def run_lines(path: str | os.PathLike[str], *, ranks: bool, scores: bool = True) -> Iterator[RunLine]:
    """Yield the lines of a run file.

    Args:
        path: the file, in UTF-8.
        ranks: whether the ranks are read; where they are not, they may be anything.
        scores: whether the scores are read.

    Raises:
        MAWError: no such file, or a malformed line (named by file and line).
    """
    if not Path(path).is_file():
        raise MAWError(f"a run file must exist, got {str(path)!r}: check the path")
    form = 0
    for number, raw in enumerate(text_lines(path), start=1):
        where = f"{path}, line {number}"
        columns = _columns(raw, where, table=form == 4)
        if not columns:
            continue
        if not form:
            form = len(columns)
            if columns == HEADER:
                continue
            if form not in FORMS or form == 4:
                raise MAWError(
                    f"{where}: wanted {FORMS[6]} or {FORMS[3]}, got {form}: check that this is a run file in the "
                    f"TREC or MS MARCO format, or add the header {'<TAB>'.join(HEADER)}"
                )
        if len(columns) != form:
            raise MAWError(f"{where}: wanted {FORMS[form]}, got {len(columns)}: every line must be like the first")
        query, document = columns[0], columns[2 if form == 6 else 1]
        for identifier in (query, document):
            if problem := check_id(identifier):
                raise MAWError(f"{where}: {problem}: rename it")
        rank = _whole(columns[2 if form == 3 else form // 2], where) if ranks else None
        score = _finite(columns[4 if form == 6 else 3], where) if scores and form != 3 else None
        yield RunLine(number, query, document, rank, score)


def find_line(path: str | os.PathLike[str], query: str, document: str | None = None) -> int:
    """The number of the first line with this query, and with this document where one is given."""
    lines = run_lines(path, ranks=False, scores=False)
    return next(line.number for line in lines if line.query == query and document in (None, line.document))


def _columns(raw: bytes, where: str, *, table: bool) -> list[str]:
    """The columns of a line; none for an empty line or a comment."""
    raw = raw.rstrip()
    try:
        if table:
            return raw.decode("utf-8").split("\t") if raw else []
        columns = [column.decode("utf-8") for column in raw.split()]  # bytes are split at ASCII white space alone
    except UnicodeDecodeError as error:
        wrong = error.object[error.start]
        raise MAWError(
            f"{where}: a run file must be UTF-8 text, got the byte 0x{wrong:02x}: convert it first"
        ) from error
    return [] if columns and is_comment(where, columns, {3: [2], 6: [3, 4]}) else columns


def _whole(text: str, where: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise _wrong("rank", "a whole number", text, where) from None


def _finite(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _wrong("score", "a finite number", text, where)
    return value


def _wrong(name: str, wanted: str, text: str, where: str) -> MAWError:
    return MAWError(f"{where}: the {name} must be {wanted}, got {text!r}: check that no column is missing")
