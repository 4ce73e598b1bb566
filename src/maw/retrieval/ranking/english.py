"""English text to the words that are indexed, as Lucene's EnglishAnalyzer does it.

Words by the rules of Unicode's annex 29, lower case, no possessive 's, without 33 stop words, stemmed by Porter's
algorithm. Of Chinese and of Japanese hiragana every character is a word, of Thai, Lao, Khmer and Burmese a run without
a space. What differs from Lucene: an emoji of several characters is several words, a Hebrew abbreviation with quotation
marks too, and a word of more than 255 characters is not cut.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable

__all__ = ["STOP_WORDS", "analyser", "porter_stem"]

_STOP_WORDS = """
a an and are as at be but by for if in into is it no not of on or such that the their then there these they this to was
will with
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
"""The English stop words of Lucene."""


def analyser() -> Callable[[str], list[str]]:
    """Return a function from a text to its stems; it remembers the stem of every word it has seen.

    Example:
        >>> analyser()("The U.S. runner's dogs weren't running 3.5 km/h")
        ['u.', 'runner', 'dog', "weren't", 'run', '3.5', 'km', 'h']
    """
    is_plain, stems = _plain_text().fullmatch, _Stems()

    def analyse(text: str) -> list[str]:
        # one character for one, as Lucene lowers: Python makes two of the first, and another of the second at the end
        text = text.replace("İ", "i").replace("Σ", "σ").lower()
        word = _PLAIN_WORD if text.isascii() or is_plain(text) else _any_word()
        return [stem for stem in map(stems.__getitem__, word.findall(text)) if stem]

    return analyse


class _Stems(dict[str, str]):
    """Word in lower case -> stem, or nothing for a stop word."""

    def __missing__(self, word: str) -> str:
        bare = word[:-2] if word.endswith(("'s", "’s", "＇s")) else word
        stem = self[word] = "" if bare in STOP_WORDS else porter_stem(bare)
        return stem


_HAN = "\u2e80-\u2fdf\u3005\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_HIRAGANA = "\u3041-\u3096\u309d-\u309f\U0001b001-\U0001b11f"
_KATAKANA = "\u3031-\u3035\u309b\u309c\u30a0-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u32d0-\u32fe\u3300-\u3357\uff66-\uff9d"
# Thai, Lao, Myanmar, Khmer, Tai Le, New Tai Lue, Tai Tham and more of Myanmar: a run of them is one word
_SOUTH_EAST_ASIAN = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ecd\u0edc-\u0edf\u1000-\u103f\u1050-\u108f\u109a-\u109f\u1780-\u17d3\u17d7"
    "\u17dc\u17dd\u1950-\u1974\u1980-\u19c9\u19da\u19de\u19df\u1a20-\u1aad\ua9e0-\ua9ef\ua9fa-\ua9fe\uaa60-\uaac2"
)
# Unicode's Extended_Pictographic: every emoji, and signs that are none to the eye
_EMOJI = (
    "\u00a9\u00ae\u203c\u2049\u2122\u2139\u2194-\u2199\u21a9\u21aa\u231a\u231b\u2328\u2388\u23cf\u23e9-\u23f3\u23f8-\u23fa"
    "\u24c2\u25aa\u25ab\u25b6\u25c0\u25fb-\u25fe\u2600-\u2605\u2607-\u2612\u2614-\u2685\u2690-\u2705\u2708-\u2712\u2714\u2716"
    "\u271d\u2721\u2728\u2733\u2734\u2744\u2747\u274c\u274e\u2753-\u2755\u2757\u2763-\u2767\u2795-\u2797\u27a1\u27b0\u27bf"
    "\u2934\u2935\u2b05-\u2b07\u2b1b\u2b1c\u2b50\u2b55\u3030\u303d\u3297\u3299\U0001f000-\U0001f0ff\U0001f10d-\U0001f10f"
    "\U0001f12f\U0001f16c-\U0001f171\U0001f17e\U0001f17f\U0001f18e\U0001f191-\U0001f19a\U0001f1ad-\U0001f1e5"
    "\U0001f201-\U0001f20f\U0001f21a\U0001f22f\U0001f232-\U0001f23a\U0001f23c-\U0001f23f\U0001f249-\U0001f3fa"
    "\U0001f400-\U0001f53d\U0001f546-\U0001f64f\U0001f680-\U0001f6ff\U0001f774-\U0001f77f\U0001f7d5-\U0001f7ff"
    "\U0001f80c-\U0001f80f\U0001f848-\U0001f84f\U0001f85a-\U0001f85f\U0001f888-\U0001f88f\U0001f8ae-\U0001f8ff"
    "\U0001f90c-\U0001f93a\U0001f93c-\U0001f945\U0001f947-\U0001fffd"
)
_UNSPACED = f"{_HAN}{_HIRAGANA}{_KATAKANA}{_SOUTH_EAST_ASIAN}"
_BETWEEN_BOTH = ".'‘’․﹒＇．"
_BETWEEN_LETTERS = ":·\u0387\u02d7\u05f4‧︓﹕："
_BETWEEN_DIGITS = ",;\u037e\u0589\u060c\u060d\u066c\u07f8⁄︐︔﹐﹔，；"


def _pattern(other: str = "", joining: str = "_", attached: str = "") -> str:
    """What matches a word of a text in lower case.

    Args:
        other: characters that Python takes for letters and that are in no word of letters.
        joining: the underscore and its kin.
        attached: marks that belong to the character before them.
    """
    no_letter = rf"\W\d_{other}"
    start, run = rf"[{joining}]*(?:[^{no_letter}]|\d)", rf"(?:[^{no_letter}]|[\d{joining}{attached}])*"
    if not (other or attached):
        start, run = r"_*[^\W_]", r"\w*"
    between = (
        rf"(?:(?<=\d)[{_BETWEEN_BOTH}{_BETWEEN_DIGITS}](?=\d)"
        rf"|(?<=[^{no_letter}])[{_BETWEEN_BOTH}{_BETWEEN_LETTERS}](?=[^{no_letter}]))"
    )
    return rf"{start}{run}(?:{between}{run})*|[{_EMOJI}]"


_PLAIN_WORD = re.compile(_pattern())


@functools.cache
def _plain_text() -> re.Pattern[str]:
    """What matches a text without the characters for which `_any_word` is there."""
    special = {"No", "Mn", "Mc", "Me", "Cf", "Pc", "Cs"}
    unspaced = re.compile(f"[{_UNSPACED}]").match
    plain = (
        code
        for code in range(0x10000)
        if code == ord("_") or not (unicodedata.category(chr(code)) in special or unspaced(chr(code)))
    )
    return re.compile(f"[{_ranges(plain)}]*")


@functools.cache
def _any_word() -> re.Pattern[str]:
    """What matches a word of any text; some times slower."""
    kinds: dict[str, list[int]] = {}
    for code in (*range(0x20000), *range(0xE0000, 0xE0200)):  # the planes between have ideographs alone, or nothing
        kinds.setdefault(unicodedata.category(chr(code)), []).append(code)
    joining = _ranges(kinds["Pc"])
    kinds["Cf"].remove(0x200B)  # a space without width is a space
    attached = _ranges([*kinds["Mn"], *kinds["Mc"], *kinds["Me"], *kinds["Cf"]])
    words = _pattern(f"{_UNSPACED}{_ranges(kinds['No'])}", joining, attached)
    south_east_asian = f"(?:[{_SOUTH_EAST_ASIAN}][{attached}]*)+"
    katakana = f"[{_KATAKANA}{joining}]*[{_KATAKANA}][{_KATAKANA}{joining}{attached}]*"
    return re.compile(f"{words}|{south_east_asian}|{katakana}|[{_HAN}{_HIRAGANA}][{attached}]*")


def _ranges(codes: Iterable[int]) -> str:
    """Characters as the inside of a class of a regular expression."""
    found: list[list[int]] = []
    for code in sorted(set(codes)):
        if found and found[-1][1] == code - 1:
            found[-1][1] = code
        else:
            found.append([code, code])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in found)


_SECOND = {
    "ational": "ate", "tional": "tion", "enci": "ence", "anci": "ance", "izer": "ize", "bli": "ble", "alli": "al",
    "entli": "ent", "eli": "e", "ousli": "ous", "ization": "ize", "ation": "ate", "ator": "ate", "alism": "al",
    "iveness": "ive", "fulness": "ful", "ousness": "ous", "aliti": "al", "iviti": "ive", "biliti": "ble", "logi": "log",
}  # fmt: skip
_THIRD = {"icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ful": "", "ness": ""}
_FOURTH_ENDINGS = "al ance ence er ic able ible ant ement ment ent ou ism ate iti ous ive ize"
_FOURTH = frozenset(_FOURTH_ENDINGS.split())


def porter_stem(word: str) -> str:
    """Return the stem of a word in lower case, by Porter's algorithm as its author revised it.

    The revision is what Lucene has: a word of up to two letters stays, `bli` becomes `ble` (not `abli` `able`), and
    `logi` becomes `log`.

    Source: Porter (1980), doi 10.1108/eb046814; the revision: https://tartarus.org/martin/PorterStemmer/

    Example:
        >>> [porter_stem(word) for word in ("us", "relational", "pathology", "possibly", "hopping", "controlled")]
        ['us', 'relat', 'patholog', 'possibl', 'hop', 'control']
    """
    if len(word) <= 2:
        return word
    word = _without_inflection(word)
    word = _replaced(word, _SECOND, 7, 3)
    word = _replaced(word, _THIRD, 5, 3)
    word = _without_suffix(word)
    if word.endswith("e"):
        count = _measure(word[:-1])
        if count > 1 or (count == 1 and not _is_short(word[:-1])):
            word = word[:-1]
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word


def _without_inflection(word: str) -> str:
    """Plurals, participles, and i for y."""
    if word.endswith(("sses", "ies")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    if word.endswith("eed"):
        word = word[:-1] if _measure(word[:-3]) > 0 else word
    elif word.endswith(("ed", "ing")):
        stem = word[:-2] if word.endswith("ed") else word[:-3]
        if "v" in _shape(stem):
            word = _mended(stem)
    return f"{word[:-1]}i" if word.endswith("y") and "v" in _shape(word[:-1]) else word


def _mended(stem: str) -> str:
    """What a stem without its ed or ing is spelled like: hop of hopp, hope of hop-ing, and so on."""
    if stem.endswith(("at", "bl", "iz")):
        return f"{stem}e"
    if len(stem) > 1 and stem[-1] == stem[-2] and _shape(stem)[-1] == "c":
        return stem if stem[-1] in "lsz" else stem[:-1]
    return f"{stem}e" if _measure(stem) == 1 and _is_short(stem) else stem


def _replaced(word: str, endings: dict[str, str], longest: int, shortest: int) -> str:
    """The word with its longest ending replaced, where the rest has a vowel and a consonant after it."""
    for length in range(min(longest, len(word)), shortest - 1, -1):
        if (new := endings.get(word[-length:])) is not None:
            stem = word[:-length]
            return f"{stem}{new}" if _measure(stem) > 0 else word
    return word


def _without_suffix(word: str) -> str:
    if word.endswith(("sion", "tion")):
        return word[:-3] if _measure(word[:-3]) > 1 else word
    for length in range(min(5, len(word)), 1, -1):
        if word[-length:] in _FOURTH:
            return word[:-length] if _measure(word[:-length]) > 1 else word
    return word


class _Kinds(dict[int, str]):
    def __missing__(self, character: int) -> str:
        return "c"


_KINDS = _Kinds({ord(vowel): "v" for vowel in "aeiou"} | {ord("y"): "y"})


def _shape(text: str) -> str:
    """v for every vowel and c for every consonant; y is a vowel after a consonant."""
    kinds = text.translate(_KINDS)
    while (place := kinds.find("y")) >= 0:
        kind = "v" if place and kinds[place - 1] == "c" else "c"
        kinds = f"{kinds[:place]}{kind}{kinds[place + 1 :]}"
    return kinds


def _measure(text: str) -> int:
    """How often a vowel is followed by a consonant: Porter's m."""
    return _shape(text).count("vc")


def _is_short(text: str) -> bool:
    """Whether it ends in consonant, vowel, and a consonant other than w, x and y."""
    return len(text) > 2 and text[-1] not in "wxy" and _shape(text).endswith("cvc")
