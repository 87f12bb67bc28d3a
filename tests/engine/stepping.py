"""Ways to watch an engine's steps and to hold them up, so that no test depends on timing."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from latentmas_core.engine.engine import Engine
from latentmas_core.engine.kv_pool import KVPool
from latentmas_core.engine.scheduler import ScheduledRows

PATIENCE_S = 60.0


class StepRecord(NamedTuple):
    """How many rows of each kind one step computed."""

    num_prompt: int
    num_latent: int
    num_sampled: int
    num_chunks: int  # sequences of which only some of the known rows were computed

    @property
    def num_rows(self) -> int:
        return self.num_prompt + self.num_latent + self.num_sampled


def record_steps(engine: Engine) -> list[StepRecord]:
    """A list that grows by one record with every step from now on."""
    records: list[StepRecord] = []
    step = engine.stepper.runner.step

    def recorded(scheduled: list[ScheduledRows], pool: KVPool) -> None:
        records.append(_record(scheduled))
        step(scheduled, pool)

    engine.stepper.runner.step = recorded
    return records


def _record(scheduled: list[ScheduledRows]) -> StepRecord:
    inputs = [s.inputs(s.num_computed, s.num_computed + n) for s, n in scheduled]
    return StepRecord(
        sum(len(rows.before) for rows in inputs),
        sum(len(rows.latents) for rows in inputs),
        sum(len(rows.after) for rows in inputs),
        sum(num_rows < sequence.num_uncomputed for sequence, num_rows in scheduled),
    )


@contextmanager
def paused(engine: Engine) -> Iterator[None]:
    """The engine's thread stands still inside the block; what is posted meanwhile queues up."""
    gate = threading.Event()
    engine._inbox.post(lambda: _wait(gate))
    try:
        yield
    finally:
        gate.set()


async def start_all(*coroutines) -> list[asyncio.Task]:
    """Tasks that have run up to their first wait, in the given order."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    await asyncio.sleep(0)
    return tasks


class StepGate:
    """Lets an engine compute as many steps as the test says, until it is opened for good.

    While the gate holds a step up, the engine's thread stands still and may be looked at.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._permits = threading.Semaphore(0)
        self._arrived = threading.Semaphore(0)
        self._is_open = False
        self._step = engine.stepper.runner.step
        engine.stepper.runner.step = self._gated

    def advance(self, num_steps: int) -> None:
        """Returns when the engine stands before the step behind the next ``num_steps``."""
        for _ in range(num_steps):
            self.wait_for_step()
            self._permits.release()
        self.wait_for_step()
        self._arrived.release()

    def wait_for_step(self) -> None:
        assert self._arrived.acquire(timeout=PATIENCE_S), "the engine does not step"

    def open(self) -> None:
        self._is_open = True
        self._permits.release()

    def _gated(self, scheduled: list[ScheduledRows], pool: KVPool) -> None:
        if not self._is_open:
            self._arrived.release()
            assert self._permits.acquire(timeout=PATIENCE_S), "the test forgot to open the gate"
        self._step(scheduled, pool)


def _wait(gate: threading.Event) -> None:
    assert gate.wait(PATIENCE_S), "the test forgot to let the engine go on"
