"""What an agent's turn is at, and how long it was at what. Plain data and a clock."""

import time
from collections.abc import Mapping
from enum import StrEnum


class Phase(StrEnum):
    """In the order in which a turn goes through them; some are left out.

    QUEUED: it waits for its place in the batch. PREFILL: its prompt is computed. THINKING: its
    latent steps are. SPEAKING: it writes.
    """

    QUEUED = "queued"
    PREFILL = "prefill"
    THINKING = "thinking"
    SPEAKING = "speaking"


_ORDER = tuple(Phase)

PhaseTimes = Mapping[Phase, float]


class PhaseClock:
    """Seconds per phase, of one turn. Whoever is preempted is still at what it was at."""

    def __init__(self) -> None:
        self.phase = Phase.QUEUED
        self._entered_at = time.monotonic()
        self._seconds: dict[Phase, float] = {}

    def enter(self, phase: Phase) -> bool:
        """Go on to a phase; False if the turn is there already, or further."""
        if _ORDER.index(phase) <= _ORDER.index(self.phase):
            return False
        self._note_time()
        self.phase = phase
        return True

    def stop(self) -> PhaseTimes:
        """The turn ends: how long it was in each phase that it reached."""
        self._note_time()
        return self._seconds

    def _note_time(self) -> None:
        now = time.monotonic()
        self._seconds[self.phase] = now - self._entered_at
        self._entered_at = now
