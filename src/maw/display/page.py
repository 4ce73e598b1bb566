"""An inspection as one self-contained HTML page, in the report's style; it loads nothing and runs no script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from maw.display.heatmap import heat_map, received
from maw.display.wording import notes, percent, title_of
from maw.errors import MAWError
from maw.inspection import Inspection, Text
from maw.io.escaping import visible

__all__ = ["render_page"]


def render_page(inspection: Inspection, model: str) -> str:
    """The page.

    Args:
        inspection: what is shown.
        model: what the model is called.

    Raises:
        MAWError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError:
        raise MAWError("the page needs jinja2: pip install 'maw-attention[retrieval]'") from None
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader([here, here.parent / "benchmark"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent}
    strongest = max(float(text.depth_weight.max()) for text in inspection.texts)
    page = environment.get_template("inspection.html.jinja").render(
        inspection=inspection,
        model=model,
        head="the mean over all heads" if inspection.head is None else f"head {inspection.head}",
        notes=notes(inspection),
        sections=[_section(text, strongest) for text in inspection.texts],
    )
    return visible(page)


def _section(text: Text, strongest: float) -> dict[str, Any]:
    """One text: its bars and its maps."""
    title = title_of(text)
    shown = [piece.depth for piece in text.slices]
    maps = [
        _map("Mixed", "what the layer attends to", text.mixed, text, "maw", None),
        _map("Host's own", "the same layer without MAW", text.host, text, "host", None),
    ]
    maps += [_map(f"Depth {piece.depth}", "alone", piece.attention, text, "maw", piece) for piece in text.slices]
    return {
        "text": text,
        "title": title,
        "weights": _bars(text.depth_weight, shown, strongest, "Depth weights", is_weight=True),
        "entropies": _bars(text.entropy, shown, 1.0, "Entropy of every slice", is_weight=False),
        "maps": maps,
    }


def _map(name: str, what: str, attention: Tensor, text: Text, colour: str, piece: Any) -> dict[str, Any]:
    gets = ", ".join(f"{token} {percent(share)}" for token, share in received(attention, text.tokens))
    svg = heat_map(attention, text.tokens, f"{name}: most attended to are {gets}", colour)
    return {"name": name, "what": what, "svg": svg, "gets": gets, "piece": piece}


def _bars(values: Float[Tensor, " D"], shown: list[int], top: float, title: str, *, is_weight: bool) -> str:
    """One bar a depth, from 0 to `top`; those that are shown below stand out, and weights have a line at 1/D."""
    heights = [max(0.0, min(1.0, value / top)) * 60 for value in values.tolist()]

    def path(depths: list[int]) -> str:
        return "".join(f"M{d + 0.1:.1f} 60V{60 - heights[d]:.2f}H{d + 0.9:.1f}V60Z" for d in depths)

    others = [depth for depth in range(len(heights)) if depth not in shown]
    equal = 60 - 60 / len(heights) / top
    line = f'<path class="equal" d="M0 {equal:.2f}H{len(heights)}"/>' if is_weight else ""
    return (
        f'<svg class="bars" viewBox="0 0 {len(heights)} 60" preserveAspectRatio="none" role="img">'
        f"<title>{title}</title>"
        f'<path class="others" d="{path(others)}"/><path class="shown" d="{path(shown)}"/>{line}</svg>'
    )
