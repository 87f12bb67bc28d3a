"""An engine reads a memory that came in 8 bits nearly as it reads the memory itself."""

from pathlib import Path

import pytest
import torch

from latentmas_core.latent.codec import PackedSegments, unpack
from latentmas_core.latent.int8_codec import Int8Segments, from_int8
from tests.engine.engines import OpenEngine
from tests.engine.oracle import export_all, greedy
from tests.engine.turns import create_turn, think

SAMPLING = greedy(8).model_copy(update={"logprobs": 0})


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_qwen2", "tiny_qwen3"])
async def test_a_memory_in_8_bits_is_read_nearly_as_it_was(
    request: pytest.FixtureRequest, open_engine: OpenEngine, name: str
) -> None:
    model: Path = request.getfixturevalue(name)
    engine = open_engine(model, transfer_dtype="int8")
    reader = open_engine(model)
    memory = await think(engine)
    packed = await engine.pack(memory, memory.memory.segments)
    assert isinstance(packed, Int8Segments)
    loaded = await reader.load(memory.memory, from_int8(packed))

    read = await reader.complete(create_turn("Answer.", sampling=SAMPLING, memory=loaded))
    exact = await engine.complete(create_turn("Answer.", sampling=SAMPLING, memory=memory))
    assert read.output_ids == exact.output_ids
    assert read.logprobs is not None
    assert exact.logprobs is not None
    rounded_logprobs, exact_logprobs = (
        torch.tensor([token.logprob for token in done.logprobs]) for done in (read, exact)
    )
    torch.testing.assert_close(rounded_logprobs, exact_logprobs, rtol=2e-2, atol=0)
    assert not torch.equal(rounded_logprobs, exact_logprobs)
    (rounded,) = await export_all(reader, loaded)
    (kept,) = await export_all(engine, memory)
    assert rounded.kv is not None
    assert kept.kv is not None
    for actual, expected in ((rounded.kv.keys, kept.kv.keys), (rounded.kv.values, kept.kv.values)):
        assert 0 < (actual - expected).norm() < 0.01 * expected.norm()
    await engine.release(memory)
    await reader.release(loaded)


async def test_without_keys_and_values_nothing_is_rounded(
    open_engine: OpenEngine, tiny_llama: Path
) -> None:
    engine = open_engine(tiny_llama, transfer_dtype="int8")
    memory = await think(engine)
    packed = await engine.pack(memory, memory.memory.segments, has_kv=False)
    assert isinstance(packed, PackedSegments)
    (content,) = unpack(packed).values()
    assert torch.equal(content.latents, (await export_all(engine, memory))[0].latents)
    await engine.release(memory)
