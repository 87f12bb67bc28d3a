"""Turns that have to end by a time, and an engine that is stuck."""

import asyncio
import time
from pathlib import Path

import pytest

from latentmas_core.engine.turn import TextDelta
from latentmas_core.errors import DeadlineError, EngineError
from tests.engine.engines import OpenEngine, assert_nothing_left
from tests.engine.stepping import paused
from tests.engine.turns import assert_answers, create_turn, think

ENDLESS = 300


async def test_turn_that_is_overdue_when_it_comes_is_refused(
    open_engine: OpenEngine, tiny_llama: Path
) -> None:
    engine = open_engine(tiny_llama)
    memory = await think(engine)
    with pytest.raises(DeadlineError, match="'agent' was not done in the time") as caught:
        await engine.complete(
            create_turn(memory=memory, max_tokens=5, ends_at=time.monotonic() - 1)
        )
    assert caught.value.param == "timeout_s"
    await engine.release(memory)
    await assert_nothing_left(engine)


async def test_turn_that_runs_is_ended_at_its_time_and_no_other(
    open_engine: OpenEngine, tiny_llama: Path
) -> None:
    engine = open_engine(tiny_llama)
    neighbour = create_turn("Another.", max_tokens=12)
    expected = await engine.complete(neighbour)
    ends_at = time.monotonic() + 0.3
    overdue = engine.run(create_turn(max_tokens=ENDLESS, ends_at=ends_at))
    assert isinstance(await anext(overdue), TextDelta)
    with paused(engine):
        await asyncio.sleep(max(0.0, ends_at - time.monotonic()))
    with pytest.raises(DeadlineError):
        async for _ in overdue:
            pass
    assert (await engine.complete(neighbour)).output_ids == expected.output_ids
    await assert_nothing_left(engine)


async def test_turn_that_is_done_in_time_is_not_touched(
    open_engine: OpenEngine, tiny_llama: Path
) -> None:
    engine = open_engine(tiny_llama)
    done = await engine.complete(create_turn(max_tokens=5, ends_at=time.monotonic() + 600))
    assert len(done.output_ids) == 5


async def test_engine_that_is_stuck_in_a_step_says_so_and_recovers(
    open_engine: OpenEngine, tiny_llama: Path
) -> None:
    engine = open_engine(tiny_llama, stall_timeout_s=0.2)
    await engine.check_responsive()
    with (
        paused(engine),
        pytest.raises(EngineError, match=r"at one step for 0\.2 s \(stall_timeout_s\)"),
    ):
        await engine.check_responsive()
    await engine.check_responsive()
    await assert_answers(engine)
