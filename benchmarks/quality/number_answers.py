"""The number that a written answer gives, exactly. Knows no question.

Read are whole numbers, decimals, thousands separators (comma, thin space, space), fractions, mixed
numbers, percents, powers of ten, money, thousand / million / billion, and whole numbers below one
hundred in words. Not read: decimal commas, compound units (5 dollars and 50 cents), roots, times of
day.
"""

import re
from fractions import Fraction
from typing import NamedTuple

from benchmarks.quality.claims import (
    is_denial,
    is_refusal,
    last_boxed,
    last_marked,
    sentences,
    without_markup,
)


class Number(NamedTuple):
    """A value as it is written: 25 % has the value 25."""

    value: Fraction
    is_percent: bool = False

    def equals(self, other: "Number") -> bool:
        """The same value, whatever the unit; a percentage is the same as its hundredth too."""
        if self.value == other.value:
            return True
        if self.is_percent == other.is_percent:
            return False
        percent, plain = (self, other) if self.is_percent else (other, self)
        return percent.value / 100 == plain.value


class _Found(NamedTuple):
    number: Number
    start: int
    end: int


# fmt: off
_SMALL_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
)
_TENS_WORDS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
# fmt: on
_SPOKEN = re.compile(
    rf"\b(?:(?P<tens>{'|'.join(_TENS_WORDS)})(?:[- ](?P<ones>{'|'.join(_SMALL_WORDS[1:10])}))?"
    rf"|(?P<small>{'|'.join(_SMALL_WORDS)}))\b",
    re.IGNORECASE,
)
_MAX_CHARACTERS = 400  # of a number; Python refuses to read whole numbers of 4300 digits
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
_WHOLE = r"\d{1,3}(?:[, \u00a0\u2009\u202f]\d{3})+(?!\d)|\d+"
_NUMBER = re.compile(
    rf"(?P<sign>(?<![\w)\d}}])[-+](?=[\d.$€£\\])|\b(?:minus|negative)\s+)?"
    rf"(?:US|USD|EUR|CAD)?[$€£]?\s*(?P<inner_sign>(?<=[$€£])-)?"
    rf"(?<![\w.:])(?:"
    rf"\\d?t?frac\{{(?P<latex_top>-?\d+)\}}\{{(?P<latex_bottom>\d+)\}}"
    rf"|(?P<mixed>\d+)\s+(?P<mixed_top>\d+)/(?P<mixed_bottom>\d+)"
    rf"|(?P<top>\d+)\s*/\s*(?P<bottom>\d+)"
    rf"|(?P<whole>{_WHOLE})?(?P<decimals>\.\d+)?"
    rf"(?:[eE](?P<exponent>[-+]?\d+)|\s*(?:x|\*|\u00d7|\\times|\\cdot)\s*10\s*\^\s*\{{?"
    rf"(?P<power>[-+]?\d+)\}}?)?"
    rf")(?![\d:]\d|\d)"
    rf"(?:\s*(?P<scale>thousand|million|billion)\b)?"
    rf"(?P<percent>\s*%|\s+per\s?cent\b)?",
    re.IGNORECASE,
)
_EQUALS = re.compile(r"=|≈|\bequals\b|\bwhich is\b|\bcomes to\b", re.IGNORECASE)
_HEDGE = re.compile(
    r"^(?!.*\bnot\b)[^\d.;=]{0,20}?\b(?:or|and|to)\b[^\d.;=]{0,12}$|^\s*[-\u2013/,&~][\s$€£]*$",
    re.IGNORECASE,
)
_SURENESS = re.compile(r"\b(?:sure|certain|confident|confidence)\b", re.IGNORECASE)
_VULGAR = {"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}


def number_of(answer: str) -> Number | None:
    """The number that ``answer`` ends up with; None for a refusal, none, or several at once."""
    text = _plain(answer)
    boxed = last_boxed(text)
    if boxed is not None:
        return _number_in_claim(boxed)
    for claim in last_marked(text):
        if is_refusal(claim):
            return None
        if _found_in(claim) or _SPOKEN.search(claim):
            return _number_in_claim(claim)
    return _last_number(text)


def parse_number(text: str) -> Number | None:
    """The number that ``text`` is; None if there is more in it than a number and a unit."""
    found = _found_in(_plain(text))
    return found[0].number if len(found) == 1 else None


def _plain(text: str) -> str:
    for symbol, fraction in _VULGAR.items():
        text = re.sub(rf"(?<=\d){symbol}", f" {fraction}", text).replace(symbol, fraction)
    text = text.replace("\u2212", "-").replace("{,}", ",").replace("\\,", " ").replace("\\%", "%")
    text = re.sub(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"\\([dt]?frac)(\d)(\d)", r"\\\1{\2}{\3}", text)
    return without_markup(text.replace("\\$", "$").replace("\\!", ""))


def _number_in_claim(claim: str) -> Number | None:
    """The first number behind the last sign of equality; None where another one stands beside."""
    behind = _EQUALS.split(claim)[-1]
    found = _found_in(behind) or _found_in(claim)
    if not found:
        return _spoken_number(claim)
    if len(found) > 1 and _HEDGE.match(_between(behind, found[0], found[1])):
        return None
    return found[0].number


def _last_number(text: str) -> Number | None:
    """Of an answer that marks nothing: the last number of its last sentence that has one."""
    if is_refusal(text):
        return None
    for sentence in reversed(sentences(text)):
        found = _found_in(sentence)
        if not found or is_denial(sentence) or _SURENESS.search(sentence):
            continue
        if _EQUALS.search(sentence):
            return _number_in_claim(sentence)
        if len(found) > 1 and _HEDGE.match(_between(sentence, found[-2], found[-1])):
            return None
        return found[-1].number
    return _spoken_number(text) if len(text.split()) <= 3 else None


def _between(text: str, first: _Found, second: _Found) -> str:
    return text[first.end : second.start]


def _found_in(text: str) -> list[_Found]:
    values = ((match, _value_of(match)) for match in _NUMBER.finditer(text))
    return [
        _Found(Number(value, match["percent"] is not None), match.start(), match.end())
        for match, value in values
        if value is not None
    ]


def _value_of(match: re.Match[str]) -> Fraction | None:
    """None for the empty match between numbers, a division by zero, and what is far too long."""
    if match.end() - match.start() > _MAX_CHARACTERS:
        return None
    if match["latex_top"]:
        value = _ratio(match["latex_top"], match["latex_bottom"])
    elif match["mixed"]:
        part = _ratio(match["mixed_top"], match["mixed_bottom"])
        value = None if part is None else int(match["mixed"]) + part
    elif match["top"]:
        value = _ratio(match["top"], match["bottom"])
    elif match["whole"] or match["decimals"]:
        value = _decimal_value(match)
    else:
        return None
    if value is None:
        return None
    sign = (match["sign"] or match["inner_sign"] or "+").strip().lower()
    value = -value if sign in ("-", "minus", "negative") else value
    return value * _SCALES.get((match["scale"] or "").lower(), 1)


def _decimal_value(match: re.Match[str]) -> Fraction:
    whole = re.sub(r"\D", "", match["whole"] or "0")
    exponent = min(max(int(match["exponent"] or match["power"] or 0), -99), 99)
    return Fraction(whole + (match["decimals"] or "")) * Fraction(10) ** exponent


def _ratio(top: str, bottom: str) -> Fraction | None:
    return Fraction(int(top), int(bottom)) if int(bottom) else None


def _spoken_number(text: str) -> Number | None:
    spoken = list(_SPOKEN.finditer(text))
    if len(spoken) != 1:
        return None
    (match,) = spoken
    if match["small"]:
        return Number(Fraction(_SMALL_WORDS.index(match["small"].lower())))
    tens = 10 * (_TENS_WORDS.index(match["tens"].lower()) + 2)
    ones = _SMALL_WORDS.index(match["ones"].lower()) if match["ones"] else 0
    return Number(Fraction(tens + ones))
