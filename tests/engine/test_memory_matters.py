"""Thoughts are real: they change what follows, they emit no text, and every step is executed."""

import asyncio
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from latentmas_core.engine.engine import Engine
from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.engine.turn import Turn, TurnDone
from latentmas_core.latent.segment import KVRows, SegmentTensors
from tests.engine.engines import OpenEngine
from tests.engine.oracle import encode, export_all, greedy
from tests.engine.stepping import record_steps

QUESTION = "A train leaves at 9 and arrives at 11. How long does it take?"
MODELS = ["tiny_llama", "tiny_qwen2", "tiny_qwen3", "embedded_model_path"]


@pytest.fixture(params=MODELS)
def engine(request: pytest.FixtureRequest, open_engine: OpenEngine) -> Engine:
    return open_engine(request.getfixturevalue(request.param))


@pytest.fixture
def tiny_engine(open_engine: OpenEngine, tiny_qwen3: Path) -> Engine:
    return open_engine(tiny_qwen3, max_num_batched_tokens=16)


def create_turn(engine: Engine, prompt: str, *, latent_steps: int, **fields) -> Turn:
    ids = tuple(encode(engine.tokenizer, prompt))
    return Turn("agent", ids, num_latent_steps=latent_steps, keeps_memory=True, **fields)


async def take(engine: Engine, turn: Turn) -> tuple[TurnDone, ResidentMemory]:
    done = await engine.complete(turn)
    assert done.memory is not None
    return done, done.memory


async def judge(engine: Engine, memory: ResidentMemory) -> torch.Tensor:
    """What the judger thinks first: a function of its last hidden state, [1, hidden_size]."""
    turn = create_turn(engine, "So the answer is", latent_steps=1, memory=memory)
    _, judged = await take(engine, turn)
    *_, own = await export_all(engine, judged)
    await engine.release(judged)
    return own.latents


def noise_like(kv: KVRows, *, only: str) -> KVRows:
    """Random numbers of the same spread in place of some of the rows."""
    generator = torch.Generator().manual_seed(0)

    def scramble(rows: torch.Tensor) -> torch.Tensor:
        return rows.mean() + rows.std() * torch.randn(rows.shape, generator=generator)

    keys = scramble(kv.keys) if only in ("keys", "both") else kv.keys
    values = scramble(kv.values) if only in ("values", "both") else kv.values
    return KVRows(keys, values)


@pytest.mark.parametrize("part", ["keys", "values", "both"])
async def test_noise_in_place_of_a_thought_changes_what_the_judger_thinks(
    engine: Engine, part: str
) -> None:
    _, plan = await take(engine, create_turn(engine, QUESTION, latent_steps=4))
    critique_turn = create_turn(engine, "What is wrong?", latent_steps=3, memory=plan)
    _, critique = await take(engine, critique_turn)
    contents = dict(
        zip(critique.memory.segment_ids, await export_all(engine, critique), strict=True)
    )
    first_id = critique.memory.segment_ids[0]
    copied = await engine.load(critique.memory, contents)
    noisy = await engine.load(
        critique.memory, contents | {first_id: with_noise(contents[first_id], part)}
    )
    expected = await judge(engine, critique)
    assert (await judge(engine, copied) - expected).abs().max() < 1e-4
    assert (await judge(engine, noisy) - expected).abs().max() > 1e-2
    for memory in (plan, critique, copied, noisy):
        await engine.release(memory)


def with_noise(content: SegmentTensors, part: str) -> SegmentTensors:
    assert content.kv is not None
    return replace(content, kv=noise_like(content.kv, only=part))


async def test_noise_in_place_of_latents_alone_changes_what_the_judger_thinks(
    engine: Engine,
) -> None:
    _, plan = await take(engine, create_turn(engine, QUESTION, latent_steps=4))
    (content,) = await export_all(engine, plan)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(content.latents.shape, generator=generator)
    noise *= content.latents.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
    (segment_id,) = plan.memory.segment_ids
    same = await engine.prefill_memory(plan.memory, {segment_id: content.latents})
    other = await engine.prefill_memory(plan.memory, {segment_id: noise})
    expected = await judge(engine, plan)
    assert (await judge(engine, same) - expected).abs().max() < 1e-4
    assert (await judge(engine, other) - expected).abs().max() > 1e-2
    for memory in (plan, same, other):
        await engine.release(memory)


async def test_thinking_agents_emit_no_token(engine: Engine) -> None:
    done, plan = await take(engine, create_turn(engine, QUESTION, latent_steps=5))
    stats = await engine.stats()
    assert (done.output_ids, done.text) == ((), "")
    assert (stats.num_tokens_total, stats.num_latent_steps_total) == (0, 5)
    turn = create_turn(engine, "Answer.", latent_steps=0, memory=plan, sampling=greedy(3))
    _, spoken = await take(engine, turn)
    assert (await engine.stats()).num_tokens_total == 3
    await engine.release(plan)
    await engine.release(spoken)


async def test_every_reported_step_is_a_row_that_was_computed(tiny_engine: Engine) -> None:
    engine, steps = tiny_engine, record_steps(tiny_engine)
    turns = [
        create_turn(engine, QUESTION[number:], latent_steps=number % 5, sampling=speaking)
        for number, speaking in enumerate([None, greedy(6), None, greedy(1), greedy(9), None])
    ]
    dones = await asyncio.gather(*(engine.complete(turn) for turn in turns))
    stats = await engine.stats()
    num_steps = [done.num_latent_steps for done in dones]
    assert num_steps == [turn.num_latent_steps for turn in turns]
    assert sum(step.num_latent for step in steps) == sum(num_steps)
    assert stats.num_latent_steps_total == sum(num_steps)
    # The last token of an answer is not fed back.
    num_fed = sum(max(len(done.output_ids) - 1, 0) for done in dones)
    assert sum(step.num_sampled for step in steps) == num_fed
    num_prompt = sum(done.num_prompt_tokens - done.num_cached_tokens for done in dones)
    assert sum(step.num_prompt for step in steps) == num_prompt
    assert stats.num_rows_total == sum(num_steps) + num_fed + num_prompt
    assert stats.num_steps_total == len(steps)
    assert stats.num_tokens_total == sum(len(done.output_ids) for done in dones)
    for done in dones:
        assert done.memory is not None
        assert done.memory.memory.segments[-1].num_latents == done.num_latent_steps
        await engine.release(done.memory)


async def test_each_latent_step_counts(tiny_engine: Engine) -> None:
    thoughts = []
    for latent_steps in (0, 1, 2, 3):
        turn = create_turn(tiny_engine, QUESTION, latent_steps=latent_steps)
        _, memory = await take(tiny_engine, turn)
        thoughts.append(await judge(tiny_engine, memory))
        await tiny_engine.release(memory)
    for before, after in pairwise(thoughts):
        assert (after - before).abs().max() > 1e-2


async def test_realignment_changes_thoughts_of_untied_models_only(
    open_engine: OpenEngine, tiny_llama: Path, tiny_qwen3: Path
) -> None:
    for model, is_changed in ((tiny_llama, False), (tiny_qwen3, True)):
        latents = []
        for latent_realign in (True, False):
            engine = open_engine(model, latent_realign=latent_realign)
            _, memory = await take(engine, create_turn(engine, QUESTION, latent_steps=3))
            (content,) = await export_all(engine, memory)
            latents.append(content.latents)
            await engine.release(memory)
        difference = (latents[0] - latents[1]).abs().max()
        assert difference > 1e-2 if is_changed else difference == 0
