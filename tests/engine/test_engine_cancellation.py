"""However a turn ends early, every block, reference and memory is back."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from latentmas_core.engine import engine as engine_module
from latentmas_core.engine.engine import Engine
from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.engine.sequence import NextRow, Sequence
from latentmas_core.engine.turn import TextDelta, TurnDone
from latentmas_core.latent.memory import MergeRule
from tests.engine.engines import OpenEngine, assert_nothing_left
from tests.engine.oracle import Agent, Chain, Oracle
from tests.engine.stepping import StepGate, paused, start_all
from tests.engine.turns import (
    PROMPT,
    assert_answers,
    contents_of,
    create_turn,
    think,
)

# With chunks of 8 rows the prompt of 17 takes 3 steps, then come 3 latent steps, then tokens.
Phase = Callable[[Sequence], bool]
PHASES: dict[str, tuple[int, Phase]] = {
    "prefill": (1, lambda s: 0 < s.num_computed < len(PROMPT)),
    "thinking": (4, lambda s: 0 < len(s.latents) < 3 and s.next_row is NextRow.LATENT),
    "speaking": (9, lambda s: 0 < len(s.output_ids) < 20),
}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("has_memory", [True, False])
async def test_cancelled_turn_gives_everything_back(
    open_engine: OpenEngine, tiny_llama: Path, phase: str, has_memory: bool
) -> None:
    engine = open_engine(tiny_llama, max_num_batched_tokens=8, has_prefix_cache=False)
    num_steps, is_in_phase = PHASES[phase]
    memory = await think(engine) if has_memory else None
    gate = StepGate(engine)
    turn = create_turn(latent_steps=3, max_tokens=20, memory=memory, keeps_memory=True)
    (task,) = await start_all(engine.complete(turn))
    gate.advance(num_steps)
    assert is_in_phase(engine.stepper.scheduler.running[0])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.open()
    if memory is not None:
        await engine.release(memory)
    await assert_nothing_left(engine)
    await assert_answers(engine)


async def test_turn_that_is_cancelled_while_it_waits_never_runs(
    open_engine: OpenEngine, tiny_llama: Path
) -> None:
    engine = open_engine(tiny_llama, max_num_seqs=1)
    memory = await think(engine)
    gate = StepGate(engine)
    first, second = await start_all(
        engine.complete(create_turn(max_tokens=5)),
        engine.complete(create_turn(memory=memory, latent_steps=2)),
    )
    gate.advance(2)
    assert len(engine.stepper.scheduler.waiting) == 1
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    gate.open()
    assert len((await first).output_ids) == 5
    await engine.release(memory)
    await assert_nothing_left(engine)
    assert (await engine.stats()).num_latent_steps_total == 3  # those of the memory


async def test_turn_that_ends_before_its_cancelled_receiver_looks_leaves_nothing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = await think(engine)
    has_finished = threading.Event()
    emit = engine.stepper.emit

    def watched(sequence: Sequence, event: Any) -> None:
        emit(sequence, event)
        if isinstance(event, TurnDone):
            has_finished.set()

    monkeypatch.setattr(engine.stepper, "emit", watched)
    turn = create_turn(memory=memory, latent_steps=2, max_tokens=3, keeps_memory=True)
    (task,) = await start_all(engine.complete(turn))
    # This thread stands still, so the receiver cannot look before it is cancelled.
    assert has_finished.wait(60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await engine.release(memory)
    await assert_nothing_left(engine)


async def test_closing_the_iteration_ends_the_turn(engine: Engine) -> None:
    events = engine.run(create_turn(latent_steps=2, max_tokens=500, keeps_memory=True))
    async for event in events:
        if isinstance(event, TextDelta):
            break
    await events.aclose()
    await assert_nothing_left(engine)
    assert (await engine.stats()).num_tokens_total < 500


async def test_iteration_that_never_starts_costs_nothing(engine: Engine) -> None:
    events = engine.run(create_turn(max_tokens=5))
    await events.aclose()
    assert (await engine.stats()).num_steps_total == 0


@pytest.mark.parametrize("request_name", ["load", "merge", "keep_latents"])
async def test_cancelled_request_for_a_memory_leaves_none(
    engine: Engine, memory: ResidentMemory, request_name: str
) -> None:
    other = await think(engine, prompt="Another one.")
    contents = {s.segment_id: t for s, t in await contents_of(engine, memory)}
    requests = {
        "load": lambda: engine.load(memory.memory, contents),
        "merge": lambda: engine.merge([memory, other], MergeRule.CONSECUTIVE),
        "keep_latents": lambda: engine.keep_latents(memory),
    }
    with paused(engine):
        (task,) = await start_all(requests[request_name]())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (await engine.stats()).num_memories == 2
    await engine.release(other)


@pytest.mark.parametrize("num_steps", [0, 1, 2])
async def test_cancelled_prefill_of_a_memory_leaves_nothing(
    open_engine: OpenEngine, tiny_llama: Path, num_steps: int
) -> None:
    engine = open_engine(tiny_llama)
    experts = [await think(engine), await think(engine, latent_steps=1)]
    chain = await think(engine, memory=experts[0])
    merged = await engine.merge([chain, experts[1]])
    latents = dict(merged.latents)
    gate = StepGate(engine)
    (task,) = await start_all(engine.prefill_memory(merged.memory, latents))
    for _ in range(num_steps):
        await asyncio.to_thread(gate.advance, 1)
    task.cancel()
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await task
    for memory in (*experts, chain, merged):
        await engine.release(memory)
    await assert_nothing_left(engine)


async def test_fifty_turns_of_which_ten_are_cancelled_leave_nothing(
    open_engine: OpenEngine, tiny_llama: Path
) -> None:
    engine, oracle = open_engine(tiny_llama, num_blocks=120, max_num_seqs=16), Oracle(tiny_llama)
    chains = [
        Chain((Agent(f"Plan {number % 5}.", number % 4), Agent("Speak.", 1)), max_tokens=9)
        for number in range(50)
    ]

    gate = StepGate(engine)
    tasks = await start_all(*(run_releasing(engine, chain) for chain in chains))
    cancelled = range(3, 50, 5)
    for number in cancelled:
        await asyncio.to_thread(gate.advance, 2)
        tasks[number].cancel()
    gate.open()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for number, (result, chain) in enumerate(zip(results, chains, strict=True)):
        if number in cancelled:
            assert isinstance(result, asyncio.CancelledError)
        else:
            assert result == oracle.run(chain).output_ids
    await assert_nothing_left(engine)


async def run_releasing(engine: Engine, chain: Chain) -> tuple[int, ...]:
    """Both turns of a chain; the memory between them is given back whatever happens."""
    prompts = [tuple(agent.prompt.encode()) for agent in chain.agents]
    head = replace(chain.turn_of(0, prompts[0], None), keeps_memory=True)
    memory = (await engine.complete(head)).memory
    assert memory is not None
    try:
        last = replace(chain.turn_of(1, prompts[1], memory), keeps_memory=False)
        return (await engine.complete(last)).output_ids
    finally:
        await engine.release(memory)


async def test_memory_may_be_released_as_soon_as_its_readers_have_started(
    open_engine: OpenEngine, tiny_llama: Path
) -> None:
    engine = open_engine(tiny_llama, num_blocks=14, max_num_seqs=3, has_prefix_cache=False)
    memory = await think(engine)
    expected = await engine.complete(create_turn("Go on", memory=memory, max_tokens=18))
    gate = StepGate(engine)
    # The last of them waits, and those that run preempt each other while they grow.
    tasks = await start_all(
        *(engine.complete(create_turn("Go on", memory=memory, max_tokens=18)) for _ in range(4))
    )
    gate.advance(1)
    await engine.release(memory)
    gate.open()
    dones = [await task for task in tasks]
    assert [done.output_ids for done in dones] == [expected.output_ids] * 4
    assert sum(done.num_preemptions for done in dones) > 0
    await assert_nothing_left(engine)


@pytest.mark.parametrize(("latent_steps", "max_tokens"), [(1, 3), (1, 0), (0, 1), (0, 0)])
async def test_receiver_whose_event_loop_is_gone_leaves_nothing(
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    latent_steps: int,
    max_tokens: int,
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("Event loop is closed")

    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "_deliver", fail)
        turn = create_turn(latent_steps=latent_steps, max_tokens=max_tokens, keeps_memory=True)
        (task,) = await start_all(engine.complete(turn))
        await engine.stats()  # the turn has arrived
        await until_idle(engine)
    assert "lost its receiver" in caplog.text
    assert (await engine.stats()).num_memories == 0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await assert_answers(engine)
    assert engine.is_running


async def until_idle(engine: Engine) -> None:
    """Every look happens between two steps, so this ends as soon as the engine does."""
    for _ in range(10_000):
        stats = await engine.stats()
        if stats.num_steps_total and not stats.num_running:
            await engine.stats()  # what the last step posted is done
            return
    raise AssertionError("the engine never comes to rest")
