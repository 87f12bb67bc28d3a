"""Adapters come and go under load: who waits, who gives way, and nothing is left behind."""

import asyncio
import random
import threading
import time
from pathlib import Path

import pytest

from latentmas_core.engine.engine import Engine
from latentmas_core.errors import (
    AdapterError,
    ContextLengthError,
    EngineError,
    NotFoundError,
)
from latentmas_core.lora.mix import AdapterMix, AdapterUse
from tests.engine.engines import OpenEngine
from tests.engine.turns import assert_answers, create_turn, think
from tests.lora.adapters import make_adapter, mix_of
from tests.lora.speaking import NUM_TOKENS, PROMPT, load_all, speak


def loaded(engine: Engine) -> list[str]:
    """Names on the device, longest unused first."""
    names = {spec.digest: name for name, spec in engine.stepper.adapters._names.items()}
    return [names[digest] for digest in engine.stepper.adapters.loaded()]


async def test_adapters_are_loaded_when_used_and_evicted_longest_unused_first(
    open_engine: OpenEngine,
    tiny_llama: Path,
    llama_adapters: dict[int, Path],
    expected: dict[str, tuple[int, ...]],
) -> None:
    engine = open_engine(tiny_llama, lora={"max_loaded_adapters": 3})
    await load_all(engine, llama_adapters)
    assert loaded(engine) == []
    for name in ("1", "4", "8", "1", "16", "4", "64"):
        assert await speak(engine, name) == expected[name]
    assert loaded(engine) == ["16", "4", "64"]
    stats = (await engine.stats()).adapters
    assert (stats.num_registered, stats.num_loaded, stats.num_on_host) == (6, 3, 6)
    assert (stats.num_loads_total, stats.num_evictions_total) == (6, 3)


@pytest.mark.parametrize("max_loaded", [1, 3])
async def test_more_adapters_than_places_queue_and_all_are_answered(
    open_engine: OpenEngine,
    tiny_llama: Path,
    llama_adapters: dict[int, Path],
    expected: dict[str, tuple[int, ...]],
    max_loaded: int,
) -> None:
    engine = open_engine(tiny_llama, lora={"max_loaded_adapters": max_loaded}, max_num_seqs=4)
    names = [*await load_all(engine, llama_adapters), ""] * 3
    random.Random(7).shuffle(names)
    base = await speak(engine)
    answers = await asyncio.gather(*(speak(engine, *filter(None, [name])) for name in names))
    assert answers == [expected.get(name, base) for name in names]
    assert len(loaded(engine)) <= max_loaded


async def test_traffic_for_resident_adapters_does_not_starve_a_new_one(
    open_engine: OpenEngine, tiny_llama: Path, llama_adapters: dict[int, Path]
) -> None:
    engine = open_engine(tiny_llama, lora={"max_loaded_adapters": 2})
    await load_all(engine, llama_adapters)
    is_over = asyncio.Event()

    async def keep_busy(name: str) -> None:
        while not is_over.is_set():
            await speak(engine, name, num_tokens=4)

    # Two clients for each, so that its adapter is in use at every moment.
    busy = [asyncio.create_task(keep_busy(name)) for name in ("1", "4", "1", "4")]
    await speak(engine, "1")
    await asyncio.wait_for(speak(engine, "8", num_tokens=4), timeout=20)
    is_over.set()
    await asyncio.gather(*busy)


async def test_composition_gets_all_its_places_at_once(
    open_engine: OpenEngine, tiny_llama: Path, llama_adapters: dict[int, Path]
) -> None:
    engine = open_engine(tiny_llama, lora={"max_loaded_adapters": 2})
    await load_all(engine, llama_adapters)
    pairs = [("1", "4"), ("4", "8"), ("8", "16"), ("16", "1")] * 2
    together = await asyncio.gather(*(speak(engine, *pair) for pair in pairs))
    assert together == [await speak(engine, *pair) for pair in pairs]


async def test_pins_that_leave_no_place_are_an_error_and_no_hang(
    open_engine: OpenEngine, tiny_llama: Path, llama_adapters: dict[int, Path]
) -> None:
    engine = open_engine(tiny_llama, lora={"max_loaded_adapters": 1})
    await engine.load_adapter("4", llama_adapters[4])
    await engine.load_adapter("1", llama_adapters[1], is_pinned=True)
    with pytest.raises(AdapterError, match="pinned"):
        await asyncio.wait_for(speak(engine, "4"), timeout=20)
    with pytest.raises(AdapterError, match="pinned"):
        await engine.load_adapter("8", llama_adapters[8], is_pinned=True)
    with pytest.raises(NotFoundError):
        engine.adapter("8")
    await engine.unload_adapter("1")
    assert await speak(engine, "4")


async def test_adapters_and_keys_and_values_take_room_from_each_other(
    open_engine: OpenEngine,
    tiny_llama: Path,
    llama_adapters: dict[int, Path],
    expected: dict[str, tuple[int, ...]],
) -> None:
    """A pool that holds all adapters, or all memories, but not both."""
    engine = open_engine(tiny_llama, num_blocks=800)
    await load_all(engine, llama_adapters)
    for name in ("64", "33", "16"):
        assert await speak(engine, name) == expected[name]
    assert set(loaded(engine)) == {"64", "33", "16"}
    memories = [await think(engine, prompt=bytes([65 + i] * 300).decode()) for i in range(9)]
    assert len(loaded(engine)) < 3, "memories took the room of idle adapters"
    assert await speak(engine, "64") == expected["64"]
    assert (await engine.stats()).num_offloads_total > 0, "an adapter took the room of memories"
    for memory in memories:
        assert await speak(engine, memory=memory)
        await engine.release(memory)


async def test_blocks_in_use_make_way_for_a_run_and_answers_stay(
    open_engine: OpenEngine, tiny_llama: Path, llama_adapters: dict[int, Path]
) -> None:
    alone = open_engine(tiny_llama)
    engine = open_engine(tiny_llama, num_blocks=640)
    await engine.load_adapter("64", llama_adapters[64])
    memory = await think(engine)
    undisturbed = await think(alone)
    filler = await think(engine, prompt="x" * 1000)  # so that later blocks lie in the middle
    prompts = [tuple(bytes([65 + i] * 120)) for i in range(6)]

    async def write(on: Engine, read: object) -> list[tuple[int, ...]]:
        turns = [create_turn(p, max_tokens=40, memory=read) for p in prompts]
        return [d.output_ids for d in await asyncio.gather(*(on.complete(t) for t in turns))]

    moved: list[int] = []
    mend = engine.stepper._mend_tables
    engine.stepper.adapters._arena._mend_tables = lambda m: (moved.extend(m), mend(m))[1]
    writing = asyncio.create_task(write(engine, memory))
    await wait_for(lambda: len(engine.stepper.scheduler.running) == len(prompts))
    await engine.release(filler)
    await speak(engine, "64")
    assert await writing == await write(alone, undisturbed)
    assert moved, "no block was in the way, so nothing was proved"
    await engine.release(memory)
    await alone.release(undisturbed)


async def wait_for(condition: object) -> None:
    deadline = time.monotonic() + 20
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        await asyncio.sleep(0)


async def test_slot_that_is_used_again_keeps_nothing_of_the_last_adapter(
    open_engine: OpenEngine,
    tiny_llama: Path,
    llama_adapters: dict[int, Path],
    expected: dict[str, tuple[int, ...]],
) -> None:
    engine = open_engine(tiny_llama, lora={"max_loaded_adapters": 1})
    await load_all(engine, llama_adapters)
    for name in ("64", "8", "33", "1", "64"):
        assert await speak(engine, name) == expected[name]


async def test_name_that_is_loaded_anew_finds_no_state_of_its_predecessor(
    open_engine: OpenEngine,
    tiny_llama: Path,
    llama_adapters: dict[int, Path],
    expected: dict[str, tuple[int, ...]],
) -> None:
    engine = open_engine(tiny_llama)
    for rank in (8, 33):
        await engine.load_adapter("mine", llama_adapters[rank])
        done = await engine.complete(
            create_turn(PROMPT, max_tokens=NUM_TOKENS, adapters=mix_of(engine, "mine"))
        )
        assert done.output_ids == expected[str(rank)]
        assert done.num_cached_tokens == 0, "a prefix of another adapter was found"
        memory = await think(engine, adapters=mix_of(engine, "mine"))
        assert memory.memory.segments[0].adapter == engine.adapter("mine").digest
        await engine.release(memory)
        await engine.unload_adapter("mine")
    base = await engine.complete(create_turn(PROMPT, max_tokens=2))
    assert base.num_cached_tokens == 0


async def test_unloaded_adapter_drains_then_its_blocks_are_free(
    open_engine: OpenEngine,
    tiny_llama: Path,
    llama_adapters: dict[int, Path],
    expected: dict[str, tuple[int, ...]],
) -> None:
    engine = open_engine(tiny_llama)
    await engine.load_adapter("8", llama_adapters[8], is_pinned=True)
    events = engine.run(create_turn(PROMPT, max_tokens=NUM_TOKENS, adapters=mix_of(engine, "8")))
    await anext(events)
    await engine.unload_adapter("8")
    with pytest.raises(NotFoundError, match="'8'"):
        engine.adapter("8")
    last = [event async for event in events][-1]
    assert last.output_ids == expected["8"]
    assert (await engine.stats()).adapters.num_blocks == 0
    with pytest.raises(NotFoundError, match="'8'"):
        await engine.unload_adapter("8")


async def test_unknown_digest_is_refused_and_is_not_the_base(
    open_engine: OpenEngine, tiny_llama: Path
) -> None:
    engine = open_engine(tiny_llama)
    strange = AdapterMix((AdapterUse("0" * 64),))
    with pytest.raises(AdapterError, match="000000"):
        await engine.complete(create_turn(PROMPT, max_tokens=2, adapters=strange))
    await assert_answers(engine)


async def test_load_does_not_wait_for_what_runs_beside_the_steps(
    open_engine: OpenEngine, tiny_llama: Path, llama_adapters: dict[int, Path]
) -> None:
    """A merge of large adapters takes its time."""
    engine = open_engine(tiny_llama)
    may_end = threading.Event()
    merging = asyncio.create_task(engine.run_beside(lambda: may_end.wait(60)))
    try:
        await asyncio.wait_for(engine.load_adapter("8", llama_adapters[8]), timeout=30)
        assert not merging.done()
    finally:
        may_end.set()
    assert await merging


async def test_bad_adapter_disturbs_nobody_and_leaves_nothing(
    open_engine: OpenEngine, tiny_llama: Path, llama_adapters: dict[int, Path], tmp_path: Path
) -> None:
    engine = open_engine(tiny_llama)
    bad = make_adapter(tmp_path / "bad", tiny_llama, rank=4, std=float("inf"))
    running = asyncio.create_task(speak(engine, num_tokens=30))
    with pytest.raises(AdapterError, match="not finite"):
        await engine.load_adapter("bad", bad)
    with pytest.raises(NotFoundError):
        engine.adapter("bad")
    assert len(await running) == 30
    assert (await engine.stats()).adapters.num_registered == 0


async def test_adapter_too_large_for_the_pool_is_refused_by_its_figures(
    open_engine: OpenEngine, tiny_llama: Path, llama_adapters: dict[int, Path]
) -> None:
    engine = open_engine(tiny_llama, num_blocks=100)
    with pytest.raises(AdapterError, match=r"rank 64 needs \d+ blocks; the pool has 50"):
        await engine.load_adapter("64", llama_adapters[64])
    await assert_answers(engine)


async def test_turn_that_does_not_fit_beside_its_adapter_is_refused(
    open_engine: OpenEngine, tiny_llama: Path, llama_adapters: dict[int, Path]
) -> None:
    engine = open_engine(tiny_llama, num_blocks=150)
    await engine.load_adapter("8", llama_adapters[8])
    assert len(await speak(engine, num_tokens=460)) == 460
    with pytest.raises(ContextLengthError, match="taken by adapters"):
        await speak(engine, "8", num_tokens=460)


async def test_deadline_that_cannot_be_met_is_refused_while_waiting(
    open_engine: OpenEngine, tiny_llama: Path
) -> None:
    engine = open_engine(tiny_llama, max_num_seqs=1)
    first = asyncio.create_task(speak(engine, num_tokens=300))
    await wait_for(lambda: engine.stepper.scheduler.running)
    with pytest.raises(EngineError, match="deadline"):
        await speak(engine, deadline=time.monotonic() + 1e-4)
    assert len(await first) == 300
    assert await speak(engine, deadline=time.monotonic() + 60)


@pytest.mark.parametrize("decoder", ["fused", "plain"])
async def test_step_that_fails_leaves_no_adapter_behind(
    open_engine: OpenEngine,
    tiny_llama: Path,
    llama_adapters: dict[int, Path],
    expected: dict[str, tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
    decoder: str,
) -> None:
    from latentmas_core.engine import fused
    from latentmas_core.lora.batch import LoRABatch

    if decoder == "plain":
        monkeypatch.setattr(fused, "can_fuse", lambda _: False)
    engine = open_engine(tiny_llama)
    await engine.load_adapter("8", llama_adapters[8])
    base = await speak(engine)
    add = LoRABatch.add

    def fail(self: LoRABatch, layer_idx: int, *rest: object) -> None:
        if layer_idx == 1:
            raise RuntimeError("the device is upset")
        add(self, layer_idx, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(LoRABatch, "add", fail)
    with pytest.raises(EngineError):
        await speak(engine, "8")
    monkeypatch.setattr(LoRABatch, "add", add)
    assert await speak(engine) == base
    assert await speak(engine, "8") == expected["8"]
