"""What `maw inspect` was asked for: checked before a model is loaded, then computed, written and printed."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from maw.display.page import render_page
from maw.display.pictures import save_pictures
from maw.display.terminal import print_inspection
from maw.errors import MAWError
from maw.inspection import inspect
from maw.io.atomic import write_text
from maw.io.escaping import json_line
from maw.retrieval.data.lines import read_lines, refuse
from maw.retrieval.models import choose_device, load_encoder

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["MOST", "Request", "read_texts", "show"]

MOST = 200
"""Texts that can be looked at at once: more make no page that anybody reads."""


@dataclass(frozen=True)
class Request:
    """The command's options; `head` is a number or "mean"."""

    model: str
    texts: tuple[str, ...] = ()
    file: Path | None = None
    layer: int | None = None
    head: str = "mean"
    depths: int = 4
    html: Path | None = None
    png: Path | None = None
    json: bool = False
    max_length: int | None = None
    device: str = "auto"

    def all_texts(self) -> list[str]:
        """The texts given but `empty` ones, then those of the file.

        Raises:
            MAWError: none, too many, empty ones alone, or a file that is no text.
        """
        found = [text for text in self.texts if text.strip()]
        found += read_texts(self.file) if self.file is not None else []
        if not found and self.texts:
            which = "the text is empty" if len(self.texts) == 1 else f"all {len(self.texts)} texts are empty"
            raise MAWError(f"{which}: give a text with words in it")
        if not found:
            raise MAWError('wanted a text: maw inspect MODEL "some text", or --file FILE with one text a line')
        if len(found) > MOST:
            raise MAWError(f"wanted at most {MOST} texts at once, got more: look at a part of them")
        return found

    def empty(self) -> list[int]:
        """Which of the texts given are empty, counted from 1."""
        return [number for number, text in enumerate(self.texts, start=1) if not text.strip()]

    def head_index(self) -> int | None:
        """The head, or None for the mean.

        Raises:
            MAWError: neither a number nor "mean".
        """
        if self.head == "mean":
            return None
        if not self.head.isdecimal():
            raise MAWError(f"--head must be a number from 0 on, or mean, got {self.head!r}")
        return int(self.head)


def read_texts(path: Path) -> list[str]:
    """The texts of a file, one a line, blank lines skipped; no more than one over `MOST` are read.

    Raises:
        MAWError: the file is missing, is no UTF-8 text, or has no text in it.
    """
    found: list[str] = []
    for number, line in read_lines(path, {}, str(path), layout="one text a line"):
        if "\0" in line:
            refuse(path, number, "wanted text, got a NUL character: is this a text file?")
        if line.strip():
            found.append(line)
        if len(found) > MOST:
            break
    if not found:
        raise MAWError(f"{path}: wanted one text a line, but all lines are blank")
    return found


def show(request: Request, console: Console) -> None:
    """Do what was asked for. Texts that are empty are named on standard error and left out.

    Args:
        request: the options.
        console: where the tables go; JSON goes there as well, and then nothing else does.

    Raises:
        MAWError: bad input; nothing has then been written.
    """
    texts, head = request.all_texts(), request.head_index()
    for path in (request.html, request.png):
        if path is not None and not path.parent.is_dir():
            raise MAWError(f"the folder {path.parent} is not there: make it first, or write {path.name} elsewhere")
    if request.html is not None and request.html.is_dir():
        raise MAWError(f"--html wants a file to write, got the folder {request.html}: give a name in it")
    model = load_encoder(request.model, device=choose_device(request.device), max_length=request.max_length)
    found = inspect(model, texts, layer=request.layer, head=head, depths=request.depths)
    for number in request.empty():
        print(f"maw: text {number} is empty and left out: the others are numbered without it", file=sys.stderr)
    written = []
    if request.html is not None:
        write_text(request.html, render_page(found, request.model))
        written.append(request.html)
    if request.png is not None:
        written += save_pictures(found, request.png)
    if request.json:
        print(json_line({"schema": 1, "model": request.model, **found.to_dict()}), file=console.file)
        return
    print_inspection(console, found, request.model)
    for path in written:
        console.print(f"written: {path}", highlight=False, markup=False, soft_wrap=True)
