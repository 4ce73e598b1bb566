"""The embedded data set: docstring -> function, read from the sources of the running Python's standard library.

Nothing is shipped and nothing is imported: files are parsed with `ast`. The rules, in this order:

1. Every `.py` file below the standard library's folder, in sorted order, except what is not library code or not
   everywhere installed: the folders `site-packages`, `dist-packages`, `test`, `tests`, `idle_test`, `__pycache__`,
   `lib2to3`, `idlelib`, `turtledemo`, `_bundled` and `config-*`. A file that does not parse is skipped and counted.
2. In it every function of the module and method of a class that has a docstring; not functions inside functions,
   whose docstring stays in the outer function's source.
3. Query: the docstring's first paragraph, white space collapsed, without leading lines that only repeat a signature
   and without interpreter examples; at least MIN_QUERY_WORDS words that have a letter.
4. Document: decorators, signature and body without the docstring, dedented; the body has at least
   MIN_BODY_CHARACTERS characters, not counting comments, bare constants and `raise NotImplementedError`.
5. One to one: of several functions with the same query, or the same document, only the first stays. The others leave
   the corpus too, so that no right answer is counted as wrong and none crosses from train to test.

Splits are whole modules (files), so that no module is in two splits. Modules are ordered by a SHA-256 of their name;
the first fill test until it has a fifth of all pairs, the next fill dev until it has a tenth, the rest is train; a
module with more than MAX_MODULE of all pairs is train, so that no evaluation hangs on one module. Test thus has a
fifth of the pairs or a little more on every Python version, at the price that a module may change sides between
versions.
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import re
import sysconfig
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from maw.errors import MAWError
from maw.retrieval.data.dataset import RetrievalDataset, normalise

__all__ = ["build"]

LICENCE = "PSF-2.0 (read from this Python's own standard library; nothing is redistributed)"
LEFT_OUT_FOLDERS = (
    *("site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"),
    *("lib2to3", "idlelib", "turtledemo", "_bundled", "config-*"),
)
MIN_QUERY_WORDS = 5
MIN_BODY_CHARACTERS = 20
SHARES = (("test", 0.2), ("dev", 0.1))
MAX_MODULE = 0.025

_SIGNATURE = re.compile(r"[\w.]+\(.*\)\s*(-+>.*)?")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class _Pair:
    module: str
    name: str
    query: str
    document: str


def build(stdlib: Path | None = None) -> RetrievalDataset:
    """Build the data set by the rules at the top of this file; the same sources always give the same data set.

    Args:
        stdlib: the folder of a standard library; that of the running Python where it is not given.

    Returns:
        The data set "pydocs": document ids are `module:function`, query ids the same with `q/` in front (a query's
        own id must not be a document's), one relevant document (grade 1) a query. `checksums["pairs"]` covers every
        split, id and text; `counts["source"]` has the Python version, the files, and what each rule left out.

    Raises:
        MAWError: there are no sources (a zipped or stripped standard library), or too few to make three splits.
    """
    folder = Path(sysconfig.get_paths()["stdlib"]) if stdlib is None else stdlib
    if not folder.is_dir():
        raise MAWError(
            f"wanted the folder of Python's standard library, but {folder} is not a folder (it may be zipped): run "
            "with a Python that has its sources, or use --dataset beir:FOLDER"
        )
    pairs, source = _collect(folder)
    if not source["files"]:
        raise MAWError(
            f"wanted the sources of Python's standard library, but {folder} has no .py file (they may have been "
            "stripped): run with a Python that has its sources, or use --dataset beir:FOLDER"
        )
    split_of = _split_modules(Counter(pair.module for pair in pairs))
    if len(set(split_of.values())) < 3:
        raise MAWError(
            f"wanted docstrings in at least three modules, to split into train, dev and test, but {folder} has "
            f"{len(pairs)} usable functions in {len(split_of)} modules and {source['files']} files: run with a Python "
            "that has all its sources, or use --dataset beir:FOLDER"
        )
    documents: dict[str, str] = {}
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, dict[str, int]]] = {"train": {}, "dev": {}, "test": {}}
    digest = hashlib.sha256()
    for pair in pairs:
        document = f"{pair.module}:{pair.name}"
        while document in documents:  # the same name again: another branch of an `if`, a property's setter
            document += "+"
        query, split = f"q/{document}", split_of[pair.module]
        documents[document], queries[query] = pair.document, pair.query
        qrels[split][query] = {document: 1}
        row = [split, query, pair.query, document, pair.document]
        digest.update(json.dumps(row).encode() + b"\n")
    source["modules"] = dict(sorted(Counter(split_of.values()).items()))
    return RetrievalDataset.from_parts(
        "pydocs", documents, queries, qrels, checksums={"pairs": digest.hexdigest()}, licence=LICENCE, source=source
    )


def _collect(folder: Path) -> tuple[list[_Pair], dict[str, object]]:
    """Return the pairs that rules 1 to 5 leave, and what they left out."""
    left_out: Counter[str] = Counter()
    pairs, files, unparsed, functions = [], 0, [], 0
    queries_seen, documents_seen = set(), set()
    for path in sorted(folder.rglob("*.py"), key=lambda path: path.relative_to(folder).as_posix()):
        relative = path.relative_to(folder)
        if any(fnmatch(part, pattern) for part in relative.parts[:-1] for pattern in LEFT_OUT_FOLDERS):
            continue
        files += 1
        try:
            text, tree = _parse(path)
        except (SyntaxError, ValueError):  # ValueError: bytes that are not in the declared encoding, null bytes
            unparsed.append(relative.as_posix())
            continue
        lines = text.encode("utf-8").split(b"\n")  # ast counts columns in UTF-8 bytes
        for name, function in _functions(tree.body):
            docstring = ast.get_docstring(function)
            if docstring is None:
                continue
            functions += 1
            query, document = _query(docstring), _document(function, lines)
            if sum(bool(re.search(r"[^\W\d_]", word)) for word in query.split()) < MIN_QUERY_WORDS:
                left_out["short_query"] += 1
            elif _body_characters(function) < MIN_BODY_CHARACTERS:
                left_out["short_body"] += 1
            elif normalise(query) in queries_seen:
                left_out["repeated_query"] += 1
            elif normalise(document) in documents_seen:
                left_out["repeated_document"] += 1
            else:
                queries_seen.add(normalise(query))
                documents_seen.add(normalise(document))
                module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
                pairs.append(_Pair(module, name, query, document))
    source: dict[str, object] = {"python": platform.python_version(), "files": files, "files_not_parsed": unparsed}
    return pairs, source | {"functions_with_docstring": functions, "left_out": dict(sorted(left_out.items()))}


def _parse(path: Path) -> tuple[str, ast.Module]:
    with tokenize.open(path) as file:  # honours the coding line; ends of lines become \n
        text = file.read()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an old escape in somebody else's string is not this user's concern
        return text, ast.parse(text)


def _functions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Function]]:
    """Yield (qualified name, node) of functions and methods, also those below `if` and `try`."""
    for node in body:
        if isinstance(node, Function):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.If | ast.Try):
            handlers = node.handlers if isinstance(node, ast.Try) else []
            last = node.finalbody if isinstance(node, ast.Try) else []
            for part in (node.body, *(handler.body for handler in handlers), node.orelse, last):
                yield from _functions(part, prefix)


def _query(docstring: str) -> str:
    """Return the first paragraph in one line; empty where there is no prose.

    >>> _query("pop(key[, default]) -> value\\n\\nRemove a key and\\nreturn its value.\\n\\nMore of it.")
    'Remove a key and return its value.'
    """
    lines = docstring.strip().split("\n")
    while lines and (not lines[0].strip() or _SIGNATURE.fullmatch(lines[0].strip())):
        lines.pop(0)
    paragraph = []
    for line in lines:
        if not line.strip() or line.lstrip().startswith(">>>"):
            break
        paragraph.append(line)
    return " ".join(" ".join(paragraph).split())


def _document(function: Function, lines: list[bytes]) -> str:
    """Return the source of a function without its docstring, dedented; comments and layout stay."""
    docstring = function.body[0]
    first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
    before = lines[first - 1 : docstring.lineno - 1]
    after = lines[_end(docstring) : _end(function)]
    left = lines[docstring.lineno - 1][: docstring.col_offset]
    right = lines[_end(docstring) - 1][docstring.end_col_offset :].lstrip(b" \t;")
    middle = [left + right] if (left + right).strip() else []
    indent = len(lines[first - 1]) - len(lines[first - 1].lstrip())
    kept = [line[min(indent, len(line) - len(line.lstrip())) :] for line in [*before, *middle, *after]]
    return b"\n".join(kept).decode("utf-8").strip()


def _end(node: ast.stmt) -> int:
    return node.end_lineno or node.lineno  # ast.parse always sets it


def _body_characters(function: Function) -> int:
    """Return how many characters the statements after the docstring have, without those that do nothing."""
    body = [node for node in function.body[1:] if not _does_nothing(node)]
    return sum(len(ast.unparse(node)) for node in body)


def _does_nothing(node: ast.stmt) -> bool:
    if isinstance(node, ast.Raise) and node.exc is not None:
        return "NotImplementedError" in ast.unparse(node.exc)
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _split_modules(sizes: Counter[str]) -> dict[str, str]:
    """Return module -> split by the rule at the top of this file."""
    order = sorted(sizes, key=lambda module: hashlib.sha256(f"pydocs {module}".encode()).digest())
    split_of = dict.fromkeys(order, "train")
    small = [module for module in order if sizes[module] <= max(1, MAX_MODULE * sizes.total())]
    for split, share in SHARES:
        number = 0
        while small and number < share * sizes.total():
            module = small.pop(0)
            split_of[module] = split
            number += sizes[module]
    return split_of
