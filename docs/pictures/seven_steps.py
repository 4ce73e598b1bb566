"""Draw the seven steps of MAW on a real sentence: `python docs/pictures/seven_steps.py`.

The packaged encoder gets MAW in its last layer (64 depths, spectral views) and encodes the sentence. What its layer is
given goes through `maw.reference.seven_steps`, and every picture shows one of the intermediates. Depth weights are
those of one training step (Gumbel noise, seed 0): in evaluation an untrained MAW has all weights equal.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from canvas import CELL, Canvas

import maw
from maw.hf.attach import carrying_host, maw_layers
from maw.hf.capture import capture, plain_attention, readable_tokens
from maw.reference import SevenSteps, seven_steps
from maw.retrieval.models import choose_device, load_encoder
from maw.selector import depth_weights

SENTENCE = "The bell rang twice before the fog lifted."
SHOWN = (0, 1, 2)  # depths; the views are sorted, the first one is the head's largest component
HEAD = 4


@dataclass(frozen=True)
class Drawn:
    """One head of one text: its tokens, values and intermediates, and the scale of its layer."""

    tokens: tuple[str, ...]
    value: torch.Tensor
    steps: SevenSteps
    scale: float

    @property
    def score(self) -> torch.Tensor:
        """`scale` times the score, (Q, K, D)."""
        return self.scale * self.steps.score[0, 0]


def compute(sentence: str, head: int) -> Drawn:
    """The sentence's intermediates, from what the encoder gives its last layer."""
    model = load_encoder("packaged", device=choose_device("cpu"))
    maw.attach(model, maw.MAWConfig(layers=[-1], depth=64))
    host, module = carrying_host(model, "draw"), maw_layers(model)[-1]
    with torch.no_grad(), plain_attention(model, host, 64):
        seen = capture(model, host, module, sentence)
        torch.manual_seed(0)
        settings = {name: getattr(module.config, name) for name in ("selection", "tau", "noise")}
        weight = depth_weights(torch.zeros(1, module.config.depth), training=True, **settings)
        part = slice(head, head + 1)
        steps = seven_steps(
            *(one[:, part] for one in (seen.query, seen.key, seen.value)),
            module.query_views[part],
            module.key_views[part],
            weight,
            scale=module.scale,
        )
    return Drawn(readable_tokens(model.tokenizer, seen.ids), seen.value[0, head], steps, module.scale)


# Parts of pictures


def labelled(canvas: Canvas, x: float, y: float, drawn: Drawn, *, rows: bool = True, columns: bool = True) -> None:
    """The tokens beside and above a map at x, y."""
    for place, token in enumerate(drawn.tokens):
        middle = CELL * (place + 0.5) + 3
        if rows:
            canvas.words(x - 4, y + middle, token, "small", anchor="end")
        if columns:
            canvas.words(x + middle, y - 4, token, "small", turn=-90)


def outer_product(canvas: Canvas, x: float, y: float, drawn: Drawn, depth: int) -> None:
    """A slice with the column and the row that it is the product of."""
    u, t = drawn.steps.query_expanded[0, 0, depth], drawn.steps.key_expanded[0, 0, depth]
    canvas.numbers(x, y, u, float(drawn.steps.query_expanded[0, 0].abs().max()))
    canvas.numbers(x + CELL + 5, y - CELL - 5, t, float(drawn.steps.key_expanded[0, 0].abs().max()))
    canvas.numbers(x + CELL + 5, y, drawn.score[..., depth], largest_shown(drawn))


def stack(canvas: Canvas, x: float, y: float, drawn: Drawn, depths: int = 5) -> None:
    """Slices behind each other, as the last axis of one tensor."""
    for depth in reversed(range(depths)):
        canvas.numbers(x + 7 * depth, y - 7 * depth, drawn.score[..., depth], largest_shown(drawn))


def largest_shown(drawn: Drawn) -> float:
    """The largest size among the slices that are drawn."""
    return float(drawn.score[..., list(SHOWN)].abs().max())


# Pictures


def overview(drawn: Drawn) -> Canvas:
    """All seven steps in one picture."""
    steps, n = drawn.steps, CELL * len(drawn.tokens)
    depths, channels = steps.depth_weight.shape[1], drawn.value.shape[1]
    canvas = Canvas(920, 422, f"The seven steps of MAW on the sentence: {SENTENCE}")
    canvas.words(18, 28, f"“{SENTENCE}”", "strong")
    canvas.words(902, 28, f"one head of {channels} channels, {depths} depths", "muted", anchor="end")
    top = 106
    canvas.words(18, 52, "1, 2: each depth makes one number of a query (column) and one of a key (row)")
    canvas.words(18, 66, "3: their product is the depth's slice of scores")
    for place, depth in enumerate(SHOWN):
        x = 66 + 178 * place
        outer_product(canvas, x, top, drawn, depth)
        canvas.words(x + CELL + 5, top + n + 14, f"depth {depth}", "small muted")
    labelled(canvas, 66, top, drawn, columns=False)
    canvas.words(66 + 178 * 3 - 42, top + n / 2, "…", "strong")
    canvas.words(650, 66, f"4: {depths} slices, depth as the last axis")
    canvas.arrow(606, top + n / 2, 34)
    stack(canvas, 660, top + 10, drawn)
    canvas.words(660, top + n + 24, "(B, H, Q, K, D)", "small muted")
    below = 276
    canvas.words(18, below - 30, "5: the policy weighs the depths")
    canvas.bars(18, below, steps.depth_weight[0], 170, 70)
    canvas.words(18, below + 84, f"w, {depths} weights; dashed: 1/D", "small muted")
    canvas.arrow(198, below + n / 2, 26)
    canvas.words(234, below - 30, "and mixes them: logit")
    canvas.numbers(234, below, steps.logit[0, 0], float(steps.logit.abs().max()))
    canvas.arrow(234 + n + 8, below + n / 2, 70)
    canvas.words(420, below - 30, "6: softmax gives attention")
    canvas.numbers(462, below, steps.attention[0, 0], float(steps.attention.max()))
    labelled(canvas, 462, below, drawn, columns=False)
    canvas.arrow(462 + n + 8, below + n / 2, 34)
    canvas.words(612, below - 30, "7: attention x values: output")
    canvas.numbers(612, below, steps.output[0, 0], float(steps.output.abs().max()))
    canvas.words(612, below + n + 14, f"Q x {channels} channels", "small muted")
    key(canvas, 18, 404)
    return canvas


def key(canvas: Canvas, x: float, y: float) -> None:
    """What the colours mean."""
    canvas.numbers(x, y - 8, torch.tensor([[-1.0, -0.5, -0.1, 0.1, 0.5, 1.0]]), 1.0)
    canvas.words(x + 6 * CELL + 8, y, "below zero … above zero; colour is the root of the size", "small muted")


def slices(drawn: Drawn) -> Canvas:
    """Steps 1 to 3, with the numbers' ranges."""
    n = CELL * len(drawn.tokens)
    canvas = Canvas(720, 244, "Steps 1 to 3: a column, a row and their product for three depths")
    for place, depth in enumerate(SHOWN):
        x, y = 74 + 212 * place, 88
        outer_product(canvas, x, y, drawn, depth)
        labelled(canvas, x, y, drawn, columns=False, rows=not place)
        u, t = drawn.steps.query_expanded[0, 0, depth], drawn.steps.key_expanded[0, 0, depth]
        canvas.words(x, 28, f"depth {depth}", "strong")
        canvas.words(x, 44, f"u {low_high(u)}", "small muted")
        canvas.words(x, 56, f"t {low_high(t)}", "small muted")
        canvas.words(x + CELL + 5, y + n + 14, f"scale · score {low_high(drawn.score[..., depth], 1)}", "small muted")
    key(canvas, 18, 226)
    return canvas


def mixing(drawn: Drawn) -> Canvas:
    """Steps 4 and 5: the stack, the weights, the mixed logits."""
    steps, n = drawn.steps, CELL * len(drawn.tokens)
    canvas = Canvas(720, 216, "Steps 4 and 5: slices, depth weights and the mixed logits")
    top = 76
    canvas.words(24, 28, "4: slices, depth last", "strong")
    stack(canvas, 24, top + 10, drawn)
    canvas.words(24, top + n + 28, "(Q, K, D)", "small muted")
    canvas.words(190, 28, "5: depth weights w", "strong")
    canvas.bars(190, top, steps.depth_weight[0], 240, n)
    least, most = steps.depth_weight.aminmax()
    canvas.words(190, top + n + 14, f"from {least:.4f} to {most:.4f}; dashed: 1/D", "small muted")
    canvas.arrow(440, top + n / 2, 40)
    canvas.words(556, 28, "logit", "strong")
    canvas.numbers(556, top, steps.logit[0, 0], float(steps.logit.abs().max()))
    labelled(canvas, 556, top, drawn, columns=False)
    canvas.words(556, top + n + 14, low_high(steps.logit, 1), "small muted")
    return canvas


def attending(drawn: Drawn) -> Canvas:
    """Steps 6 and 7: attention, values, output."""
    steps, n = drawn.steps, CELL * len(drawn.tokens)
    canvas = Canvas(900, 226, "Steps 6 and 7: attention, values and output")
    top = 92
    canvas.words(60, 28, "6: attention", "strong")
    canvas.numbers(60, top, steps.attention[0, 0], float(steps.attention.max()))
    labelled(canvas, 60, top, drawn)
    canvas.words(60, top + n + 14, f"rows sum to 1, most {float(steps.attention.max()):.2f}", "small muted")
    canvas.words(186, top + n / 2 + 4, "x", "strong")
    canvas.words(242, 28, "values of the tokens", "strong")
    canvas.numbers(242, top, drawn.value, float(drawn.value.abs().max()))
    labelled(canvas, 242, top, drawn, columns=False)
    canvas.arrow(242 + CELL * drawn.value.shape[1] + 8, top + n / 2, 34)
    x = 242 + CELL * drawn.value.shape[1] + 54
    canvas.words(x, 28, "7: output", "strong")
    canvas.numbers(x, top, steps.output[0, 0], float(steps.output.abs().max()))
    canvas.words(x, top + n + 14, "as wide as before: on through the layer's own projection", "small muted")
    return canvas


def low_high(values: torch.Tensor, digits: int = 2) -> str:
    """The range of some numbers."""
    low, high = (round(float(end), digits) + 0.0 for end in values.aminmax())  # + 0.0: no minus before a zero
    return f"{low:.{digits}f} to {high:.{digits}f}"


def main() -> None:
    """Draw all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="the folder for the pictures")
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    drawn = compute(SENTENCE, HEAD)
    for name, draw in {"seven-steps": overview, "slices": slices, "mixing": mixing, "attention": attending}.items():
        draw(drawn).save(folder / f"{name}.svg")
        print(folder / f"{name}.svg")


if __name__ == "__main__":
    main()
