"""The same engine on a card: parity in fp32, paged against gathered attention in bf16, its pool.

Needs torch, transformers and this repository, nothing else.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from latentmas_core.config import EngineConfig, SamplingParams
from latentmas_core.engine import model_runner
from latentmas_core.engine.attention import (
    PAGED_BLOCK_SIZE,
    SequenceRows,
    can_read_pages,
    paged_attention,
    prepare_batch,
)
from latentmas_core.engine.engine import Engine
from latentmas_core.engine.kv_pool import KVPool, num_block_bytes
from latentmas_core.engine.model_loader import load_model
from latentmas_core.engine.model_shape import ModelShape
from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.engine.turn import Turn
from latentmas_core.latent.codec import unpack
from latentmas_core.latent.segment import KVRows
from tests.engine.engines import OpenEngine, assert_nothing_left
from tests.engine.oracle import (
    Agent,
    Chain,
    Oracle,
    export_all,
    release_all,
    run_chain,
    run_chains,
)
from tests.engine.stepping import record_steps
from tests.engine.turns import create_turn
from tests.lora.adapters import make_adapter, mix_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CUDA = torch.device("cuda", 0)
MODELS = ["tiny_llama", "tiny_qwen2", "tiny_qwen3"]
CHAINS = [
    Chain((Agent("You are one of several agents. Plan.", 3), Agent("Answer.", 0)), max_tokens=9),
    Chain(
        (
            Agent("You are one of several agents. Write.", 1),
            Agent("A function that adds two numbers.", 3),
        )
    ),
    Chain((Agent("Name three colours.", 0),), max_tokens=14),
    Chain((Agent("Say hello.", 2),), max_tokens=11),
    Chain((Agent("Hi", 0), Agent("Why?", 1), Agent("Because", 0)), max_tokens=10),
    Chain((Agent("Think about primes below 30 and list them.", 4),)),
]

OpenGPUEngine = Callable[..., Engine]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture
async def open_gpu_engine() -> AsyncIterator[OpenGPUEngine]:
    """An engine on the card, closed behind the test and searched for anything left over."""
    engines: list[Engine] = []

    def open_one(
        model: Path,
        dtype: str,
        *,
        num_blocks: int = 300,
        further_devices: Sequence[torch.device] = (),
        **overrides: Any,
    ) -> Engine:
        loaded = load_model(
            str(model),
            device=CUDA,
            further_devices=further_devices,
            dtype=getattr(torch, dtype),
        )
        block_size = overrides.get("block_size", PAGED_BLOCK_SIZE)
        num_bytes = num_blocks * num_block_bytes(loaded.shape, block_size, loaded.model.dtype)
        config = EngineConfig(
            model_name=str(model),
            device="cuda",
            dtype=dtype,
            **({"kv_cache_bytes": num_bytes} | overrides),
        )
        engines.append(Engine(config, loaded))
        return engines[-1]

    yield open_one
    try:
        for engine in engines:
            await assert_nothing_left(engine)
    finally:
        for engine in engines:
            engine.close()


@pytest.mark.parametrize("block_size", [4, 16, PAGED_BLOCK_SIZE])
async def test_chains_at_once_equal_the_plain_loop_in_fp32(
    open_gpu_engine: OpenGPUEngine, model: Path, block_size: int
) -> None:
    engine = open_gpu_engine(model, "float32", block_size=block_size, max_num_batched_tokens=16)
    assert not engine.stepper.runner.is_paged
    oracle, steps = Oracle(model, device=CUDA), record_steps(engine)
    for _ in range(2):  # the second time with a warm prefix cache
        runs = await run_chains(engine, CHAINS)
        for run, chain in zip(runs, CHAINS, strict=True):
            await oracle.assert_run_equals(engine, run, chain)
        await release_all(engine, runs)
    assert any(step.num_latent and step.num_sampled for step in steps)


async def test_preempted_and_offloaded_rows_come_back_in_fp32(
    open_gpu_engine: OpenGPUEngine, model: Path
) -> None:
    engine = open_gpu_engine(model, "float32", block_size=2, num_blocks=40, has_prefix_cache=False)
    oracle = Oracle(model, device=CUDA)
    runs = await run_chains(engine, CHAINS)
    stats = await engine.stats()
    assert stats.num_preemptions_total + stats.num_offloads_total > 0
    for run, chain in zip(runs, CHAINS, strict=True):
        await oracle.assert_run_equals(engine, run, chain)
    await release_all(engine, runs)


async def test_memory_of_the_card_continues_on_a_cpu_in_fp32(
    open_gpu_engine: OpenGPUEngine, open_engine: OpenEngine, model: Path
) -> None:
    on_card, on_cpu = open_gpu_engine(model, "float32"), open_engine(model)
    assert on_card.fingerprint == on_cpu.fingerprint
    run = await run_chain(on_card, CHAINS[1])
    packed = await on_card.pack(run.memory, run.memory.memory.segments)
    assert packed.buffer.device.type == "cpu"
    moved = await on_cpu.load(run.memory.memory, unpack(packed))
    await Oracle(model).assert_memory_equals(on_cpu, moved, CHAINS[1])
    await on_card.release(run.memory)
    await on_cpu.release(moved)


# --- several shards -------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 1], ids=["one card taken for two", "two cards"])
async def test_chains_over_two_shards_equal_the_plain_loop_in_fp32(
    open_gpu_engine: OpenGPUEngine, model: Path, index: int
) -> None:
    split = open_shards(open_gpu_engine, model, "float32", index, block_size=4)
    oracle = Oracle(model, device=CUDA)
    for _ in range(2):  # the second time with a warm prefix cache
        runs = await run_chains(split, CHAINS)
        for run, chain in zip(runs, CHAINS, strict=True):
            await oracle.assert_run_equals(split, run, chain)
        await release_all(split, runs)


@pytest.mark.parametrize("index", [0, 1], ids=["one card taken for two", "two cards"])
async def test_rows_of_two_shards_in_bf16_are_near_those_of_one(
    open_gpu_engine: OpenGPUEngine, model: Path, index: int
) -> None:
    whole = open_gpu_engine(model, "bfloat16")
    split = open_shards(open_gpu_engine, model, "bfloat16", index)
    assert split.stepper.runner.is_paged == whole.stepper.runner.is_paged
    pairs = zip(await rows_of_chains(split), await rows_of_chains(whole), strict=True)
    for ours, theirs in pairs:
        assert distance(ours, theirs) < 0.05


@pytest.mark.parametrize("index", [0, 1], ids=["one card taken for two", "two cards"])
async def test_adapter_over_two_shards_says_what_it_says_on_one(
    open_gpu_engine: OpenGPUEngine, tiny_llama: Path, tmp_path: Path, index: int
) -> None:
    adapter, said = make_adapter(tmp_path, tiny_llama), []
    whole = open_gpu_engine(tiny_llama, "float32")
    for engine in (whole, open_shards(open_gpu_engine, tiny_llama, "float32", index)):
        await engine.load_adapter("one", adapter)
        turn = create_turn(latent_steps=2, max_tokens=8, adapters=mix_of(engine, "one"))
        said.append((await engine.complete(turn)).output_ids)
    assert said[0] == said[1]


def open_shards(
    open_gpu_engine: OpenGPUEngine, model: Path, dtype: str, index: int, **overrides: Any
) -> Engine:
    """Over the first card and card ``index``, which may be the first again."""
    if index >= torch.cuda.device_count():
        pytest.skip(f"needs {index + 1} CUDA devices")
    other = torch.device("cuda", index)
    engine = open_gpu_engine(model, dtype, further_devices=[other], **overrides)
    pool = engine.stepper.pool
    assert [part.device for part in pool.parts] == [CUDA, other]
    assert all(part.keys.device == part.device for part in pool.parts)
    return engine


# --- bf16 -----------------------------------------------------------------------------------------


def require_pages() -> None:
    if not can_read_pages(CUDA, torch.bfloat16):
        pytest.skip("varlen_attn of this torch reads no pages on this card")


def distance(actual: KVRows, expected: KVRows) -> float:
    """|actual - expected| / |expected| over keys and values together."""
    ours, theirs = (torch.stack((rows.keys, rows.values)).float() for rows in (actual, expected))
    return float((ours - theirs).norm() / theirs.norm())


async def rows_of_chains(engine: Engine) -> list[KVRows]:
    """What every chain leaves behind; the memories are released."""
    runs = await run_chains(engine, CHAINS)
    exported = [await export_all(engine, run.memory) for run in runs]
    await release_all(engine, runs)
    return [KVRows.concatenate([t.kv for t in tensors if t.kv]) for tensors in exported]


async def test_gathered_rows_in_bf16_are_near_the_plain_loop(
    open_gpu_engine: OpenGPUEngine, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_runner, "can_read_pages", lambda *_: False)
    engine, oracle = open_gpu_engine(model, "bfloat16"), Oracle(model, device=CUDA)
    for rows, chain in zip(await rows_of_chains(engine), CHAINS, strict=True):
        assert distance(rows, oracle.run(chain).kv) < 0.05


async def test_paged_rows_in_bf16_are_near_gathered_ones(
    open_gpu_engine: OpenGPUEngine, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_pages()
    paged = open_gpu_engine(model, "bfloat16", max_num_batched_tokens=16)
    assert paged.stepper.runner.is_paged
    assert paged.stepper.blocks.block_size == PAGED_BLOCK_SIZE
    monkeypatch.setattr(model_runner, "can_read_pages", lambda *_: False)
    gathered = open_gpu_engine(model, "bfloat16", max_num_batched_tokens=16)
    oracle = Oracle(model, device=CUDA)
    pairs = zip(await rows_of_chains(paged), await rows_of_chains(gathered), strict=True)
    for (ours, theirs), chain in zip(pairs, CHAINS, strict=True):
        assert distance(ours, theirs) < 0.05
        assert distance(ours, oracle.run(chain).kv) < 0.05


# Ragged steps over pages: (slots before, rows) of every sequence, those with one row first.
STEPS = {
    "single rows": [(0, 1), (255, 1), (256, 1), (700, 1)],
    "one prompt": [(0, 300)],
    "chunks": [(0, 5), (254, 7), (512, 33)],
    "all at once": [(3, 1), (511, 1), (0, 40), (300, 250)],
}
HEADS = ModelShape(
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=64,
    hidden_size=384,
    vocab_size=8,
    max_positions=1000,
)


@pytest.mark.parametrize("sizes", STEPS.values(), ids=STEPS)
def test_paged_attention_equals_gathered_attention(sizes: list[tuple[int, int]]) -> None:
    require_pages()
    blocks = iter(torch.randperm(20, generator=torch.Generator().manual_seed(0)).tolist())
    sequences = [
        SequenceRows([next(blocks) for _ in range(-(-(n + m) // PAGED_BLOCK_SIZE))], n, m)
        for n, m in sizes
    ]
    num_rows = sum(rows for _, rows in sizes)
    generator = torch.Generator(CUDA).manual_seed(1)
    states = [
        torch.randn(num_rows, heads, 64, device=CUDA, generator=generator).bfloat16()
        for heads in (6, 2, 2)
    ]
    outputs, pools = [], []
    for is_paged in (True, False):
        pool = create_gpu_pool(num_blocks=20)
        batch = prepare_batch(sequences, pool, num_groups=3, is_paged=is_paged)
        outputs.append(paged_attention(batch, 1, *states, scaling=0.125).float())
        pools.append(pool)
    assert (outputs[0] - outputs[1]).abs().max() < 2e-2
    assert torch.equal(pools[0].keys, pools[1].keys)
    assert torch.equal(pools[0].values, pools[1].values)


def create_gpu_pool(*, num_blocks: int) -> KVPool:
    pool = KVPool(
        HEADS,
        num_blocks=num_blocks,
        block_size=PAGED_BLOCK_SIZE,
        dtype=torch.bfloat16,
        device=CUDA,
    )
    generator = torch.Generator(CUDA).manual_seed(2)
    pool.keys.normal_(generator=generator)
    pool.values.normal_(generator=generator)
    return pool


async def test_rows_moved_to_the_host_and_back_are_bit_exact(
    open_gpu_engine: OpenGPUEngine, tiny_qwen3: Path
) -> None:
    engine = open_gpu_engine(tiny_qwen3, "bfloat16", num_blocks=4)
    run = await run_chain(engine, CHAINS[1])
    before = await export_all(engine, run.memory)
    others = [await fill_pool(engine, number) for number in range(4)]
    assert (await engine.stats()).num_offloads_total > 0
    last = await engine.complete(Turn("reader", (1, 2, 3), run.memory))
    assert last.finish_reason == "thought"
    for ours, theirs in zip(await export_all(engine, run.memory), before, strict=True):
        assert ours.kv is not None
        assert theirs.kv is not None
        assert torch.equal(ours.kv.keys, theirs.kv.keys)
        assert torch.equal(ours.kv.values, theirs.kv.values)
    for memory in (run.memory, *others):
        await engine.release(memory)


async def fill_pool(engine: Engine, number: int) -> ResidentMemory:
    """A memory of a prompt that takes a block or more for itself."""
    done = await engine.complete(Turn("filler", (number + 1,) * 270, keeps_memory=True))
    assert done.memory is not None
    return done.memory


# --- pool and sampling ----------------------------------------------------------------------------


async def test_pool_takes_its_share_of_the_free_memory(
    open_gpu_engine: OpenGPUEngine, tiny_llama: Path
) -> None:
    num_free, _ = torch.cuda.mem_get_info(CUDA)
    engine = open_gpu_engine(tiny_llama, "bfloat16", kv_cache_bytes=None, memory_share=0.02)
    num_bytes = engine.stepper.pool.keys.nbytes + engine.stepper.pool.values.nbytes
    assert 0.01 * num_free < num_bytes <= 0.02 * num_free


async def test_same_seed_says_the_same_alone_and_in_a_batch(
    open_gpu_engine: OpenGPUEngine, tiny_qwen3: Path
) -> None:
    engine = open_gpu_engine(tiny_qwen3, "float32")
    turns = [
        Turn(
            "agent",
            tuple(f"Story number {seed}:".encode()),
            num_latent_steps=seed % 3,
            sampling=SamplingParams(max_tokens=12, temperature=0.9, seed=seed, ignore_eos=True),
        )
        for seed in range(6)
    ]
    alone = [(await engine.complete(turn)).output_ids for turn in turns]
    together = await asyncio.gather(*(engine.complete(turn) for turn in turns))
    assert [done.output_ids for done in together] == alone
