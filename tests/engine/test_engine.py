"""Turns through the asyncio face: what comes out, and that nothing is left however they end."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from benchmarks.baselines.plain import PlainMemory
from latentmas_core.config import SamplingParams
from latentmas_core.engine import engine as engine_module
from latentmas_core.engine.engine import Engine
from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.engine.sequence import NextRow, Sequence
from latentmas_core.engine.turn import TextDelta, Thought, Turn, TurnDone
from latentmas_core.errors import (
    ConfigError,
    ContextLengthError,
    EngineError,
    LatentMASError,
    SegmentError,
)
from latentmas_core.latent.memory import MergeRule
from tests.engine.conftest import OpenEngine, assert_nothing_left
from tests.engine.oracle import Agent, Chain, Oracle, export_all, greedy, rows_of, run_chain
from tests.engine.stepping import StepGate, paused, record_steps, start_all

PROMPT = tuple(b"Once upon a time.")


@pytest.fixture
def engine(open_engine: OpenEngine, tiny_llama: Path) -> Engine:
    return open_engine(tiny_llama)


@pytest.fixture
async def memory(engine: Engine) -> AsyncIterator[ResidentMemory]:
    """What a planner left, released behind the test."""
    planned = await think(engine)
    yield planned
    await engine.release(planned)


def create_turn(
    prompt: str | tuple[int, ...] = PROMPT,
    *,
    latent_steps: int = 0,
    max_tokens: int = 0,
    **fields: Any,
) -> Turn:
    """Greedy, and exactly ``max_tokens`` long, unless ``sampling`` is given."""
    prompt_ids = tuple(prompt.encode()) if isinstance(prompt, str) else prompt
    fields.setdefault("sampling", greedy(max_tokens) if max_tokens else None)
    return Turn("agent", prompt_ids, num_latent_steps=latent_steps, **fields)


async def think(engine: Engine, *, latent_steps: int = 3, **fields: Any) -> ResidentMemory:
    turn = create_turn(latent_steps=latent_steps, keeps_memory=True, **fields)
    memory = (await engine.complete(turn)).memory
    assert memory is not None
    return memory


async def assert_answers(engine: Engine) -> None:
    """The engine is healthy: it still says what an engine says that was just opened."""
    done = await engine.complete(create_turn("Say something.", max_tokens=5))
    assert len(done.output_ids) == 5


# --- events ---------------------------------------------------------------------------------------


async def test_turn_that_thinks_and_speaks_tells_so_in_order(engine: Engine) -> None:
    events = [event async for event in engine.run(create_turn(latent_steps=2, max_tokens=6))]
    assert events[0] == Thought(2)
    *deltas, done = events[1:]
    assert all(isinstance(delta, TextDelta) and delta.text for delta in deltas)
    assert isinstance(done, TurnDone)
    assert "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)) == done.text
    assert (done.finish_reason, done.num_latent_steps) == ("length", 2)
    assert (done.num_prompt_tokens, len(done.output_ids)) == (len(PROMPT), 6)
    assert done.text == engine.tokenizer.decode(done.output_ids, skip_special_tokens=True)
    assert done.memory is None


async def test_turn_that_only_thinks_says_nothing(engine: Engine) -> None:
    events = [event async for event in engine.run(create_turn(latent_steps=4))]
    assert events[:-1] == [Thought(4)]
    done = events[-1]
    assert isinstance(done, TurnDone)
    assert (done.output_ids, done.text, done.finish_reason) == ((), "", "thought")


async def test_turn_that_neither_thinks_nor_speaks_leaves_its_prompt(engine: Engine) -> None:
    (done,) = [event async for event in engine.run(create_turn(keeps_memory=True))]
    assert isinstance(done, TurnDone)
    assert done.num_latent_steps == 0
    assert done.memory is not None
    assert done.memory.num_rows == len(PROMPT)
    await engine.release(done.memory)


async def test_memory_says_who_made_it_and_what_it_attended_to(engine: Engine) -> None:
    plan = await think(engine, latent_steps=2)
    critique = await think(engine, latent_steps=1, memory=plan)
    first, second = critique.memory.segments
    assert first == plan.memory.segments[0]
    assert (first.agent, first.fingerprint) == ("agent", engine.fingerprint)
    assert (first.token_ids, first.num_latents, first.context) == (PROMPT, 2, ())
    assert (second.first_position, second.context) == (first.end_position, plan.memory.seen)
    await engine.release(plan)
    await engine.release(critique)


async def test_readers_after_each_other_do_not_write_over_each_others_thoughts(
    engine: Engine,
) -> None:
    plan = await think(engine, latent_steps=2)  # 19 rows: its last block has a slot left
    first = await think(engine, prompt="One view.", latent_steps=2, memory=plan)
    before = await export_all(engine, first)
    second = await think(engine, prompt="Another view.", latent_steps=2, memory=plan)
    for ours, theirs in zip(await export_all(engine, first), before, strict=True):
        assert ours.kv is not None
        assert theirs.kv is not None
        assert torch.equal(ours.kv.keys, theirs.kv.keys)
        assert torch.equal(ours.kv.values, theirs.kv.values)
    for memory in (plan, first, second):
        await engine.release(memory)


async def test_memory_of_a_turn_that_spoke_leaves_out_what_it_said(engine: Engine) -> None:
    turn = create_turn(latent_steps=2, max_tokens=9, keeps_memory=True)
    spoken = (await engine.complete(turn)).memory
    thought = await think(engine, latent_steps=2)
    assert spoken is not None
    assert spoken.num_rows == thought.num_rows == len(PROMPT) + 2
    (one,), (other,) = await export_all(engine, spoken), await export_all(engine, thought)
    assert one.kv is not None
    assert other.kv is not None
    assert_close(one.kv.keys, other.kv.keys, atol=1e-5, rtol=0)
    assert_close(one.latents, other.latents, atol=1e-5, rtol=0)
    await engine.release(spoken)
    await engine.release(thought)


# --- ends of an answer ----------------------------------------------------------------------------


async def test_end_token_ends_the_answer_and_is_left_out(engine: Engine) -> None:
    whole = await engine.complete(create_turn(max_tokens=12))
    end_id = whole.output_ids[5]
    engine.stepper.eos_token_ids = frozenset({end_id})
    done = await engine.complete(create_turn(sampling=SamplingParams(max_tokens=12)))
    assert done.output_ids == whole.output_ids[: whole.output_ids.index(end_id)]
    assert done.finish_reason == "stop"
    assert done.text == engine.tokenizer.decode(done.output_ids, skip_special_tokens=True)


async def test_end_token_at_once_leaves_an_empty_answer(engine: Engine) -> None:
    whole = await engine.complete(create_turn(max_tokens=1))
    engine.stepper.eos_token_ids = frozenset(whole.output_ids)
    done = await engine.complete(create_turn(sampling=SamplingParams(max_tokens=12)))
    assert (done.output_ids, done.text, done.finish_reason) == ((), "", "stop")


async def test_end_tokens_may_be_ignored(engine: Engine) -> None:
    whole = await engine.complete(create_turn(max_tokens=12))
    engine.stepper.eos_token_ids = frozenset(whole.output_ids)
    done = await engine.complete(create_turn(max_tokens=12))
    assert (done.output_ids, done.finish_reason) == (whole.output_ids, "length")


async def test_stop_string_ends_the_answer_before_it(engine: Engine) -> None:
    whole = await engine.complete(create_turn(max_tokens=60))
    place = next(i for i, c in enumerate(whole.text[5:-5], 5) if c.isascii() and c.isprintable())
    stop = whole.text[place]
    sampling = SamplingParams(max_tokens=60, ignore_eos=True, stop=("never said", stop))
    events = [event async for event in engine.run(create_turn(sampling=sampling))]
    done = events[-1]
    assert isinstance(done, TurnDone)
    assert done.finish_reason == "stop"
    assert done.text == whole.text[: whole.text.index(stop)]
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == done.text
    assert len(done.output_ids) < 60


async def test_answer_on_the_real_model_streams_whole_characters(
    open_engine: OpenEngine, embedded_model_path: Path
) -> None:
    engine = open_engine(embedded_model_path, num_blocks=30)
    messages = [{"role": "user", "content": "Repeat: 🙂 déjà vu 日本"}]
    prompt = engine.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    turn = create_turn(tuple(prompt["input_ids"]), sampling=SamplingParams(max_tokens=16))
    events = [event async for event in engine.run(turn)]
    pieces = [event.text for event in events if isinstance(event, TextDelta)]
    done = events[-1]
    assert isinstance(done, TurnDone)
    assert "".join(pieces) == done.text != ""
    assert not any("\ufffd" in piece for piece in pieces[:-1])


# --- sampling -------------------------------------------------------------------------------------


async def test_same_seed_says_the_same_alone_and_in_a_batch(engine: Engine) -> None:
    turns = [
        create_turn(
            f"Story number {seed}:",
            latent_steps=seed % 3,
            sampling=SamplingParams(
                max_tokens=12, temperature=0.9, top_p=0.95, seed=seed, ignore_eos=True
            ),
        )
        for seed in range(8)
    ]
    alone = [(await engine.complete(turn)).output_ids for turn in turns]
    together = await asyncio.gather(*(engine.complete(turn) for turn in turns))
    assert [done.output_ids for done in together] == alone
    assert len(set(alone)) == len(turns)


async def test_seed_survives_preemption(open_engine: OpenEngine, tiny_llama: Path) -> None:
    sampling = SamplingParams(max_tokens=20, temperature=0.9, seed=4, ignore_eos=True)
    turns = [create_turn(f"Story {number}", sampling=sampling) for number in range(4)]
    engine = open_engine(tiny_llama, num_blocks=9, has_prefix_cache=False, max_num_batched_tokens=5)
    with paused(engine):
        tasks = await start_all(*(engine.complete(turn) for turn in turns))
    dones = [await task for task in tasks]
    assert sum(done.num_preemptions for done in dones) > 0
    for turn, done in zip(turns, dones, strict=True):
        assert (await engine.complete(turn)).output_ids == done.output_ids


async def test_prefix_cache_may_be_switched_off(open_engine: OpenEngine, tiny_llama: Path) -> None:
    for has_prefix_cache, expected in ((True, 16), (False, 0)):
        engine = open_engine(tiny_llama, has_prefix_cache=has_prefix_cache)
        await engine.complete(create_turn())
        done = await engine.complete(create_turn())
        assert done.num_cached_tokens == expected
        assert (await engine.stats()).num_cached_tokens_total == expected


# --- latents only ---------------------------------------------------------------------------------


async def test_carried_latents_are_read_like_a_plain_cache_of_those_rows(
    open_engine: OpenEngine, tiny_qwen3: Path
) -> None:
    engine, oracle = open_engine(tiny_qwen3), Oracle(tiny_qwen3)
    first, second = Agent("Plan it.", 4), Agent("Criticize it.", 3)
    run = await run_chain(engine, Chain((first, second)))
    carried = await engine.keep_latents(run.memory)
    plain = plain_latents_of(oracle, first, second)
    assert carried.num_rows == plain.num_rows == 7
    assert carried.memory.next_position == plain.next_position
    ids = oracle.encode("Judge.")
    turn = create_turn(tuple(ids), memory=carried, latent_steps=2, max_tokens=8, keeps_memory=True)
    done = await engine.complete(turn)
    expected = oracle.plain.think(ids, plain, latent_steps=2)
    assert done.memory is not None
    *_, own = await export_all(engine, done.memory)
    assert own.kv is not None
    oracle.assert_rows_close(own.kv, rows_of(expected.memory).select(7, 9 + len(ids)))
    assert_close(own.latents, expected.latents, atol=1e-4, rtol=0)
    answer = oracle.plain.speak(ids, plain, max_tokens=8, latent_steps=2)
    assert list(done.output_ids) == answer
    for memory in (run.memory, carried, done.memory):
        await engine.release(memory)


def plain_latents_of(oracle: Oracle, first: Agent, second: Agent) -> PlainMemory:
    """The latent rows of a chain of two, at the positions they were computed at."""
    first_ids, second_ids = oracle.encode(first.prompt), oracle.encode(second.prompt)
    memory = oracle.plain.think(first_ids, None, latent_steps=first.latent_steps).memory
    start = memory.num_rows
    rows = [*range(len(first_ids), start)]
    memory = oracle.plain.think(second_ids, memory, latent_steps=second.latent_steps).memory
    rows += range(start + len(second_ids), memory.num_rows)
    keys, values = ([layer[:, rows] for layer in t] for t in (memory.keys, memory.values))
    return PlainMemory(keys, values, memory.next_position)


async def test_carrying_latents_of_an_agent_that_took_no_steps_is_refused(engine: Engine) -> None:
    memory = await think(engine, latent_steps=0)
    with pytest.raises(SegmentError, match="took 0 latent steps"):
        await engine.keep_latents(memory)
    await engine.release(memory)


# --- wrong input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"prompt": ""}, ConfigError, "has 0 tokens; it needs at least 1"),
        ({"latent_steps": 129}, ConfigError, "latent_steps is 129 .* allowed are 0 to 128"),
        ({"latent_steps": -1}, ConfigError, "latent_steps is -1"),
        ({"prompt": "x" * 2049}, ContextLengthError, "needs 2049 positions .* the model has 2048"),
        ({"max_tokens": 2040}, ContextLengthError, "needs 2057 positions"),
        ({"prompt": "x" * 1600}, ContextLengthError, "needs 1600 slots .* pool holds 1596"),
    ],
)
async def test_turn_that_cannot_run_is_refused_and_takes_nothing(
    engine: Engine, fields: dict[str, Any], error: type[LatentMASError], message: str
) -> None:
    with pytest.raises(error, match=message):
        await engine.complete(create_turn(**fields))
    assert (await engine.stats()).num_steps_total == 0
    await assert_answers(engine)


async def test_largest_turn_that_is_accepted_also_ends(
    open_engine: OpenEngine, tiny_llama: Path
) -> None:
    engine = open_engine(tiny_llama, num_blocks=12)
    memory = await think(engine)  # 20 rows, which is 5 blocks
    other = await think(engine, latent_steps=2)
    turn = create_turn("x" * 10, memory=memory, max_tokens=14)
    with pytest.raises(ContextLengthError, match=r"45 slots .* pool holds 44"):
        await engine.complete(replace(turn, prompt_ids=(*turn.prompt_ids, 1)))
    assert len((await engine.complete(turn)).output_ids) == 14
    await engine.release(memory)
    await engine.release(other)


async def test_memory_of_another_model_is_refused_everywhere(
    engine: Engine, memory: ResidentMemory, open_engine: OpenEngine, tiny_qwen3: Path
) -> None:
    other = open_engine(tiny_qwen3)
    tensors = await export_all(engine, memory)
    contents = dict(zip(memory.memory.segment_ids, tensors, strict=True))
    message = f"made by model {engine.fingerprint}, this memory needs {other.fingerprint}"
    with pytest.raises(SegmentError, match=message):
        await other.complete(create_turn(memory=memory))
    with pytest.raises(SegmentError, match=message):
        await other.load(memory.memory, contents)
    with pytest.raises(SegmentError, match=message):
        await other.prefill_memory(memory.memory, memory.latents)
    own = await think(other)
    with pytest.raises(SegmentError, match=f"made by model {engine.fingerprint}"):
        await other.merge([own, memory])
    await other.release(own)
    await assert_answers(other)


async def test_released_memory_is_refused(engine: Engine) -> None:
    memory = await think(engine)
    await engine.release(memory)
    await engine.stats()
    with pytest.raises(SegmentError, match="reads a memory that was released"):
        await engine.complete(create_turn(memory=memory))
    await assert_answers(engine)


async def test_memory_that_is_released_before_its_reader_arrives_is_refused(
    engine: Engine,
) -> None:
    memory = await think(engine)
    with paused(engine):
        await engine.release(memory)
        (task,) = await start_all(engine.complete(create_turn(memory=memory)))
    with pytest.raises(SegmentError, match="reads a memory that was released"):
        await task
    await assert_answers(engine)


async def test_memory_without_keys_and_values_is_prefilled_not_read(
    engine: Engine, memory: ResidentMemory
) -> None:
    packed = await engine.pack(memory, memory.memory.segments, has_kv=False)
    contents = {s.segment_id: replace(t, kv=None) for s, t in await contents_of(engine, memory)}
    assert packed.num_bytes == sum(content.latents.nbytes for content in contents.values())
    bare = await engine.load(memory.memory, contents)
    with pytest.raises(SegmentError, match="came without keys and values"):
        await engine.complete(create_turn(memory=bare))
    again = await engine.pack(bare, memory.memory.segments, has_kv=False)
    assert torch.equal(again.buffer, packed.buffer)
    prefilled = await engine.prefill_memory(bare.memory, bare.latents)
    done = await engine.complete(create_turn(memory=prefilled, max_tokens=5))
    expected = await engine.complete(create_turn(memory=memory, max_tokens=5))
    assert done.output_ids == expected.output_ids
    await engine.release(bare)
    await engine.release(prefilled)


async def contents_of(engine: Engine, memory: ResidentMemory) -> list[tuple[Any, Any]]:
    segments = memory.memory.segments
    return list(zip(segments, await export_all(engine, memory), strict=True))


# --- cancellation ---------------------------------------------------------------------------------

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
    other = await think(engine)
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


# --- failures -------------------------------------------------------------------------------------


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
