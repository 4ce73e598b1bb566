"""How the report draws: matplotlib on the SVG backend, made to live inside an HTML page.

No pyplot, no display, the same bytes for the same input. Text stays text, and every colour becomes a CSS variable of
the page, so that one plot serves light and dark. Colour never carries meaning alone: whatever has a colour has a
written label as well.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maw.errors import MAWError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "Plot", "draw_svg", "family", "label_rows", "opening_tag", "short"]

# Colours that nothing else uses: `draw_svg` replaces each by the CSS variable of the same name.
COLOURS = {"ink": "#010203", "muted": "#010204", "line": "#010205", "band": "#010206", "other": "#010207"}
COLOURS |= {"maw": "#010208", "dense": "#010209", "reference": "#01020a", "control": "#01020b"}

SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "maw",
    "text.parse_math": False,  # a name with dollar signs is a name
    "font.family": ["DejaVu Sans"],
    "font.size": 10.0,
    "axes.titlesize": 10.0,
    "axes.labelsize": 10.0,
    "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.edgecolor": COLOURS["line"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.5,
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
}
_TICKS = {"labelsize": 9.5, "color": COLOURS["line"], "labelcolor": COLOURS["muted"]}
SETTINGS |= {f"{axis}tick.{name}": value for axis in "xy" for name, value in _TICKS.items()}
LABEL = 27  # letters of a label
WIDTH = 4.4  # inches: 317 points, so that letters of ten points stay readable on a phone


@dataclass(frozen=True)
class Plot:
    """One plot: its name, unique in the page, its title, the SVG, and what it shows in a sentence or two."""

    name: str
    title: str
    svg: str
    caption: str


def family(variant: str) -> str:
    """Return which colour a variant has: `reference` (no training), `dense`, `maw`, or `control` for all others.

    >>> [family(name) for name in ("bm25", "dense-lora", "maw-full", "literal")]
    ['reference', 'dense', 'maw', 'control']
    """
    if variant in {"bm25", "untuned"}:
        return "reference"
    prefix = variant.split("-", maxsplit=1)[0]
    return prefix if prefix in {"dense", "maw"} else "control"


def short(label: str) -> str:
    """A label that fits beside a plot: the middle of a long one is left out.

    >>> short("maw-full"), short("a-variant-whose-name-tells-its-whole-story")
    ('maw-full', 'a-variant-who…s-whole-story')
    """
    return label if len(label) <= LABEL else f"{label[: LABEL // 2]}…{label[-(LABEL // 2) :]}"


def label_rows(axes: Axes, labels: Sequence[str]) -> None:
    """One labelled row for each of these, the first on top, above an axis of numbers."""
    axes.set_yticks(range(len(labels)), labels, color=COLOURS["ink"])
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=True, axis="x")
    axes.set_axisbelow(True)
    axes.locator_params(axis="x", nbins=5)


def opening_tag(name: str, title: str, box: str) -> str:
    """The start of an SVG element that an HTML page may hold, with its title."""
    head = f'<svg viewBox="{box}" role="img" aria-labelledby="{name}-title">'
    return f'{head}<title id="{name}-title">{html.escape(title)}</title>'


def draw_svg(name: str, title: str, height: float, draw: Callable[[Figure], None]) -> str:
    """Draw on a new figure and return an SVG element for an HTML page: titled, with its own ids and CSS colours.

    Args:
        name: unique in the page; all ids begin with it.
        title: what assistive technology reads.
        height: of the figure in inches.
        draw: draws on the figure.

    Raises:
        MAWError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError:
        raise MAWError("the report needs matplotlib: pip install 'maw-attention[retrieval]'") from None

    def rounded(number: re.Match[str]) -> str:
        return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")

    written = io.StringIO()
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the reader's font may have it
        matplotlib.rcdefaults()  # a person's own settings do not reach the report
        with matplotlib.rc_context(SETTINGS):
            figure = Figure(figsize=(WIDTH, height))
            draw(figure)
            FigureCanvasSVG(figure).print_svg(written)
    text = written.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)  # the date among it
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)  # it would apply to the whole page
    text = re.sub(r"(?<= )xlink:href=", "href=", text)
    text = re.sub(r'id="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"-?\d+\.\d+", rounded, path[0]), text)
    for variable, colour in COLOURS.items():
        text = re.sub(rf"(fill|stroke): {colour}", rf"\1: var(--{variable})", text)
    box = text[text.index("viewBox=") :].split('"')[1]
    return f"{opening_tag(name, title, box)}{text[text.index('>') + 1 :].strip()}"
