"""An inspection in the terminal: a few lines a text; without colours and frames where it is not a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from maw.display.heatmap import received
from maw.display.wording import notes, percent, title_of
from maw.inspection import Inspection, Text
from maw.io.escaping import visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["print_inspection", "sparks"]

LEVELS = "▁▂▃▄▅▆▇█"


def print_inspection(console: Console, inspection: Inspection, model: str) -> None:
    """Print what the depths attend to.

    Args:
        console: where to.
        inspection: what is shown.
        model: what the model is called.
    """
    from rich.text import Text as Line

    head = "mean over heads" if inspection.head is None else f"head {inspection.head}"
    say = f"{model}, layer {inspection.layer}, {head}, {inspection.depth} depths"
    console.print(Line(visible(say), style="bold"))
    for number, text in enumerate(inspection.texts, start=1):
        console.print()
        console.print(Line(f"{number}. {title_of(text)}", style="bold"))
        console.print(f"{len(text.tokens)} tokens, {text.effective_depths:.1f} effective depths", highlight=False)
        weights = sparks(text.depth_weight, max(console.width - 24, 8))
        console.print(Line(f"depth weights {weights}"), overflow="crop", no_wrap=True)
        console.print(_table(text, console.is_terminal))
    console.print()
    for depth in inspection.shown_depths():
        alike = ", ".join(f"{other} ({value:.2f})" for other, value in inspection.neighbours(depth, 3))
        line = f"depth {depth}: most like {alike or 'no other'}"
        if len(inspection.texts) > 1:
            place, weight = inspection.choosers(depth, 1)[0]
            line += f"; chosen most by text {place + 1} ({percent(weight)})"
        console.print(Line(line))
    for note in notes(inspection):
        console.print(Line(note, style="dim"))


def sparks(values: Float[Tensor, " D"], width: int) -> str:
    """One block a depth, its height the value's part of the largest; of neighbours that share a block, the largest.

    >>> import torch
    >>> sparks(torch.tensor([0.0, 0.5, 1.0]), 10), sparks(torch.tensor([0.0, 0.5, 1.0, 0.1]), 2)
    ('▁▅█', '▅█')
    """
    together = -(-len(values) // width)
    largest = float(values.max()) or 1.0
    groups = [float(group.max()) / largest for group in values.split(together)]
    return "".join(LEVELS[round(value * (len(LEVELS) - 1) + 1e-9)] for value in groups)


def _table(text: Text, framed: bool) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD if framed else None, pad_edge=False, show_edge=False)
    table.add_column("attention")
    for name in ("weight", "entropy", "share"):
        table.add_column(name, justify="right")
    table.add_column("most attended to")
    rows = [("mixed", "", "", "", text.mixed), ("host's own", "", "", "", text.host)]
    rows += [
        (f"depth {piece.depth}", percent(piece.weight), f"{piece.entropy:.2f}", percent(piece.share), piece.attention)
        for piece in text.slices
    ]
    from rich.text import Text as Line

    for *cells, attention in rows:
        gets = ", ".join(f"{token} {percent(part)}" for token, part in received(attention, text.tokens))
        table.add_row(*cells, Line(visible(gets)))
    return table
