"""What a turn is at is told once, in order; its times add up to how long it was there."""

import asyncio
import time
from pathlib import Path

import pytest

from latentmas_core.engine.engine import Engine
from latentmas_core.engine.turn import PhaseBegun, TextDelta, Thought, Turn, TurnDone, TurnEvent
from latentmas_core.phases import Phase, PhaseClock
from tests.engine.engines import BLOCK_SIZE, OpenEngine
from tests.engine.stepping import paused, start_all
from tests.engine.turns import PROMPT, create_turn

FIRST_TO_LAST = [Phase.PREFILL, Phase.THINKING, Phase.SPEAKING]


async def events_of(engine: Engine, turn: Turn) -> list[TurnEvent]:
    return [event async for event in engine.run(turn)]


def phases_in(events: list[TurnEvent]) -> list[Phase]:
    return [event.phase for event in events if isinstance(event, PhaseBegun)]


def done_of(events: list[TurnEvent]) -> TurnDone:
    assert isinstance(events[-1], TurnDone)
    return events[-1]


@pytest.mark.parametrize("has_lens", [False, True])
async def test_phases_stand_between_what_happens_in_them(engine: Engine, has_lens: bool) -> None:
    turn = create_turn(latent_steps=2, max_tokens=5, tells_phases=True, has_lens=has_lens)
    prefill, thinking, *rest = await events_of(engine, turn)
    assert (prefill, thinking) == (PhaseBegun(Phase.PREFILL), PhaseBegun(Phase.THINKING))
    begins_to_speak = rest.index(PhaseBegun(Phase.SPEAKING))
    assert all(isinstance(event, Thought) for event in rest[:begins_to_speak])
    assert all(isinstance(event, TextDelta) for event in rest[begins_to_speak + 1 : -1])


@pytest.mark.parametrize(
    ("latent_steps", "max_tokens", "phases"),
    [
        (3, 0, FIRST_TO_LAST[:2]),
        (0, 3, [Phase.PREFILL, Phase.SPEAKING]),
        (0, 0, [Phase.PREFILL]),
    ],
)
async def test_what_a_turn_does_not_do_it_is_never_at(
    engine: Engine, latent_steps: int, max_tokens: int, phases: list[Phase]
) -> None:
    turn = create_turn(latent_steps=latent_steps, max_tokens=max_tokens, tells_phases=True)
    events = await events_of(engine, turn)
    assert phases_in(events) == phases
    assert [*done_of(events).phase_s] == [Phase.QUEUED, *phases]


async def test_nobody_is_told_who_did_not_ask(engine: Engine) -> None:
    events = await events_of(engine, create_turn(latent_steps=1, max_tokens=2))
    assert phases_in(events) == []
    assert [*done_of(events).phase_s] == [Phase.QUEUED, *FIRST_TO_LAST]


async def test_turn_without_a_place_is_queued_until_it_has_one(
    open_engine: OpenEngine, tiny_llama: Path
) -> None:
    engine = open_engine(tiny_llama, max_num_seqs=1)
    told: list[tuple[str, TurnEvent]] = []

    async def tell(name: str) -> TurnDone:
        async for event in engine.run(create_turn(max_tokens=20, tells_phases=True)):
            told.append((name, event))
        assert isinstance(event, TurnDone)
        return event

    with paused(engine):
        tasks = await start_all(tell("first"), tell("second"))
    first, second = await asyncio.gather(*tasks)
    ended = told.index(("first", first))
    assert told.index(("second", PhaseBegun(Phase.PREFILL))) > ended
    busy_s = first.phase_s[Phase.PREFILL] + first.phase_s[Phase.SPEAKING]
    assert second.phase_s[Phase.QUEUED] >= busy_s


async def test_times_add_up_to_the_turn(engine: Engine) -> None:
    began_at = time.monotonic()
    events = await events_of(engine, create_turn(latent_steps=5, max_tokens=20))
    elapsed_s = time.monotonic() - began_at
    phase_s = done_of(events).phase_s
    assert all(seconds >= 0 for seconds in phase_s.values())
    assert 0 < sum(phase_s.values()) <= elapsed_s


async def test_preempted_turn_begins_no_phase_again(
    open_engine: OpenEngine, tiny_llama: Path
) -> None:
    num_slots = len(PROMPT) + 24
    engine = open_engine(tiny_llama, num_blocks=2 * num_slots // BLOCK_SIZE, has_prefix_cache=False)
    turn = create_turn(latent_steps=4, max_tokens=20, tells_phases=True)
    with paused(engine):
        tasks = await start_all(*(events_of(engine, turn) for _ in range(3)))
    turns = await asyncio.gather(*tasks)
    assert sum(done_of(events).num_preemptions for events in turns) > 0
    assert [phases_in(events) for events in turns] == [FIRST_TO_LAST] * 3


def test_clock_goes_forward_only() -> None:
    clock = PhaseClock()
    assert clock.phase is Phase.QUEUED
    assert clock.enter(Phase.THINKING)
    assert not clock.enter(Phase.PREFILL)
    assert not clock.enter(Phase.THINKING)
    assert clock.phase is Phase.THINKING
    assert [*clock.stop()] == [Phase.QUEUED, Phase.THINKING]
