"""Characters that are shown instead of acting."""

import json
import unicodedata

import pytest

from maw.io.escaping import json_line, visible

EVERY = [chr(code) for code in range(0x110000)]
BIDIRECTIONAL = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def test_what_is_escaped_of_all_characters():
    changed = {character for character in EVERY if visible(character) != character}
    controls = {character for character in EVERY if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")}
    assert changed == (controls | BIDIRECTIONAL) - {"\n", "\t"}
    assert all(visible(character).isascii() and visible(character).isprintable() for character in changed)


@pytest.mark.parametrize("text", ["é 文書 עברית a\nb\tc", "🙂 [red] :smile: \\x1b", ""])
def test_other_texts_stay(text):
    assert visible(text) == text


def test_one_line_is_one():
    assert visible("a\n\tb\r", one_line=True) == r"a\n\tb\r"


def test_json_reads_back_the_same_and_has_no_controls():
    value = {".".join(EVERY): [".".join(EVERY)]}
    assert json.loads(json_line(value)) == value
    assert not set(json_line(value)) & {one for one in EVERY if visible(one) != one or one in "\n\t"}
