"""Steps that fail, engines that end, too many requests: errors for some, answers for the rest."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from latentmas_core.engine.engine import Engine
from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.engine.turn import TurnDone
from latentmas_core.errors import (
    EngineError,
)
from tests.engine.engines import OpenEngine, assert_nothing_left
from tests.engine.stepping import StepGate, paused, record_steps, start_all
from tests.engine.turns import (
    assert_answers,
    create_turn,
    think,
)


def fail_once(engine: Engine, monkeypatch: pytest.MonkeyPatch, *, at_step: int) -> None:
    """The model raises in one step, counted from 0."""
    step = engine.stepper.runner.step
    count = iter(range(10**6))

    def failing(scheduled: Any, pool: Any) -> None:
        if next(count) == at_step:
            raise RuntimeError("the card fell off the bus")
        step(scheduled, pool)

    monkeypatch.setattr(engine.stepper.runner, "step", failing)


@pytest.mark.parametrize("at_step", [0, 2, 6])
async def test_step_that_fails_ends_its_turns_and_no_others(
    open_engine: OpenEngine,
    tiny_llama: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    at_step: int,
) -> None:
    engine = open_engine(tiny_llama, max_num_seqs=2, max_num_batched_tokens=12)
    memory = await think(engine)
    turn = create_turn("Next!", latent_steps=2, max_tokens=7)
    expected = await engine.complete(turn)
    fail_once(engine, monkeypatch, at_step=at_step)
    with paused(engine):
        one, other, waiting = await start_all(
            engine.complete(create_turn(latent_steps=3, max_tokens=9, keeps_memory=True)),
            engine.complete(create_turn(latent_steps=2, max_tokens=9, memory=memory)),
            engine.complete(turn),
        )
    for result in await asyncio.gather(one, other, return_exceptions=True):
        assert isinstance(result, EngineError)
        assert "the step that computed this request failed" in str(result)
        assert "bus" not in str(result), "the cause is the operator's business"
    assert (await waiting).output_ids == expected.output_ids
    assert (await engine.complete(turn)).output_ids == expected.output_ids
    assert "a step of 2 sequences failed" in caplog.text
    assert "the card fell off the bus" in caplog.text
    assert engine.stepper.num_failures_in_a_row == 0
    await engine.release(memory)
    await assert_nothing_left(engine)


async def test_engine_that_loses_count_fails_everybody_at_once_and_closes(
    engine: Engine,
    memory: ResidentMemory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def lose_count() -> None:
        raise AssertionError("1 + 1 != 3 blocks")

    with paused(engine):
        tasks = await start_all(
            *(engine.complete(create_turn(memory=memory, max_tokens=5)) for _ in range(3))
        )
        monkeypatch.setattr(engine.stepper.scheduler, "schedule", lose_count)
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, EngineError)
        assert "the engine failed and is closed" in str(result)
    engine._thread.join(10)
    assert not engine.is_running
    assert "counts cannot be trusted" in caplog.text
    with pytest.raises(EngineError, match="the engine was closed"):
        await engine.complete(create_turn())


async def test_closed_engine_refuses_turns_and_answers_questions(
    open_engine: OpenEngine, tiny_llama: Path
) -> None:
    engine = open_engine(tiny_llama)
    memory = await think(engine)
    assert engine.is_running
    engine.close()
    engine.close()
    assert not engine.is_running
    with pytest.raises(EngineError, match="the engine was closed"):
        await engine.complete(create_turn())
    assert (await engine.stats()).num_memories == 1
    await engine.release(memory)
    await engine.check_integrity()


async def test_closing_ends_turns_that_run_and_turns_that_wait(
    open_engine: OpenEngine, tiny_llama: Path
) -> None:
    engine = open_engine(tiny_llama, max_num_seqs=1)
    gate = StepGate(engine)
    tasks = await start_all(
        *(engine.complete(create_turn(max_tokens=50, keeps_memory=True)) for _ in range(3))
    )
    gate.advance(3)
    closing = asyncio.to_thread(engine.close)
    (closed,) = await start_all(closing)
    gate.open()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, EngineError)
        assert "the engine was closed" in str(result)
    await closed


async def test_context_manager_closes(open_engine: OpenEngine, tiny_llama: Path) -> None:
    with open_engine(tiny_llama) as engine:
        await assert_answers(engine)
    assert not engine.is_running


async def test_overloaded_engine_refuses_with_the_limit(
    open_engine: OpenEngine, tiny_llama: Path
) -> None:
    engine = open_engine(tiny_llama, max_waiting_seqs=3)
    with paused(engine):
        tasks = await start_all(*(engine.complete(create_turn(max_tokens=2)) for _ in range(5)))
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(result, TurnDone) for result in results] == [True] * 3 + [False] * 2
    for result in results[3:]:
        assert isinstance(result, EngineError)
        assert "3 requests wait already; max_waiting_seqs is 3" in str(result)
    await assert_answers(engine)


async def test_one_engine_serves_several_event_loops(engine: Engine) -> None:
    turn = create_turn(latent_steps=2, max_tokens=6)
    expected = await engine.complete(turn)
    dones = await asyncio.gather(
        *(asyncio.to_thread(asyncio.run, engine.complete(turn)) for _ in range(3))
    )
    assert [done.output_ids for done in dones] == [expected.output_ids] * 3


async def test_steps_of_different_turns_are_shared(engine: Engine) -> None:
    steps = record_steps(engine)
    with paused(engine):
        tasks = await start_all(*(engine.complete(create_turn(latent_steps=4)) for _ in range(6)))
    await asyncio.gather(*tasks)
    assert [step.num_latent for step in steps] == [0, 6, 6, 6, 6]
