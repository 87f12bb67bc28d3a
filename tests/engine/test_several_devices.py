"""A model in several shards computes what it computes in one: rows, thoughts, answers, memories.

The CPU is taken for two or three devices, so every shard has its own part of the pool and is handed
what the others computed. What lies on the wrong device is found in test_pretended_devices.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import remove_hook_from_module
from torch.testing import assert_close

from latentmas_core.config import EngineConfig
from latentmas_core.engine import fused, model_loader
from latentmas_core.engine.engine import Engine
from latentmas_core.engine.fused import FusedDecoder, PlainDecoder
from latentmas_core.engine.model_loader import load_model
from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.engine.split_pool import SplitPool
from latentmas_core.errors import ConfigError
from latentmas_core.latent.codec import unpack
from latentmas_core.latent.memory import MergeRule
from latentmas_core.latent.segment import SegmentTensors
from tests.engine.engines import CPU, OpenEngine
from tests.engine.oracle import (
    Agent,
    Chain,
    Oracle,
    export_all,
    release_all,
    run_chain,
    run_chains,
)
from tests.engine.turns import create_turn, think
from tests.factories import make_tiny_model
from tests.lora.adapters import make_adapter, mix_of

ATOL = 1e-5
MODELS = ["tiny_llama", "tiny_qwen2", "tiny_qwen3"]
CHAINS = [
    Chain((Agent("You are one of several agents. Plan.", 3), Agent("Answer.", 0)), max_tokens=9),
    Chain((Agent("Write.", 1), Agent("A function that adds two numbers.", 3))),
    Chain((Agent("Name three colours.", 0),), max_tokens=14),
    Chain((Agent("Say hello.", 2),), max_tokens=11),
    Chain((Agent("Hi", 0), Agent("Why?", 1), Agent("Because", 0)), max_tokens=10),
]
THOUGHTFUL = CHAINS[1]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["fused", "plain"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type:
    """Which of the two decoders the engine takes."""
    if request.param == "plain":
        monkeypatch.setattr(fused, "can_fuse", lambda _: False)
    return PlainDecoder if request.param == "plain" else FusedDecoder


def assert_contents_equal(ours: Sequence[SegmentTensors], theirs: Sequence[SegmentTensors]) -> None:
    """Latents, keys and values of all segments, within 1e-5."""
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one.latents, other.latents, atol=ATOL, rtol=0)
        assert one.kv is not None
        assert other.kv is not None
        assert_close(one.kv.keys, other.kv.keys, atol=ATOL, rtol=0)
        assert_close(one.kv.values, other.kv.values, atol=ATOL, rtol=0)


async def assert_chains_equal(split: Engine, whole: Engine) -> None:
    """One at a time: then both compute the same steps, and rounding is the same."""
    for chain in CHAINS:
        ours, theirs = await run_chain(split, chain), await run_chain(whole, chain)
        assert ours.output_ids == theirs.output_ids
        assert_contents_equal(
            await export_all(split, ours.memory), await export_all(whole, theirs.memory)
        )
        await split.release(ours.memory)
        await whole.release(theirs.memory)


async def assert_chains_at_once_equal_the_plain_loop(
    split: Engine, model: Path, *, is_scaled: bool = False
) -> None:
    oracle = Oracle(model, is_scaled=is_scaled)
    for _ in range(2):  # the second time with a warm prefix cache
        runs = await run_chains(split, CHAINS)
        for run, chain in zip(runs, CHAINS, strict=True):
            await oracle.assert_run_equals(split, run, chain)
        await release_all(split, runs)


@pytest.mark.parametrize("num_shards", [2, 3])
async def test_chains_equal_those_of_one_shard(
    open_engine: OpenEngine, model: Path, decoder: type, num_shards: int
) -> None:
    whole, split = open_engine(model), open_engine(model, num_shards=num_shards)
    runner = split.stepper.runner
    assert type(runner._decoder) is decoder
    assert len(runner.shards) == num_shards
    await assert_chains_equal(split, whole)


@pytest.mark.parametrize("num_shards", [2, 3])
async def test_chains_at_once_equal_the_plain_loop(
    open_engine: OpenEngine, model: Path, decoder: type, num_shards: int
) -> None:
    split = open_engine(model, max_num_batched_tokens=16, num_shards=num_shards)
    await assert_chains_at_once_equal_the_plain_loop(split, model)


async def test_each_shard_has_the_keys_and_values_of_its_own_layers(
    open_engine: OpenEngine, tiny_llama: Path
) -> None:
    split = open_engine(tiny_llama, num_shards=2)
    pool = split.stepper.pool
    assert isinstance(pool, SplitPool)
    num_layers = [shard.num_layers for shard in split.stepper.runner.shards]
    assert [len(part.layer_keys) for part in pool.parts] == num_layers
    assert sum(num_layers) == len(pool.layer_keys) == len(pool.layer_values) == 3


async def test_one_device_has_one_pool_without_anything_around_it(
    open_engine: OpenEngine, tiny_llama: Path
) -> None:
    pool = open_engine(tiny_llama).stepper.pool
    assert not isinstance(pool, SplitPool)
    assert pool.parts == (pool,)


def test_equal_models_have_equal_fingerprints_however_they_are_split(model: Path) -> None:
    whole = load_model(str(model), device=CPU, dtype=torch.float32)
    split = load_model(str(model), device=CPU, further_devices=[CPU], dtype=torch.float32)
    assert len(whole.shards) == 1
    assert len(split.shards) == 2
    assert whole.fingerprint == split.fingerprint


@pytest.mark.parametrize("architecture", ["olmo", "granite", "gemma", "phi3", "starcoder2"])
async def test_unknown_structures_are_split_too(
    open_engine: OpenEngine, tmp_path: Path, architecture: str
) -> None:
    settings: dict[str, Any] = {"sliding_window": None} if architecture == "starcoder2" else {}
    if architecture == "granite":
        settings = {"attention_multiplier": 0.3, "residual_multiplier": 0.5, "logits_scaling": 1.0}
    model = make_tiny_model(tmp_path, architecture, **settings)
    split = open_engine(model, num_shards=2)
    assert isinstance(split.stepper.runner._decoder, PlainDecoder)
    # phi3's thoughts carry rounding on: its keys, up to 5, have differed by 1.4e-4.
    await assert_chains_at_once_equal_the_plain_loop(split, model, is_scaled=True)


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
async def test_quantised_weights_are_split_too(
    open_engine: OpenEngine, tiny_qwen3: Path, kind: str
) -> None:
    whole, split = (open_engine(tiny_qwen3, quantization=kind, num_shards=n) for n in (1, 2))
    assert split.fingerprint == whole.fingerprint
    await assert_chains_equal(split, whole)


# --- adapters -------------------------------------------------------------------------------------


async def speak(engine: Engine, *names: str) -> tuple[int, ...]:
    turn = create_turn(latent_steps=2, max_tokens=8, adapters=mix_of(engine, *names))
    return (await engine.complete(turn)).output_ids


async def test_mixed_adapters_change_the_layers_of_every_shard(
    open_engine: OpenEngine, model: Path, decoder: type, tmp_path: Path
) -> None:
    engines = [open_engine(model, num_blocks=2000, num_shards=n) for n in (1, 2, 3)]
    folders = [
        make_adapter(tmp_path / str(rank), model, rank=rank, seed=rank, std=0.12 * rank**-0.5)
        for rank in (4, 8, 8, 33)
    ]
    mixes: list[tuple[str, ...]] = [(), ("0",), ("1",), ("2",), ("3",), ("0", "3")]
    said = []
    for engine in engines:
        for name, folder in enumerate(folders):
            await engine.load_adapter(str(name), folder)
        together = await asyncio.gather(*(speak(engine, *mix) for mix in mixes))
        assert together == [await speak(engine, *mix) for mix in mixes]
        said.append(together)
        for name in range(len(folders)):
            await engine.unload_adapter(str(name))
    assert said[0] == said[1] == said[2]
    assert len(set(said[0])) >= len(mixes) - 1, "adapters make no difference here"


async def test_adapter_is_copied_to_the_shard_of_each_layer(
    open_engine: OpenEngine, tiny_llama: Path, tmp_path: Path
) -> None:
    engine = open_engine(tiny_llama, num_blocks=2000, num_shards=3)
    await engine.load_adapter("one", make_adapter(tmp_path, tiny_llama))
    await speak(engine, "one")
    (adapter,) = engine.stepper.adapters._on_device.values()
    assert adapter.berth is not None
    assert adapter.packed is not None
    for layer, part in enumerate(adapter.berth.parts):
        assert torch.equal(part.a[0], adapter.packed.a[layer])
        assert torch.equal(part.b[0], adapter.packed.b[layer])


# --- memories -------------------------------------------------------------------------------------


async def hand_over(
    source: Engine, memory: ResidentMemory, target: Engine, *, has_kv: bool = True
) -> ResidentMemory:
    packed = await source.pack(memory, memory.memory.segments, has_kv=has_kv)
    contents = unpack(packed)
    if has_kv:
        return await target.load(memory.memory, contents)
    latents = {segment_id: content.latents for segment_id, content in contents.items()}
    return await target.prefill_memory(memory.memory, latents)


@pytest.mark.parametrize("has_kv", [True, False], ids=["keys and values", "embeddings"])
@pytest.mark.parametrize("num_shards", [(2, 1), (1, 2), (2, 3)])
async def test_memory_goes_on_in_an_engine_of_another_split(
    open_engine: OpenEngine, model: Path, num_shards: tuple[int, int], has_kv: bool
) -> None:
    source, target = (open_engine(model, num_shards=n) for n in num_shards)
    run = await run_chain(source, THOUGHTFUL)
    moved = await hand_over(source, run.memory, target, has_kv=has_kv)
    await Oracle(model).assert_memory_equals(target, moved, THOUGHTFUL)
    turn = create_turn("Go on.", memory=run.memory, max_tokens=8)
    there = create_turn("Go on.", memory=moved, max_tokens=8)
    said = (await source.complete(turn)).output_ids
    assert (await target.complete(there)).output_ids == said
    await source.release(run.memory)
    await target.release(moved)


@pytest.mark.parametrize("rule", MergeRule)
async def test_merged_memories_are_read_alike(
    open_engine: OpenEngine, model: Path, rule: MergeRule
) -> None:
    said, contents = [], []
    for num_shards in (1, 2):
        engine = open_engine(model, num_shards=num_shards)
        prompts = ["You are a doctor.", "You know numbers. Compute.", "Write code."]
        experts = [await think(engine, prompt=prompt, latent_steps=4) for prompt in prompts]
        merged = await engine.merge(experts, rule)
        contents.append(await export_all(engine, merged))
        turn = create_turn("Judge.", memory=merged, latent_steps=2, max_tokens=10)
        said.append((await engine.complete(turn)).output_ids)
        for memory in (*experts, merged):
            await engine.release(memory)
    assert said[0] == said[1]
    assert_contents_equal(contents[1], contents[0])


async def test_preempted_and_offloaded_rows_come_back(
    open_engine: OpenEngine, model: Path, decoder: type
) -> None:
    split = open_engine(model, num_shards=2, num_blocks=40, block_size=2, has_prefix_cache=False)
    oracle = Oracle(model)
    runs = await run_chains(split, [*CHAINS, *CHAINS])
    stats = await split.stats()
    assert stats.num_preemptions_total > 0
    assert stats.num_offloads_total > 0
    for run, chain in zip(runs, [*CHAINS, *CHAINS], strict=True):
        await oracle.assert_run_equals(split, run, chain)
    await release_all(split, runs)


async def test_two_readers_of_one_memory_copy_its_last_block_on_every_shard(
    open_engine: OpenEngine, tiny_qwen2: Path
) -> None:
    said = []
    for num_shards in (1, 2):
        engine = open_engine(tiny_qwen2, num_shards=num_shards)
        memory = await think(engine, latent_steps=4)
        assert memory.num_rows % engine.stepper.blocks.block_size != 0
        turns = [create_turn(text, memory=memory, max_tokens=8) for text in ("Yes?", "No?")]
        done = await asyncio.gather(*(engine.complete(turn) for turn in turns))
        said.append([one.output_ids for one in done])
        await engine.release(memory)
    assert said[0] == said[1]


# --- loading --------------------------------------------------------------------------------------


def test_weights_are_read_straight_to_their_device(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []
    read = model_loader._read_weights

    def watched(source: str, options: dict[str, Any]) -> Any:
        given.append(options)
        return read(source, options)

    monkeypatch.setattr(model_loader, "_read_weights", watched)
    load_model(str(tiny_llama), device=CPU, further_devices=[CPU], dtype=torch.float32)
    (options,) = given
    assert {f"model.layers.{index}" for index in range(3)} < options["device_map"].keys()


def test_no_hook_of_accelerate_is_left(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two devices that differ make accelerate put hooks around every module."""
    seen: list[bool] = []

    def watched(model: torch.nn.Module, *, recurse: bool) -> torch.nn.Module:
        seen.append(any(hasattr(module, "_hf_hook") for module in model.modules()))
        remove_hook_from_module(model, recurse=recurse)
        assert not any(hasattr(module, "_hf_hook") for module in model.modules())
        assert not any("_old_forward" in vars(module) for module in model.modules())
        raise StopIteration

    monkeypatch.setattr(model_loader, "remove_hook_from_module", watched)
    devices = [torch.device("meta"), CPU]
    with pytest.raises(StopIteration):
        load_model(
            str(tiny_llama), device=devices[0], further_devices=devices[1:], dtype=torch.float32
        )
    assert seen == [True]


def test_more_devices_than_layers_are_refused_before_weights_are_read(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_loader, "_read_weights", None)
    with pytest.raises(ConfigError, match=r"num_devices is 4; the model has 3 layers"):
        load_model(str(tiny_llama), device=CPU, further_devices=[CPU] * 3, dtype=torch.float32)


def test_engine_refuses_devices_and_shares_that_are_not_there(tiny_llama: Path) -> None:
    wrong = {
        "num_devices": ({"device": "cpu", "num_devices": 2}, r"num_devices is 2 and device 'cpu'"),
        "device_memory_share": (
            {"device": "cpu", "device_memory_share": 0.25},
            r"device_memory_share is 0\.25, and the device is 'cpu'",
        ),
    }
    for param, (options, expected) in wrong.items():
        with pytest.raises(ConfigError, match=expected) as caught:
            Engine(EngineConfig(model_name=str(tiny_llama), **options))
        assert caught.value.param == param
