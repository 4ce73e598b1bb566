"""An inspection as PNG files, one a text: its depth weights and its maps."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from maw.display.heatmap import COLOURS, shortened
from maw.display.wording import percent, title_of
from maw.errors import MAWError
from maw.inspection import Inspection, Text
from maw.io.atomic import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_text", "save_pictures"]

LABELS = 32  # tokens on an axis that have a label, at most
WIDTH, LINE = 9.2, 3.6  # inches: the picture, and a line of maps with its titles


def save_pictures(inspection: Inspection, folder: Path) -> list[Path]:
    """Save `text-1.png` and so on, each whole or not at all.

    Args:
        inspection: what is shown.
        folder: made if it is not there; pictures of the same names are replaced.

    Returns:
        the files.

    Raises:
        MAWError: matplotlib is not installed, or `folder` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise MAWError(f"--png wants a folder for its pictures, got the file {folder}: give another name")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, text in enumerate(inspection.texts, start=1):
        target = folder / f"text-{number}.png"
        with atomic_write(target, "wb") as file:
            draw_text(text, file)
        written.append(target)
    return written


def draw_text(text: Text, file: Path | IO[bytes], *, dots_per_inch: int = 110) -> None:
    """Draw one text into a PNG file.

    Args:
        text: what is shown.
        file: where to: a path, or a file that is open for writing bytes.
        dots_per_inch: size of the picture; it is 9.2 inches wide.

    Raises:
        MAWError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MAWError("pictures need matplotlib: pip install 'maw-attention[retrieval]'") from None
    maps = [("Mixed", text.mixed, "maw"), ("Host's own", text.host, "host")]
    for piece in text.slices:
        name = f"Depth {piece.depth}\nweight {percent(piece.weight)}, entropy {piece.entropy:.2f}"
        maps.append((name, piece.attention, "maw"))
    lines = math.ceil(len(maps) / 3)
    height = 1.5 + LINE * lines
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        matplotlib.rcdefaults()  # a person's own settings do not reach the picture
        with matplotlib.rc_context({"text.parse_math": False, "font.size": 8.0}):
            figure = Figure(figsize=(WIDTH, height))
            # places in inches: a layout engine would measure every label, which takes most of the time
            _bars(figure.add_axes(_place(0.8, height - 1.2, WIDTH - 0.95, 0.8, height)), text)
            for number, (name, attention, colour) in enumerate(maps):
                line, column = divmod(number, 3)
                bottom = height - 1.5 - LINE * (line + 1) + 0.1
                panel = figure.add_axes(_place(0.8 + 2.75 * column, bottom, 2.55, 2.55, height))
                _map(panel, name, attention.sqrt().numpy(), text.tokens, colour, has_rows=not column)
            FigureCanvasAgg(figure).print_figure(file, format="png", dpi=dots_per_inch, metadata={"Software": "maw"})


def _place(left: float, bottom: float, width: float, height: float, whole: float) -> tuple[float, float, float, float]:
    """Inches as parts of the figure."""
    return left / WIDTH, bottom / whole, width / WIDTH, height / whole


def _bars(panel: Axes, text: Text) -> None:
    weights, shown = text.depth_weight.tolist(), {piece.depth for piece in text.slices}
    colours = [_of("maw") if depth in shown else "#a9b0bb" for depth in range(len(weights))]
    panel.bar(range(len(weights)), weights, color=colours, width=0.8)
    panel.axhline(1 / len(weights), color="#565c66", linewidth=0.7, linestyle=(0, (4, 3)))
    panel.set_xlim(-0.6, len(weights) - 0.4)
    panel.set_title(f"{title_of(text)}\nDepth weights; the dashed line is 1/D", fontsize=8, loc="left")
    panel.spines[["top", "right"]].set_visible(False)


def _map(panel: Axes, name: str, values: Any, tokens: tuple[str, ...], colour: str, *, has_rows: bool) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    panel.imshow(values, cmap=LinearSegmentedColormap.from_list(colour, ["#ffffff", _of(colour)]), vmin=0, vmax=1)
    places = range(0, len(tokens), max(1, math.ceil(len(tokens) / LABELS)))
    labels = [shortened(tokens[place], 10) for place in places]
    size = 7 if len(tokens) <= 20 else 5
    panel.set_xticks([])  # plain words are drawn several times as fast as ticks
    panel.set_yticks([])
    edge = -0.5 - 0.015 * len(tokens)
    for place, label in zip(places, labels, strict=True):
        panel.text(place, edge, label, rotation=90, ha="center", va="bottom", fontsize=size)
        if has_rows:
            panel.text(edge, place, label, ha="right", va="center", fontsize=size)
    panel.set_title(name, fontsize=8, loc="left", pad=44)


def _of(colour: str) -> str:
    return "#{:02x}{:02x}{:02x}".format(*COLOURS[colour])
