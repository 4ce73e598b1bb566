"""Ids that can be printed and written as a column."""

import pytest

from maw.io.ids import check_id


@pytest.mark.parametrize("text", ["d1", "MED-10", "a b", "é", "\u202eabc", "文書-1", "a\u00a0b", "x\u200bz"])
def test_ids_of_any_script_are_taken(text):
    assert check_id(text) is None


@pytest.mark.parametrize("code", [*range(0x20), *range(0x7F, 0xA0)])
def test_every_control_character_is_refused_and_named(code):
    assert f"U+{code:04X}" in (check_id(f"a{chr(code)}b") or "")


@pytest.mark.parametrize("text", ["", " ", "\u2003"])
def test_an_id_is_not_empty(text):
    assert "white space" in (check_id(text) or "")


def test_a_byte_order_mark_does_not_begin_an_id():
    assert "byte order mark" in (check_id("\ufeff301") or "")


def test_a_lone_surrogate_is_refused():
    assert "U+D800" in (check_id("a\ud800") or "")
