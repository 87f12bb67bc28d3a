"""What one stage of a run did and when: attempts, times, bytes. Knows no runners."""

import time
from dataclasses import dataclass, field
from typing import Any

from latentmas_core.pipelines.plan import Stage
from latentmas_core.pipelines.runner import StageDone
from latentmas_core.result import StageStatus, StageTrace


@dataclass
class StageLog:
    """``began_at``: when the run began, by ``time.perf_counter``. Bytes are those of all attempts
    that came to an end."""

    stage: Stage
    began_at: float
    attempts: int = 0
    failures: list[str] = field(default_factory=list)
    started_at: float | None = None
    finished_at: float | None = None
    status: StageStatus = StageStatus.FAILED
    num_bytes_in: int = 0
    num_bytes_out: int = 0
    replica: str | None = None

    def begin(self) -> None:
        """An attempt starts."""
        self.attempts += 1
        if self.started_at is None:
            self.started_at = time.perf_counter()

    def note_done(self, done: StageDone[Any]) -> None:
        self.status = StageStatus.DONE
        self.finished_at = time.perf_counter()
        self.num_bytes_in += done.num_bytes_read
        self.num_bytes_out += done.num_bytes
        self.replica = done.replica

    def note_failure(self, reason: str) -> None:
        self.status = StageStatus.FAILED
        self.finished_at = time.perf_counter()
        self.failures.append(reason)

    def trace(self) -> StageTrace:
        """Of a stage that has ended; one that never began takes no time."""
        finished_at = self.finished_at or self.began_at
        return StageTrace(
            name=self.stage.name,
            group=self.stage.group,
            status=self.status,
            replica=self.replica,
            started_ms=self._since_began(self.started_at or finished_at),
            finished_ms=self._since_began(finished_at),
            bytes_in=self.num_bytes_in,
            bytes_out=self.num_bytes_out,
            attempts=self.attempts,
            failures=tuple(self.failures),
        )

    def _since_began(self, moment: float) -> float:
        return 1000.0 * (moment - self.began_at)
