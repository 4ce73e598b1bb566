"""Which texts may be an id of a query, a document or a system."""

from __future__ import annotations

import unicodedata

__all__ = ["check_id"]


def check_id(text: str) -> str | None:
    """Say what is wrong with an id, or return None where nothing is.

    An id has at least one character that is no white space, and no control character (Unicode category Cc: C0, DEL and
    C1). So it can be printed in a terminal and written as a column of a file. Bidirectional controls (category Cf) are
    allowed, because ids in right-to-left scripts hold them; what prints an id escapes them. Lone surrogates are
    refused: UTF-8 has no bytes for them. So is a byte order mark at the beginning, as files that were joined have it in
    the middle: an id with one looks like the one without, and is another.

    Args:
        text: the id.

    Returns:
        The problem, in words that follow "got ...:", or None.

    >>> check_id("MED-10")
    >>> check_id("a\\x1b[2J")
    'an id must have no control characters, it has U+001B'
    >>> check_id(" ")
    'an id must have a character that is no white space'
    """
    if not text.strip():
        return "an id must have a character that is no white space"
    if text.isascii() and text.isprintable():
        return None
    if text.startswith("\ufeff"):
        return "an id must not begin with a byte order mark (U+FEFF), which belongs to the beginning of a file"
    for character in text:
        category = unicodedata.category(character)
        if category == "Cc":
            return f"an id must have no control characters, it has U+{ord(character):04X}"
        if category == "Cs":
            return f"an id must be text that UTF-8 can write, it has the lone surrogate U+{ord(character):04X}"
    return None
