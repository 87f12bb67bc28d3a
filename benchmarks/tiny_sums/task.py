"""Sums of a few digits: which there are, which are kept for measuring, and how they are worked out.

Knows no tokens.
"""

import random
import zlib
from collections.abc import Iterator
from typing import NamedTuple

MIN_TERMS, MAX_TERMS = 3, 5
MAX_DIGIT = 9
MAX_SUM = MAX_TERMS * MAX_DIGIT
# Of how many sums one is never trained on.
HELD_OUT = 10


class Sum(NamedTuple):
    """Digits from 1 on, added up from left to right."""

    terms: tuple[int, ...]

    @property
    def question(self) -> str:
        return " + ".join(map(str, self.terms)) + " ="

    @property
    def total(self) -> int:
        return sum(self.terms)

    @property
    def work(self) -> list[int]:
        """What the sum is after each further term; the last is the total."""
        return [sum(self.terms[: count + 1]) for count in range(1, len(self.terms))]

    @property
    def is_held_out(self) -> bool:
        return zlib.crc32(self.question.encode()) % HELD_OUT == 0


def drawn(rng: random.Random, *, is_held_out: bool) -> Iterator[Sum]:
    """Without end; repetitions are possible."""
    while True:
        num_terms = rng.randint(MIN_TERMS, MAX_TERMS)
        one = Sum(tuple(rng.randint(1, MAX_DIGIT) for _ in range(num_terms)))
        if one.is_held_out is is_held_out:
            yield one


def held_out(num_questions: int, seed: int) -> list[Sum]:
    """Different ones that no model was trained on."""
    found: dict[Sum, None] = {}
    for one in drawn(random.Random(seed), is_held_out=True):
        found[one] = None
        if len(found) == num_questions:
            break
    return list(found)
