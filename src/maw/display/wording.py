"""What is said of an inspection, in the same words on the page, in the pictures and in the terminal."""

from __future__ import annotations

from maw.inspection import Inspection, Text

__all__ = ["AGREES", "notes", "percent", "title_of"]

AGREES = 1e-5
"""How far the attention shown may be from the one that the layer computed in float32 before that is called out."""


def title_of(text: Text, length: int = 70) -> str:
    """A text on one line, printable, its middle left out where it is long."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text.text).split())
    half = (length - 3) // 2
    return line if len(line) <= length else f"{line[:half]} … {line[-half:]}"


def notes(inspection: Inspection) -> list[str]:
    """What a reader has to know of these texts in particular."""
    said, texts = [], inspection.texts
    for number, text in enumerate(texts, start=1):
        if text.cut:
            said.append(
                f"Text {number} has {text.whole:,} tokens; the first {len(text.tokens):,} are shown and were encoded."
            )
    if all(text.is_uniform for text in texts):
        said.append(
            f"All depth weights are equal (1/{inspection.depth}): nothing was chosen yet. The depths shown are those "
            "that make most of the mixed logits."
        )
    if any(text.has_own_term for text in texts):
        said.append(
            "This encoder masks or biases attention by position. The mixed attention and the host's own have that "
            "term, the slices do not, as in the reward."
        )
    furthest = max(text.difference for text in texts)
    if furthest > AGREES:
        said.append(
            f"The mixed attention shown is up to {furthest:.1e} from what the layer computed: expected of an encoder "
            "in half precision, otherwise a fault."
        )
    else:
        said.append(f"The mixed attention shown is what the layer computed, to within {furthest:.0e}.")
    return said


def percent(value: float) -> str:
    """A share.

    >>> percent(0.031), percent(0.4567)
    ('3.1 %', '46 %')
    """
    return f"{100 * value:.1f} %" if value < 0.1 else f"{100 * value:.0f} %"
