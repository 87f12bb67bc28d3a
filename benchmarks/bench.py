"""What all measurements are made with: the open sides, the rounds, and how figures are read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.measure import Agreement, Comparison, Figures, Missing, compare_answers
from benchmarks.protocol import Run, SideSettings
from benchmarks.questions import questions
from benchmarks.workers import Worker

NUM_REQUESTS = 16


@dataclass(frozen=True)
class Bench:
    """The sides that stay open, and how much is measured."""

    settings: SideSettings
    ours: Worker
    transformers: Worker
    num_rounds: int
    num_plain_requests: int = NUM_REQUESTS
    has_default_pool: bool = True

    def open_worker(self, factory: str) -> Worker:
        return Worker(factory, self.settings, num_threads=self.settings.num_threads)

    def compare(self, name: str, what: str, **fields: Any) -> Comparison:
        return Comparison(name=name, what=what, dtype=self.settings.dtype, **fields)

    def miss(self, name: str, what: str, reason: str, *, is_failure: bool = False) -> Missing:
        return Missing(name, what, self.settings.dtype, reason, is_failure)


def asking(
    worker: Worker, method: str, num_questions: int = 1, **arguments: Any
) -> Callable[[int], Run]:
    """A side's part in a round: the questions of that round."""
    return lambda round_index: worker.call(
        method, questions=questions(num_questions, round_index=round_index), **arguments
    )


def durations(side: str, runs: Sequence[Run]) -> Figures:
    """Of each round. [s]"""
    return Figures(side, [run.duration_s for run in runs])


def rates(side: str, runs: Sequence[Run]) -> Figures:
    """Of each round. [tokens/s]"""
    return Figures(side, [run.tokens_per_s for run in runs])


def agreement(ours: Sequence[Run], theirs: Sequence[Run]) -> Agreement:
    """Over all rounds."""
    pairs = [(a.answer_ids, b.answer_ids) for a, b in zip(ours, theirs, strict=True)]
    shared = [pair for one, other in pairs for pair in zip(one, other, strict=False)]
    return compare_answers([one for one, _ in shared], [other for _, other in shared])
