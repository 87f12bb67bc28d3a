"""Turns that cannot run are refused by name and take nothing; the engine stays healthy."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from latentmas_core.engine.engine import Engine
from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.errors import (
    ConfigError,
    ContextLengthError,
    LatentMASError,
    SegmentError,
)
from tests.engine.engines import OpenEngine
from tests.engine.oracle import export_all
from tests.engine.stepping import paused, start_all
from tests.engine.turns import (
    assert_answers,
    contents_of,
    create_turn,
    think,
)


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
