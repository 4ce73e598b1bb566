"""Reading a file of relevance judgements, strictly, in any of its three forms.

    query 0 document grade                 TREC: four columns, separated by any mixture of tabs and blanks
    query document grade                   three columns, as some copies of MS MARCO have them
    query-id <TAB> corpus-id <TAB> score   this header, then three columns separated by tabs: BEIR

The first line that is not empty and no comment decides which form the file has; every other one must be like it. The
file may be packed with gzip and may begin with a byte order mark. Empty lines and white space at the end of a line are
not read, nor is a line of comment, which begins with `#` as in trec_eval 10; under the header nothing is a comment. A
grade is a whole number; tables that were written as floating-point numbers have it as `1.0`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from maw.io.ids import check_id
from maw.retrieval.data.checks import TRAIN, lacking
from maw.retrieval.data.lines import is_comment, read_lines, refuse, short

__all__ = ["JudgementFile", "check_train_apart", "read_judgements"]

HEADER = ["query-id", "corpus-id", "score"]
LAYOUT = "a judgement a line: query, 0, document and grade"
_GRADE = re.compile(r"(-?[0-9]{1,9})(\.0*)?")
_BLANKS = re.compile(r"[ \t\r\f\v]+")
"""What separates columns where there is no header: ASCII white space, so that an id may hold a no-break space."""


@dataclass
class JudgementFile:
    """What a file of judgements holds.

    Attributes:
        path: the file.
        grades: query id -> document id -> grade.
        lines: query id -> the line of its first judgement.
        repeated: how many judgements were given again with the same grade.
    """

    path: Path
    grades: dict[str, dict[str, int]] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    repeated: int = 0

    def line_of(self, query: str, document: str) -> int:
        """The line in which a pair is judged first; the file is read again for it."""
        rows = _rows(self.path, {}, "", header_needed=False)
        return next(number for number, columns in rows if (columns[0], columns[-2]) == (query, document))

    def check_queries(self, queries: Mapping[str, str], where: str) -> None:
        """Refuse a query without a text, by file and line; `where` says where its text should be."""
        if unknown := lacking(queries, self.grades):
            refuse(self.path, self.lines[unknown[0]], f"query {unknown[0]!r} is not in {where}")

    def check_documents(self, documents: Mapping[str, str], where: str) -> None:
        """Refuse a document without a text, by file and line; `where` says where its text should be."""
        if unknown := set(lacking(documents, (document for row in self.grades.values() for document in row))):
            rows = _rows(self.path, {}, "", header_needed=False)
            line, name = next((number, columns[-2]) for number, columns in rows if columns[-2] in unknown)
            refuse(self.path, line, f"document {name!r} is not in {where}")


def read_judgements(path: Path, checksums: dict[str, str], key: str, *, header_needed: bool = False) -> JudgementFile:
    """Read a file of judgements in any of the three forms.

    Args:
        path: the file.
        checksums: gets its SHA-256 under `key`.
        key: the name of the file in `checksums`.
        header_needed: whether only the form with a header is accepted.

    Raises:
        MAWError: the file is missing or has no judgement, a line has another number of columns or no integer grade,
            or a pair is judged twice with different grades: named by file and line.
    """
    found = JudgementFile(path)
    for number, columns in _rows(path, checksums, key, header_needed=header_needed):
        query, document, text = columns[0], columns[-2], columns[-1]
        grade_text = _GRADE.fullmatch(text)
        if grade_text is None:
            refuse(path, number, f"wanted an integer grade in the last column, got {short(text)}{_reason(text)}")
        for identifier in (document,) if query in found.grades else (query, document):
            if problem := check_id(identifier):
                refuse(path, number, f"{problem}: rename it")
        grade, row = int(grade_text[1]), found.grades.setdefault(query, {})
        found.lines.setdefault(query, number)
        if document not in row:
            row[document] = grade
        elif row[document] == grade:
            found.repeated += 1
        else:
            pair, first = f"query {query!r} and document {document!r}", found.line_of(query, document)
            refuse(path, number, f"{pair} have grade {grade} here and {row[document]} in line {first}: keep one")
    if not found.grades:
        refuse(path, 2, "wanted at least one judgement after the header, got none")
    return found


def check_train_apart(files: Mapping[str, JudgementFile]) -> None:
    """Refuse a query that is judged in train and in another split, by both files and lines."""
    if TRAIN not in files:
        return
    train = files[TRAIN]
    for found in files.values():
        both = next((query for query in found.grades if query in train.grades), None)
        if found is not train and both is not None:
            place = f"{train.path.name}, line {train.lines[both]}"
            refuse(found.path, found.lines[both], f"query {both!r} is also in {place}: remove it from one of the two")


def _reason(text: str) -> str:
    """Why a number is no grade; empty for what is no number."""
    try:
        float(text)
    except ValueError:
        return ""
    return ": measures count whole grades, such as 1 or 1.0; map the others to whole numbers first"


def _rows(path: Path, checksums: dict[str, str], key: str, *, header_needed: bool) -> Iterator[tuple[int, list[str]]]:
    """Yield (number, columns) of every line but the header, comments and empty lines."""
    width, table = 0, header_needed
    for number, whole_line in read_lines(path, checksums, key, layout=LAYOUT):
        line = whole_line.rstrip()
        columns = line.split("\t") if table else _BLANKS.split(line.strip())
        if not line or (not table and is_comment(f"{path}, line {number}", columns, {3: [2], 4: [3]})):
            continue
        if not width:
            width, table = 3, line.split("\t") == HEADER
            if table:
                continue
            if header_needed:
                wanted = "<TAB>".join(HEADER)
                refuse(path, number, f"wanted the header {wanted}, got {short(line)}: add it as the first line")
            width = len(columns)
            if width not in (3, 4):
                forms = "4 columns (query 0 document grade), or 3 (query document grade)"
                refuse(path, number, f"wanted {forms}, got {width}: {short(line)}")
        if len(columns) != width:
            words = " separated by tabs" if table else ""
            refuse(path, number, f"wanted {width} columns{words}, got {len(columns)}: {short(line)}")
        yield number, columns
