"""A small SVG writer for the pictures of these pages: maps of numbers, bars, words and arrows.

A picture brings its own card in light and dark, by what the reader's system prefers, and names system fonts only: it
loads nothing. Numbers are drawn as embedded PNG images, one pixel a number enlarged, orange above zero and blue below.
"""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

CELL = 9.0
"""Side of one number, in SVG units."""

POSITIVE, NEGATIVE = (230, 115, 0), (51, 140, 217)

STYLE = """
text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; font-size: 11px; fill: #1f2328 }
.card { fill: #ffffff; stroke: #d0d7de } .frame { fill: none; stroke: #8c959f; stroke-width: .75 }
.back { fill: #ffffff } .small { font-size: 9px } .muted { fill: #57606a } .strong { font-weight: 600; font-size: 12px }
.line { stroke: #57606a; fill: none } .tip { fill: #57606a } .bar { fill: #e67300 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .card { fill: #161b22; stroke: #30363d } .back { fill: #161b22 } .frame { stroke: #6e7681 }
.muted { fill: #9da7b3 } .line { stroke: #9da7b3 } .tip { fill: #9da7b3 }
}
"""


class Canvas:
    """Shapes are added at places in SVG units, from the top left, and written to one file."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.size, self.title, self.parts = (width, height), title, []

    def words(self, x: float, y: float, text: str, kind: str = "", *, anchor: str = "start", turn: int = 0) -> None:
        """A line of text whose baseline begins (or ends, or has its middle) at a place."""
        place = f'transform="translate({x:g} {y:g}) rotate({turn})"' if turn else f'x="{x:g}" y="{y:g}"'
        self.parts.append(f'<text {place} class="{kind}" text-anchor="{anchor}">{html.escape(text)}</text>')

    def numbers(self, x: float, y: float, values: Tensor, largest: float, cell: float = CELL) -> tuple[float, float]:
        """A matrix, one square a number, most intense at `largest`; returns its width and height."""
        rows, columns = values.shape
        width, height = columns * cell, rows * cell
        place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
        image = f'<image {place} preserveAspectRatio="none" href="data:image/png;base64,{_png(values / largest)}"/>'
        self.parts.append(f'<rect {place} class="back"/>{image}<rect {place} class="frame"/>')
        return width, height

    def bars(self, x: float, y: float, values: Tensor, width: float, height: float) -> None:
        """Bars from a common ground; a dashed line where all are equal."""
        step = width / len(values)
        for place, value in enumerate((values / values.max()).tolist()):
            tall = value * height
            self.parts.append(
                f'<rect class="bar" x="{x + place * step:.2f}" y="{y + height - tall:.2f}" width="{0.75 * step:.2f}" '
                f'height="{tall:.2f}"/>'
            )
        even = y + height - float(values.mean() / values.max()) * height
        self.parts.append(f'<path class="line" stroke-dasharray="3 2" d="M{x:g} {even:.2f}h{width:g}"/>')

    def arrow(self, x: float, y: float, length: float) -> None:
        """An arrow to the right."""
        end = x + length
        self.parts.append(f'<path class="line" d="M{x:g} {y:g}H{end - 5:g}"/>')
        self.parts.append(f'<path class="tip" d="M{end:g} {y:g}l-6 -3.5v7z"/>')

    def save(self, file: Path) -> None:
        """Write the picture."""
        width, height = self.size
        file.write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
            f'height="{height:g}" role="img"><title>{html.escape(self.title)}</title><style>{STYLE}</style>'
            f'<rect class="card" x=".5" y=".5" width="{width - 1:g}" height="{height - 1:g}" rx="8"/>'
            + "\n".join(self.parts)
            + "</svg>\n",
            encoding="utf-8",
        )


def _png(values: Tensor) -> str:
    """Numbers of -1 to 1 as colour and opacity; the root of the size is shown, so that small ones are seen."""
    level = (values.abs().clamp(0, 1).sqrt() * 255).round().to(torch.uint8)
    pixels = torch.empty(*values.shape, 4, dtype=torch.uint8)
    pixels[..., :3] = torch.where(values[..., None] >= 0, torch.tensor(POSITIVE), torch.tensor(NEGATIVE))
    pixels[..., 3] = level
    enlarged = pixels.repeat_interleave(8, 0).repeat_interleave(8, 1)  # so that no viewer blurs the cells' edges
    written = io.BytesIO()
    Image.fromarray(enlarged.numpy(), "RGBA").save(written, "PNG", optimize=True)
    return base64.b64encode(written.getvalue()).decode("ascii")
