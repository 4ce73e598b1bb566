from __future__ import annotations

import doctest
import re

import pytest

import maw.retrieval.ranking.english as module
from maw.retrieval.ranking.english import STOP_WORDS, analyser, porter_stem

# the examples of Porter's paper, by its steps, each stemmed to the end
OF_THE_PAPER = """
    caresses caress ponies poni ties ti caress caress cats cat feed feed agreed agre plastered plaster bled bled
    motoring motor sing sing conflated conflat troubled troubl sized size hopping hop tanned tan falling fall
    hissing hiss fizzed fizz failing fail filing file happy happi sky sky relational relat conditional condit
    rational ration valenci valenc hesitanci hesit digitizer digit conformabli conform radicalli radic
    differentli differ vileli vile analogousli analog vietnamization vietnam predication predic operator oper
    feudalism feudal decisiveness decis hopefulness hope callousness callous formaliti formal sensitiviti sensit
    sensibiliti sensibl triplicate triplic formative form formalize formal electriciti electr electrical electr
    hopeful hope goodness good revival reviv allowance allow inference infer airliner airlin gyroscopic gyroscop
    adjustable adjust defensible defens irritant irrit replacement replac adjustment adjust dependent depend
    adoption adopt homologou homolog communism commun activate activ angulariti angular homologous homolog
    effective effect bowdlerize bowdler probate probat rate rate cease ceas controll control roll roll
"""
PAIRS = [tuple(pair.split()) for pair in re.findall(r"\S+ \S+", OF_THE_PAPER)]


@pytest.mark.parametrize(("word", "stem"), PAIRS)
def test_the_stems_of_the_paper(word: str, stem: str) -> None:
    assert porter_stem(word) == stem


@pytest.mark.parametrize(
    ("word", "stem"),
    [
        ("us", "us"), ("ls", "ls"), ("s", "s"), ("as", "as"), ("", ""),  # up to two letters
        ("biology", "biologi"), ("pathology", "patholog"), ("technologies", "technolog"), ("logi", "logi"),
        ("possibly", "possibl"), ("probably", "probabl"), ("bli", "bli"),
        ("yes", "ye"), ("say", "sai"), ("syzygy", "syzygi"), ("1990s", "1990"), ("écoles", "école"), ("ion", "ion"),
    ],
)  # fmt: skip
def test_where_the_revised_algorithm_differs_and_at_the_edges(word: str, stem: str) -> None:
    assert porter_stem(word) == stem


@pytest.mark.parametrize(
    ("text", "stems"),
    [
        ("The dog’s bone, James' and the cat's", ["dog", "bone", "jame", "cat"]),
        ("e-mail and/or 3,000.5 m²", ["e", "mail", "3,000.5", "m"]),
        ("don't U.S.A. 1.x snake_case __ _a", ["don't", "u.s.a", "1", "x", "snake_cas", "_a"]),
        ("It's ÉCOLE", ["école"]),
        ("us, LS and S: I", ["us", "ls", "s", "i"]),
        ("IC₅₀ of H₂O2 and ½", ["ic", "h", "o2"]),
        ("açai\u0301 co\u00adop", ["açai\u0301", "co\u00adop"]),  # marks and soft hyphens belong to the word
        ("Herbalife® ☀ 東京タワーでX 한국어", ["herbalif", "®", "☀", "東", "京", "タワー", "で", "x", "한국어"]),
        ("İSTANBUL ΟΔΟΣ", ["istanbul", "οδοσ"]),
        ("", []),
    ],
)
def test_analysis(text: str, stems: list[str]) -> None:
    assert analyser()(text) == stems


def test_the_two_patterns_for_words_agree() -> None:
    for text in ("a.b:c 1,5 x_1 don’t", "naïve ‘q’ ωβ·γ ™ п.р", "3.a a.3 _._ a__b a'1 1'2"):
        assert module._plain_text().fullmatch(text)
        assert module._PLAIN_WORD.findall(text) == module._any_word().findall(text)
    assert not module._plain_text().fullmatch("m²")
    assert not module._plain_text().fullmatch("東")


def test_stop_words_are_lucene_s_33() -> None:
    assert len(STOP_WORDS) == 33


def test_the_examples_run() -> None:
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed
