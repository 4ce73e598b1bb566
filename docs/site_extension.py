"""What the site needs beside Sphinx: docstrings as they are written here, and the command line's own help."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def restructured(lines: list[str]) -> Iterator[str]:
    """Docstring lines as reStructuredText reads them.

    Docstrings here are plain text: an indented block after a paragraph is an equation or a small table (to
    reStructuredText a quotation), a list follows its introduction without a blank line, and |x| is a size.
    """
    last, literal = "", False  # the last line of a paragraph; whether a block of literal text has begun
    for place, line in enumerate(lines):
        begins = place > 0 and not lines[place - 1].strip()
        if not line.strip():
            yield line
            continue
        if literal and not line.startswith("    "):
            literal = False
        if begins and line.startswith("    ") and not literal and _is_paragraph(last):
            yield from ("::", "")
            literal = True
        if line.startswith("- ") and not begins and not last.startswith(("- ", "  ")):
            yield ""
        yield line if literal else _escaped(line)
        last = last if literal else line


def _is_paragraph(line: str) -> bool:
    return bool(line) and not line.startswith((" ", ":", ".. ", ">>>")) and not line.rstrip().endswith("::")


def _escaped(line: str) -> str:
    """A line whose bars stand for themselves; code in backticks and examples are left alone."""
    if line.lstrip().startswith((">>>", "...")):
        return line
    return "".join(part if part.startswith("`") else part.replace("|", r"\|") for part in re.split(r"(`[^`]*`)", line))


def process(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Docstrings on their way from napoleon to the page."""
    lines[:] = restructured(lines)


def skip(app: Sphinx, what: str, name: str, obj: object, skipped: bool, options: Any) -> bool | None:
    """Fields of named tuples stand in the signature; Python's own words about them say nothing."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


class Help(SphinxDirective):
    """`maw COMMAND --help` as it is printed."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Run the command line of the package that is documented."""
        command = [sys.executable, "-m", "maw", *self.arguments, "--help"]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        block = nodes.literal_block(printed, printed)
        block["language"] = "text"
        return [block]


def lead_to_index(app: Sphinx, error: Exception | None) -> None:
    """The site's own index.html leads to the first page, which lies one folder down."""
    if error is None and app.builder.name == "html":
        head = '<meta charset="utf-8"><title>maw</title><link rel="icon" href="data:,">'
        lead = '<meta http-equiv="refresh" content="0; url=docs/index.html"><a href="docs/index.html">maw</a>'
        Path(app.outdir, "index.html").write_text(f"<!doctype html>{head}{lead}\n", encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("autodoc-process-docstring", process, priority=900)  # after napoleon
    app.connect("autodoc-skip-member", skip)
    app.connect("build-finished", lead_to_index)
    app.add_directive("maw-help", Help)
    return {"parallel_read_safe": True}
