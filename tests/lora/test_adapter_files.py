"""Adapters that left host memory are read again from their files, which may be lost by then."""

import asyncio
import shutil
from pathlib import Path

import pytest

from latentmas_core.errors import AdapterError
from tests.engine.engines import OpenEngine
from tests.lora.adapters import make_adapter
from tests.lora.speaking import load_all, speak


@pytest.mark.parametrize("damage", ["gone", "changed", "truncated"])
async def test_files_that_are_lost_fail_their_own_requests_alone(
    open_engine: OpenEngine,
    tiny_llama: Path,
    llama_adapters: dict[int, Path],
    expected: dict[str, tuple[int, ...]],
    tmp_path: Path,
    damage: str,
) -> None:
    engine = open_engine(tiny_llama, lora={"max_loaded_adapters": 1, "max_cpu_adapters": 1})
    folder = Path(shutil.copytree(llama_adapters[8], tmp_path / "8"))
    await engine.load_adapter("8", folder)
    await engine.load_adapter("4", llama_adapters[4])  # 8 leaves host memory
    weights = folder / "adapter_model.safetensors"
    if damage == "gone":
        shutil.rmtree(folder)
    elif damage == "changed":
        shutil.copy(
            make_adapter(tmp_path / "other", tiny_llama, rank=8, seed=99) / weights.name, weights
        )
    else:
        weights.write_bytes(weights.read_bytes()[:-8])
    answers = await asyncio.gather(
        speak(engine, "8"), speak(engine, "4"), speak(engine, "8"), return_exceptions=True
    )
    assert answers[1] == expected["4"]
    assert all(isinstance(answer, AdapterError) for answer in (answers[0], answers[2]))
    assert (await engine.stats()).adapters.num_loading == 0


async def test_adapter_that_is_read_again_from_disk_is_the_same(
    open_engine: OpenEngine,
    tiny_llama: Path,
    llama_adapters: dict[int, Path],
    expected: dict[str, tuple[int, ...]],
) -> None:
    engine = open_engine(tiny_llama, lora={"max_loaded_adapters": 2, "max_cpu_adapters": 1})
    names = await load_all(engine, llama_adapters)
    answers = await asyncio.gather(*(speak(engine, name) for name in names * 2))
    assert answers == [expected[name] for name in names * 2]
    assert (await engine.stats()).adapters.num_on_host == 1


async def test_files_are_read_again_from_where_they_were_found_last(
    open_engine: OpenEngine,
    tiny_llama: Path,
    llama_adapters: dict[int, Path],
    expected: dict[str, tuple[int, ...]],
    tmp_path: Path,
) -> None:
    """By the same name, by another that is gone again, and by the one that is left."""
    engine = open_engine(tiny_llama, lora={"max_loaded_adapters": 1, "max_cpu_adapters": 1})
    copies = [shutil.copytree(llama_adapters[8], tmp_path / name) for name in ("a", "b", "c")]
    await engine.load_adapter("4", llama_adapters[4])
    for name, folder in (("8", copies[0]), ("8", copies[1]), ("other", copies[2])):
        await engine.load_adapter(name, folder)
    await engine.unload_adapter("other")
    for folder in (copies[0], copies[2]):
        shutil.rmtree(folder)
    for name in ("4", "8", "4", "8"):
        assert await speak(engine, name) == expected[name]


async def test_adapter_that_is_pinned_later_is_not_read_from_disk(
    open_engine: OpenEngine, tiny_llama: Path, llama_adapters: dict[int, Path]
) -> None:
    engine = open_engine(tiny_llama, lora={"max_loaded_adapters": 2, "max_cpu_adapters": 1})
    await engine.load_adapter("8", llama_adapters[8])
    await engine.load_adapter("4", llama_adapters[4])  # 8 leaves host memory
    reads: list[str] = []
    loader = engine.stepper.loader
    read_again = loader._read_again
    loader._read_again = lambda spec: (reads.append(spec.name), read_again(spec))[1]
    await engine.load_adapter("8", llama_adapters[8], is_pinned=True)
    assert await speak(engine, "8")
    assert reads == []
