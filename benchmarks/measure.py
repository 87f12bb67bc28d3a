"""Medians, ratios and bars of measurements, and rounds that interleave the sides."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, TypeVar

T = TypeVar("T")

# The threads of the side that ended spin for a moment; they must not be heard by the next one.
PAUSE_S = 0.05


class Bar(NamedTuple):
    """What the ratio ours / baseline has to be."""

    comparison: Literal["<=", ">="]
    limit: float

    def __str__(self) -> str:
        return f"{self.comparison} {self.limit:g}"

    def holds(self, ratio: float) -> bool:
        return ratio <= self.limit if self.comparison == "<=" else ratio >= self.limit


@dataclass(frozen=True)
class Figures:
    """One side of a comparison: a figure per round."""

    side: str
    rounds: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)


@dataclass(frozen=True)
class Agreement:
    """How many of the answers that both sides gave are the same token for token."""

    num_answers: int
    num_identical: int
    first_difference: str | None = None

    @property
    def is_complete(self) -> bool:
        return self.num_identical == self.num_answers


@dataclass(frozen=True)
class Comparison:
    """Ours beside a baseline: medians over rounds and, where one was set, a bar.

    foreign_cores: how many cores other programs took meanwhile, on average.
    """

    name: str
    what: str
    dtype: str
    unit: str
    ours: Figures
    baseline: Figures
    bar: Bar | None = None
    agreement: Agreement | None = None
    note: str = ""
    foreign_cores: float | None = None

    @property
    def ratio(self) -> float:
        return self.ours.median / self.baseline.median

    @property
    def is_bar_met(self) -> bool | None:
        return None if self.bar is None else self.bar.holds(self.ratio)

    @property
    def is_wrong(self) -> bool:
        """Greedy fp32 answers that differ: then the times compare nothing."""
        is_exact = self.dtype == "float32"
        return is_exact and self.agreement is not None and not self.agreement.is_complete

    def as_dict(self) -> dict[str, Any]:
        """Everything, the derived values too, ready for JSON."""
        figures = {
            name: {**asdict(side), "median": side.median}
            for name, side in (("ours", self.ours), ("baseline", self.baseline))
        }
        bar = None if self.bar is None else {**self.bar._asdict(), "is_met": self.is_bar_met}
        return {**asdict(self), **figures, "ratio": self.ratio, "bar": bar}


@dataclass(frozen=True)
class Missing:
    """A measurement that was not taken: left out for a reason, or broken off by a failure."""

    name: str
    what: str
    dtype: str
    reason: str
    is_failure: bool = False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


Measurement = Comparison | Missing


def measurement_of(fields: Mapping[str, Any]) -> Measurement:
    """What ``as_dict`` wrote; derived values are derived anew."""
    if "reason" in fields:
        return Missing(**fields)
    bar, agreement = fields["bar"], fields["agreement"]
    sides = {
        name: Figures(fields[name]["side"], fields[name]["rounds"]) for name in ("ours", "baseline")
    }
    return Comparison(
        **{name: fields[name] for name in ("name", "what", "dtype", "unit", "note")},
        **sides,
        bar=None if bar is None else Bar(bar["comparison"], bar["limit"]),
        agreement=None if agreement is None else Agreement(**agreement),
        foreign_cores=fields["foreign_cores"],
    )


def percentile(values: Sequence[float], percent: int) -> float:
    """Between the values beside it; not a number where there is none."""
    if len(values) < 2:
        return values[0] if values else float("nan")
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def interleave(num_rounds: int, sides: Mapping[str, Callable[[int], T]]) -> dict[str, list[T]]:
    """What every side returned in each round; every second round goes the other way.

    Round 0 warms every side up and is dropped.
    """
    results: dict[str, list[T]] = {name: [] for name in sides}
    for round_index in range(num_rounds + 1):
        names = list(sides)[:: -1 if round_index % 2 else 1]
        for name in names:
            time.sleep(PAUSE_S)
            results[name].append(sides[name](round_index))
    return {name: values[1:] for name, values in results.items()}


def compare_answers(ours: Sequence[list[int]], theirs: Sequence[list[int]]) -> Agreement:
    """Pairs of answers; where ours are more, the baseline answered the first of them."""
    pairs = list(zip(ours, theirs, strict=False))
    differences = [
        _describe_difference(index, *pair) for index, pair in enumerate(pairs) if pair[0] != pair[1]
    ]
    first = differences[0] if differences else None
    return Agreement(len(pairs), len(pairs) - len(differences), first)


def _describe_difference(index: int, ours: list[int], theirs: list[int]) -> str:
    if len(ours) != len(theirs):
        return f"answer {index} has {len(ours)} tokens here and {len(theirs)} there"
    place = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    return f"token {place} of answer {index} is {ours[place]} here and {theirs[place]} there"
