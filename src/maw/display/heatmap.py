"""Attention as a heat map in SVG: one cell a pair of tokens, drawn without a plotting library, so that many are quick.

A cell's colour is opaque where the probability is 1 and absent where it is 0, so that one map serves light and dark
pages. The root of the probability is shown, as most probabilities are small.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["COLOURS", "heat_map", "looks_at", "received", "shortened"]

COLOURS = {"maw": (230, 115, 0), "host": (51, 140, 217)}
"""Red, green and blue of the maps of MAW and of the host's own attention; readable on light and on dark."""

WIDEST = 640  # pixels of the cells together
HOVERED = 64  # tokens up to which each row says what it looks at


def shortened(token: str, length: int = 14) -> str:
    """A token as a label.

    >>> shortened("incomprehensibilities")
    'incomprehensi…'
    """
    return token if len(token) <= length else f"{token[: length - 1]}…"


def received(attention: Float[Tensor, "Q K"], tokens: Sequence[str], count: int = 3) -> list[tuple[str, float]]:
    """The tokens that get most attention, with the mean over queries of it.

    >>> received(torch.tensor([[0.25, 0.75], [0.5, 0.5]]), ["the", "bell"], count=1)
    [('bell', 0.625)]
    """
    mean = attention.mean(dim=0).tolist()
    return sorted(zip(tokens, mean, strict=True), key=lambda one: -one[1])[:count]


def looks_at(row: Float[Tensor, " K"], tokens: Sequence[str], count: int = 3) -> str:
    """What one query attends to, in words.

    >>> looks_at(torch.tensor([0.25, 0.75]), ["the", "bell"])
    'bell 75 %, the 25 %'
    """
    values, places = row.topk(min(count, len(tokens)))
    found = zip(values.tolist(), places.tolist(), strict=True)
    return ", ".join(f"{tokens[place]} {100 * value:.0f} %" for value, place in found)


def heat_map(attention: Float[Tensor, "Q K"], tokens: Sequence[str], title: str, colour: str) -> str:
    """An SVG element for an HTML page: rows are queries, columns the keys they attend to.

    Args:
        attention: probabilities, (Q, K), of the same tokens on both axes.
        tokens: the labels.
        title: what a screen reader says of it.
        colour: one of `COLOURS`.
    """
    number = len(tokens)
    cell = max(2.0, min(18.0, WIDEST / number))
    step = max(1, round(12 / cell))  # every so many tokens have a label
    labels = {place: html.escape(shortened(tokens[place])) for place in range(0, number, step)}
    margin = 12 + 7 * max(len(shortened(tokens[place])) for place in labels)
    size = cell * number
    whole = f"{margin + size + 2:.0f}"
    parts = [
        f'<svg viewBox="0 0 {whole} {whole}" width="{whole}" height="{whole}" role="img"><title>{html.escape(title)}'
        f'</title><rect x="{margin}" y="{margin}" width="{size:.1f}" height="{size:.1f}" class="frame"/>'
        f'<image x="{margin}" y="{margin}" width="{size:.1f}" height="{size:.1f}" preserveAspectRatio="none" '
        f'href="data:image/png;base64,{_png(attention, colour)}"/>'
    ]
    for place, label in labels.items():
        middle = margin + cell * (place + 0.5)
        parts.append(f'<text x="{margin - 5}" y="{middle + 4:.1f}" text-anchor="end">{label}</text>')
        parts.append(f'<text transform="translate({middle + 4:.1f} {margin - 5}) rotate(-90)">{label}</text>')
    if number <= HOVERED:
        for place, token in enumerate(tokens):
            words = html.escape(f"{token} looks at {looks_at(attention[place], tokens)}")
            parts.append(
                f'<rect class="row" x="{margin}" y="{margin + cell * place:.1f}" width="{size:.1f}" '
                f'height="{cell:.1f}"><title>{words}</title></rect>'
            )
    return "".join([*parts, "</svg>"])


def _png(attention: Tensor, colour: str) -> str:
    """One palette entry a level of opacity; enlarged, so that no viewer blurs the cells' edges."""
    from PIL import Image

    level = (attention.clamp(0, 1).sqrt() * 255).round().to(torch.uint8)
    times = max(1, -(-240 // len(level)))
    image = Image.fromarray(level.repeat_interleave(times, 0).repeat_interleave(times, 1).numpy())
    image.putpalette(bytes(COLOURS[colour]) * 256)
    written = io.BytesIO()
    image.save(written, "PNG", transparency=bytes(range(256)), optimize=False)
    return base64.b64encode(written.getvalue()).decode("ascii")
