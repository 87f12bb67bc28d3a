"""Turns that give their adapter's place away and go on later: nothing is lost, whatever happens."""

import asyncio
import time
from pathlib import Path

import pytest

from latentmas_core.engine.scheduler import SLICE_ROWS
from latentmas_core.errors import AdapterError, DeadlineError
from latentmas_core.lora.cached_adapter import AdapterState
from tests.engine.engines import OpenEngine
from tests.engine.turns import create_turn
from tests.lora.adapters import greedy_ids, lone_peft, make_adapter, mix_of
from tests.lora.speaking import PROMPT, speak
from tests.lora.stage import Stage, Ticket

LONG = 40  # tokens


def open_stage(model: Path, names: str = "abc", *, rank: int = 8, **settings: object) -> Stage:
    stage = Stage(model, **({"max_loaded": 1} | settings))
    for name in names:
        stage.load(name, rank=rank)
    return stage


def step(stage: Stage) -> None:
    stage.loader.end_all()
    stage.step()


def suspend(stage: Stage, name: str = "a", *, by: str = "b", **fields: object) -> Ticket:
    """A turn with ``name`` that waits for its place, which a long turn with ``by`` has taken."""
    ticket = stage.submit(name, **({"max_tokens": LONG} | fields))
    while ticket.sequence.num_gained < SLICE_ROWS:
        step(stage)
    stage.submit(by, max_tokens=LONG, first_token=100)
    while by not in stage.loaded() or stage.loader.pending:
        step(stage)
    assert ticket.sequence.is_suspended
    return ticket


# --- whatever happens meanwhile -------------------------------------------------------------------


def test_suspended_turn_goes_on_when_its_adapter_is_back(tiny_llama: Path) -> None:
    stage = open_stage(tiny_llama)
    ticket = suspend(stage, latent_steps=4)
    assert stage.evicted == ["a"]
    stats = stage.stepper.stats()
    assert (stats.num_suspensions_total, stats.num_preemptions_total) == (1, 0)
    assert stats.num_running + stats.num_waiting == 2
    stage.run()
    assert ticket.done is not None
    assert (ticket.done.num_latent_steps, ticket.done.num_preemptions) == (4, 0)
    assert ticket.done.output_ids == tuple(range(LONG))
    stage.assert_empty()


def test_blocks_of_a_suspended_turn_may_move(tiny_llama: Path) -> None:
    stage = open_stage(tiny_llama, "a", num_blocks=44)
    stage.load("wide", rank=40)  # 20 blocks in a row
    base = stage.submit(num_tokens=47, max_tokens=1, first_token=300)
    ticket = stage.submit("a", num_tokens=60, max_tokens=LONG)
    stage.run(base)  # now blocks are free before and behind those of the other, 20 nowhere
    wide = stage.submit("wide", num_tokens=2, max_tokens=LONG, first_token=200)
    while wide.sequence not in stage.scheduler.running:
        step(stage)
    assert ticket.sequence.is_suspended
    assert stage.num_moved > 0
    assert ticket.sequence.num_preemptions == 0
    stage.run(wide, ticket)
    assert ticket.done is not None
    stage.assert_empty()


def test_suspended_turn_that_is_cancelled_gives_everything_back(tiny_llama: Path) -> None:
    stage = open_stage(tiny_llama)
    ticket = suspend(stage)
    stage.abort(ticket)
    stage.check()
    assert stage.adapters._adapters[ticket.sequence.mix.digests[0]].num_holds == 0
    stage.run()
    stage.assert_empty()


def test_suspended_turn_fails_with_the_error_of_its_adapter(tiny_llama: Path) -> None:
    stage = open_stage(tiny_llama)
    ticket = suspend(stage)
    other = stage.submit("b", max_tokens=1)
    while not any(adapter.spec.name == "a" for adapter, *_ in stage.loader.pending):
        stage.step()
    stage.loader.end(fails=True)
    assert isinstance(ticket.error, AdapterError)
    stage.run()
    assert other.done is not None
    stage.assert_empty()


def test_adapter_of_a_suspended_turn_may_be_unloaded(tiny_llama: Path) -> None:
    stage = open_stage(tiny_llama)
    ticket = suspend(stage)
    stage.adapters.unregister("a")
    digest = ticket.sequence.mix.digests[0]
    assert stage.adapters._adapters[digest].state is AdapterState.DRAINING
    stage.run(ticket)
    assert ticket.done is not None
    assert digest not in stage.adapters._adapters
    stage.run()
    stage.assert_empty()


def test_turn_that_has_begun_is_not_refused_for_its_deadline(tiny_llama: Path) -> None:
    stage = open_stage(tiny_llama)
    ticket = suspend(stage, deadline=time.monotonic() + 60)
    late = stage.submit("c", max_tokens=1, deadline=time.monotonic() - 1)
    object.__setattr__(ticket.sequence.turn, "deadline", time.monotonic() - 1)
    stage.run(ticket)
    assert ticket.done is not None
    assert late.error is not None


def test_suspended_turn_ends_when_its_time_is_over(tiny_llama: Path) -> None:
    stage = open_stage(tiny_llama)
    ticket = suspend(stage, ends_at=time.monotonic() + 60)
    object.__setattr__(ticket.sequence.turn, "ends_at", time.monotonic())
    stage.step()
    assert isinstance(ticket.error, DeadlineError)
    stage.run()
    stage.assert_empty()


def test_memory_of_a_suspended_turn_stays_in_its_blocks(tiny_llama: Path) -> None:
    stage = open_stage(tiny_llama, num_blocks=60)
    thinker = stage.submit(num_tokens=30, keeps_memory=True, latent_steps=3)
    stage.run(thinker)
    assert thinker.done is not None
    memory = thinker.done.memory
    ticket = suspend(stage, memory=memory, keeps_memory=True)
    stage.release(memory)
    stage.stepper.memories.make_room(60)
    assert memory.block_table is not None
    stage.run(ticket)
    assert ticket.done is not None
    stage.release(ticket.done.memory)
    stage.run()
    stage.assert_empty()


def test_adapters_of_suspended_turns_stay_in_host_memory(tiny_llama: Path) -> None:
    stage = open_stage(tiny_llama, max_host=2)
    use = stage.submit("a", max_tokens=1)
    stage.run(use, stage.submit("b", max_tokens=1))
    ticket = suspend(stage)
    stage.load("d")
    stage.load("e")
    assert stage.adapters.is_on_host(ticket.sequence.mix)
    stage.run(ticket)
    assert ticket.done is not None


def test_stuck_one_is_not_failed_while_suspended_turns_have_what_it_lacks(tiny_llama: Path) -> None:
    """Nobody runs, and the blocks that its adapter needs are those of a suspended turn."""
    stage = open_stage(tiny_llama, "ab", num_blocks=40)
    stage.load("wide", rank=40)  # 20 blocks
    ticket = suspend(stage, num_tokens=90)
    (other,) = stage.scheduler.running
    wide = stage.submit("wide", max_tokens=3, first_token=200)
    stage.scheduler.waiting.charge(ticket.sequence, 1000)
    stage.stepper.abort(other)
    stage.run(wide, ticket)
    assert wide.done is not None, wide.error
    assert ticket.done is not None, ticket.error
    assert ticket.done.num_preemptions == 1
    stage.assert_empty()


# --- answers --------------------------------------------------------------------------------------

NUM_TOKENS = 30


@pytest.fixture(scope="module")
def alone(tiny_llama: Path, llama_adapters: dict[int, Path]) -> dict[str, tuple[int, ...]]:
    """What each of three adapters says to ``PROMPT``, by a lone PEFT model."""
    return {
        str(rank): greedy_ids(lone_peft(tiny_llama, llama_adapters[rank]), PROMPT, NUM_TOKENS)
        for rank in (4, 16, 33)
    }


@pytest.mark.parametrize("num_places", [1, 2])
async def test_answers_are_the_same_as_alone_however_often_turns_are_suspended(
    open_engine: OpenEngine,
    tiny_llama: Path,
    llama_adapters: dict[int, Path],
    alone: dict[str, tuple[int, ...]],
    num_places: int,
) -> None:
    engine = open_engine(tiny_llama, lora={"max_loaded_adapters": num_places})
    for name in alone:
        await engine.load_adapter(name, llama_adapters[int(name)])
    names = [*alone, *alone]
    answers = await asyncio.gather(*(speak(engine, name, num_tokens=NUM_TOKENS) for name in names))
    assert answers == [alone[name] for name in names]
    assert len(set(answers)) == 3
    stats = await engine.stats()
    assert stats.num_suspensions_total > 0
    assert stats.num_preemptions_total == 0
    assert (stats.num_running, stats.num_waiting) == (0, 0)


@pytest.fixture(scope="module")
def qwen2_adapters(tmp_path_factory: pytest.TempPathFactory, tiny_qwen2: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("qwen2-adapters")
    return {
        name: make_adapter(folder / name, tiny_qwen2, rank=rank, seed=rank, std=0.12 * rank**-0.5)
        for name, rank in (("a", 4), ("b", 8), ("c", 20))
    }


async def test_thoughts_and_compositions_are_the_same_as_with_places_for_all(
    open_engine: OpenEngine, tiny_qwen2: Path, qwen2_adapters: dict[str, Path]
) -> None:
    """Latent steps, text behind them, and mixes that share an adapter."""
    answers = []
    for num_places in (3, 2):
        engine = open_engine(tiny_qwen2, lora={"max_loaded_adapters": num_places})
        for name, folder in qwen2_adapters.items():
            await engine.load_adapter(name, folder)
        turns = [
            create_turn(
                PROMPT,
                latent_steps=12,
                max_tokens=20,
                keeps_memory=True,
                adapters=mix_of(engine, *names),
            )
            for names in ("a", "b", "c", "ab", "bc")
        ]
        dones = await asyncio.gather(*map(engine.complete, turns))
        stats = await engine.stats()
        assert (stats.num_suspensions_total > 0) == (num_places == 2)
        answers.append([done.output_ids for done in dones])
        for done in dones:
            assert done.memory is not None
            await engine.release(done.memory)
    assert answers[0] == answers[1]
