"""Whether a written answer is right: letter-exact, number-exact or word for word.

Judges the answer that is committed to, and nothing else: two answers at once are none, and a right
number on the way to a wrong one does not count.
"""

from enum import StrEnum
from typing import NamedTuple

from benchmarks.quality.claims import last_boxed, last_marked, without_markup
from benchmarks.quality.letter_answers import letter_of
from benchmarks.quality.number_answers import Number, number_of, parse_number
from latentmas_core.errors import ConfigError


class Kind(StrEnum):
    """What a question asks for."""

    NUMBER = "number"
    LETTER = "letter"
    TEXT = "text"


class Grade(NamedTuple):
    """``given``: the answer that was found in the text; None if there is none."""

    given: str | None
    is_correct: bool


def grade(answer: str, gold: str, kind: Kind) -> Grade:
    """Compare what ``answer`` commits to with ``gold``; ConfigError for a gold that is none."""
    if kind is Kind.NUMBER:
        return _grade_number(answer, gold_number(gold))
    given = letter_of(answer) if kind is Kind.LETTER else text_of(answer)
    return Grade(given, given is not None and _folded(given) == _folded(gold))


def gold_number(gold: str) -> Number:
    """The number that a right answer gives."""
    number = parse_number(gold)
    if number is None:
        raise ConfigError(
            f"gold answer {gold!r} is no number, which the question asks for. Correct it, or give "
            f"the question the kind {Kind.TEXT.value!r}.",
            param="gold",
        )
    return number


def text_of(answer: str) -> str | None:
    """What is boxed, else what stands behind the last marker, else the last line."""
    text = without_markup(answer)
    boxed = last_boxed(text)
    lines = [line for line in text.splitlines() if line.strip()]
    found = [boxed] if boxed else [*last_marked(text)[:1], *lines[-1:]]
    return found[0].strip() if found else None


def _grade_number(answer: str, gold: Number) -> Grade:
    number = number_of(answer)
    if number is None:
        return Grade(None, False)
    given = f"{number.value}%" if number.is_percent else str(number.value)
    return Grade(given, number.equals(gold))


def _folded(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .'\"")
