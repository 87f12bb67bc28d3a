"""Turns through the asyncio face: what comes out, and when an answer ends."""

import asyncio
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from benchmarks.baselines.plain import PlainMemory
from latentmas_core.config import SamplingParams
from latentmas_core.engine.engine import Engine
from latentmas_core.engine.turn import TextDelta, Thought, TurnDone
from latentmas_core.errors import (
    SegmentError,
)
from tests.engine.engines import OpenEngine
from tests.engine.oracle import Agent, Chain, Oracle, export_all, rows_of, run_chain
from tests.engine.stepping import paused, start_all
from tests.engine.turns import (
    PROMPT,
    create_turn,
    think,
)

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
