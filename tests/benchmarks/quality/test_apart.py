"""Agents apart on one engine: what is moved arrives, rounded once where that is asked for."""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.quality.apart import AgentsApart, MovingRunner
from benchmarks.quality.methods import EngineChoice
from benchmarks.quality.settings import Settings
from benchmarks.quality.systems import open_system
from latentmas_core import LatentMASSystem, Result
from latentmas_core.engine.engine import Engine
from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.latent.memory import Memory
from latentmas_core.latent.segment import SegmentTensors
from tests.engine.engines import assert_nothing_left, make_engine

OPTIONS = {"latent_steps": 2, "max_tokens": 4, "temperature": 0.0}


async def ask(engine: Engine, *, is_apart: bool, **options: Any) -> Result:
    with LatentMASSystem.from_engine(engine) as system:
        system.add_default_agents()
        asked = AgentsApart(system, engine) if is_apart else system
        result = await asked.arun("What is 1 + 2?", **OPTIONS | options)
    await assert_nothing_left(engine)
    return result


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"carry": "latents"},
        {"pipeline": "parallel", "merge": "reused"},
        {"pipeline": "parallel", "merge": "consecutive"},
        {"pipeline": "sequential", "carry": "latents"},
        {"pipeline": "auto"},
        {"mode": "text"},
        {"mode": "single"},
    ],
)
async def test_in_the_models_dtype_agents_apart_answer_as_those_that_share(
    tiny_qwen2: Path, options: dict[str, str]
) -> None:
    engine = make_engine(tiny_qwen2)
    try:
        together = await ask(engine, is_apart=False, **options)
        apart = await ask(engine, is_apart=True, **options)
    finally:
        engine.close()
    assert apart.final_answer == together.final_answer
    assert [agent.text for agent in apart.agents] == [agent.text for agent in together.agents]
    assert len(apart.stages) == len(apart.agents)


async def test_every_reader_gets_what_8_bits_made_of_a_thought_and_nothing_is_rounded_twice(
    tiny_qwen2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[dict[str, SegmentTensors]] = []
    load = Engine.load

    async def seen(
        engine: Engine, memory: Memory, tensors: dict[str, SegmentTensors]
    ) -> ResidentMemory:
        loaded.append(dict(tensors))
        return await load(engine, memory, tensors)

    monkeypatch.setattr(Engine, "load", seen)
    num_bytes = []
    for transfer_dtype in ("model", "int8"):
        engine = make_engine(tiny_qwen2, transfer_dtype=transfer_dtype)
        try:
            result = await ask(engine, is_apart=True)
        finally:
            engine.close()
        num_bytes.append(sum(stage.bytes_out for stage in result.stages))
    exact, rounded = loaded[:3], loaded[3:]
    assert [len(one) for one in rounded] == [1, 2, 3]
    (planner,) = exact[0]
    first, again = rounded[0][planner], rounded[2][planner]
    assert first is again
    kept = exact[0][planner]
    assert first.kv is not None
    assert kept.kv is not None
    assert torch.equal(first.latents, kept.latents)
    for actual, expected in ((first.kv.keys, kept.kv.keys), (first.kv.values, kept.kv.values)):
        assert 0 < (actual - expected).norm() < 0.01 * expected.norm()
    assert num_bytes[1] < 0.4 * num_bytes[0]  # of float32


async def test_a_run_that_is_given_up_leaves_nothing_behind(
    tiny_qwen2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object) -> ResidentMemory:
        raise RuntimeError("no room")

    monkeypatch.setattr(Engine, "load", fails)
    engine = make_engine(tiny_qwen2)
    try:
        with pytest.raises(RuntimeError, match="no room"):
            await ask(engine, is_apart=True)
        await assert_nothing_left(engine)
    finally:
        engine.close()


@pytest.mark.parametrize("transfer_dtype", ["model", "int8"])
async def test_a_method_in_8_bits_is_given_agents_that_are_apart(
    tiny_qwen2: Path, monkeypatch: pytest.MonkeyPatch, transfer_dtype: Any
) -> None:
    moved: list[int] = []
    move = MovingRunner._move

    async def counted(runner: MovingRunner, memory: ResidentMemory) -> tuple[ResidentMemory, int]:
        found = await move(runner, memory)
        moved.append(found[1])
        return found

    monkeypatch.setattr(MovingRunner, "_move", counted)
    settings = Settings(
        tasks=("sums",), model=str(tiny_qwen2), device="cpu", threads=torch.get_num_threads()
    )
    with open_system(settings, EngineChoice(transfer_dtype=transfer_dtype)) as system:
        result = await system.arun("What is 1 + 2?", **OPTIONS)
    assert len(result.agents) == 4
    assert len(moved) == (3 if transfer_dtype == "int8" else 0)
