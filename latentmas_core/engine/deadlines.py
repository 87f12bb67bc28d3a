"""Which turns cannot be done in the time that they were given. Tells; the stepper ends them.

All times are those of ``time.monotonic``.
"""

import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from latentmas_core.engine.sequence import Sequence
from latentmas_core.errors import DeadlineError, EngineError, LatentMASError

NUM_TIMED_STEPS = 64  # the quickest of them is what a step takes at least


class Missed(NamedTuple):
    """A turn, and what its receiver is told."""

    sequence: Sequence
    error: LatentMASError


class Deadlines:
    """``max_rows``: of a step. Knows how long steps take."""

    def __init__(self, *, max_rows: int) -> None:
        self._max_rows = max_rows
        self._step_seconds: deque[float] = deque(maxlen=NUM_TIMED_STEPS)

    def note_step(self, seconds: float) -> None:
        self._step_seconds.append(seconds)

    def missed(self, alive: Iterable[Sequence], waiting: Iterable[Sequence]) -> list[Missed]:
        """Those that are not done by their end, and those that wait and would miss their deadline
        even if they started now; each once."""
        now = time.monotonic()
        overdue = [one for one in alive if _has_ended(one, now)]
        late = [one for one in _waiting_for_first_row(waiting) if not _has_ended(one, now)]
        return [*map(_overdue, overdue), *self._too_late(late, now)]

    def earliest(self, alive: Iterable[Sequence], waiting: Iterable[Sequence]) -> float | None:
        """When the next of them will be missed at the latest; None if none has one."""
        ends = [sequence.turn.ends_at for sequence in alive]
        ends += [sequence.turn.deadline for sequence in _waiting_for_first_row(waiting)]
        return min(filter(None, ends), default=None)

    def _too_late(self, waiting: Collection[Sequence], now: float) -> Iterator[Missed]:
        step_s = min(self._step_seconds, default=0.0)
        for sequence in waiting:
            num_steps = -(-sequence.num_uncomputed // self._max_rows)
            missing_s = now + num_steps * step_s - (sequence.turn.deadline or now)
            if missing_s > 0:
                error = EngineError(
                    f"agent {sequence.turn.agent!r} waits, and would miss its deadline by "
                    f"{missing_s:.2f} s if it started now. Retry later, or allow more time."
                )
                yield Missed(sequence, error)


def _waiting_for_first_row(waiting: Iterable[Sequence]) -> list[Sequence]:
    return [one for one in waiting if one.turn.deadline is not None and not one.has_begun]


def _has_ended(sequence: Sequence, now: float) -> bool:
    return sequence.turn.ends_at is not None and sequence.turn.ends_at <= now


def _overdue(sequence: Sequence) -> Missed:
    error = DeadlineError(
        f"agent {sequence.turn.agent!r} was not done in the time that the request allows "
        "(timeout_s). Allow more time, fewer latent steps or fewer tokens.",
        param="timeout_s",
    )
    return Missed(sequence, error)
