"""What a share of right answers says about the next questions, and two methods beside each other.

Knows no questions.
"""

import math
from typing import NamedTuple

Z_95 = 1.96  # of a two-sided interval of 95 %


class Interval(NamedTuple):
    """Both ends belong to it."""

    low: float
    high: float


def wilson(num_right: int, num_all: int) -> Interval:
    """The interval of 95 % for a share: E. B. Wilson, Probable inference, the law of succession,
    and statistical inference, JASA 22 (1927), 209-212. Without questions it is all of 0 to 1."""
    if num_all == 0:
        return Interval(0.0, 1.0)
    share, squared = num_right / num_all, Z_95 * Z_95
    middle = share + squared / (2 * num_all)
    width = Z_95 * math.sqrt(share * (1 - share) / num_all + squared / (4 * num_all**2))
    scale = 1 + squared / num_all
    return Interval(max((middle - width) / scale, 0.0), min((middle + width) / scale, 1.0))


def mcnemar_exact(num_only_first: int, num_only_second: int) -> float:
    """How likely two equally good methods differ so much on the same questions, or more.

    Two-sided binomial test of the questions that only one of them answers rightly: Q. McNemar,
    Psychometrika 12 (1947), 153-157, in its exact form.
    """
    num_different = num_only_first + num_only_second
    fewer = min(num_only_first, num_only_second)
    tail = sum(math.comb(num_different, count) for count in range(fewer + 1))
    return min(2 * tail / 2**num_different, 1.0)
