"""Characters that would do something to a terminal or a page instead of being seen there, written as what they are.

Texts of documents, names of files and what other libraries say may hold any character. An escape sequence recolours,
clears or renames the terminal, or has it answer as if the person typed; a bidirectional control shows a line in another
order than it has.
"""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = ["json_line", "visible"]

_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but for tab and line feed, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidirectional controls
    "\u2028\u2029\ud800-\udfff]"  # separators of lines; halves of a character, which UTF-8 cannot write
)


def visible(text: str, *, one_line: bool = False) -> str:
    """Write control characters as escapes, such as `\\x1b`; every other character stays as it is.

    These are those of Unicode's category Cc (C0, DEL and C1) but for tab and line feed, the bidirectional controls,
    the line and paragraph separators, and lone surrogates, as which Python holds bytes of a file's name that are no
    UTF-8.

    Args:
        text: any text.
        one_line: whether tabs and line feeds are escaped too.

    >>> print(visible("red: \\x1b[31m, end: \\u202egpj.exe"))
    red: \\x1b[31m, end: \\u202egpj.exe
    >>> print(visible("a\\nb", one_line=True))
    a\\nb
    """
    shown = _CONTROLS.sub(_escape, text)
    return shown.replace("\n", "\\n").replace("\t", "\\t") if one_line else shown


def json_line(value: Any) -> str:
    """A value as JSON on one line in which no character does anything to a terminal; it reads back the same.

    >>> print(json_line({"text": "é \\x9b31m \\u202e"}))
    {"text": "é \\u009b31m \\u202e"}
    """
    line = json.dumps(value, ensure_ascii=False, default=str)
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", line)  # they are inside of strings alone


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    named = {"\r": "\\r"}.get(found[0])
    return named or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
