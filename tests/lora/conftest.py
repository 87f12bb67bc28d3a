"""Adapters over tiny models, made once per run, and engines that are checked and closed."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import torch

from latentmas_core.engine.engine import Engine
from latentmas_core.lora.base_model import BaseModel
from tests.engine.engines import OpenEngine, assert_nothing_left, make_engine
from tests.lora.adapters import greedy_ids, lone_peft, make_adapter
from tests.lora.merges import ATTENTION, RSLORA, Family, base_of
from tests.lora.speaking import NUM_TOKENS, PROMPT

RANKS = (1, 4, 8, 16, 33, 64)


@pytest.fixture(scope="session")
def llama_adapters(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> dict[int, Path]:
    """One adapter per rank for ``tiny_llama``, all of them about equally strong."""
    folder = tmp_path_factory.mktemp("llama-adapters")
    return {
        rank: make_adapter(
            folder / f"rank-{rank}", tiny_llama, rank=rank, seed=rank, std=0.12 * rank**-0.5
        )
        for rank in RANKS
    }


@pytest.fixture
async def open_engine() -> AsyncIterator[OpenEngine]:
    """``make_engine``; at the end no turn holds anything, all counts add up, engines are closed."""
    engines: list[Engine] = []

    def open_one(model: Path, **overrides: object) -> Engine:
        engines.append(make_engine(model, **({"num_blocks": 2000} | overrides)))
        return engines[-1]

    yield open_one
    try:
        for engine in engines:
            await assert_nothing_left(engine)
    finally:
        for engine in engines:
            engine.close()


@pytest.fixture(scope="session")
def expected(tiny_llama: Path, llama_adapters: dict[int, Path]) -> dict[str, tuple[int, ...]]:
    """What each adapter says to ``PROMPT``, by a lone PEFT model."""
    return {
        str(rank): greedy_ids(lone_peft(tiny_llama, folder), PROMPT, NUM_TOKENS)
        for rank, folder in llama_adapters.items()
    }


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Matrices of this size only wait for a second one."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def base(tiny_llama: Path) -> BaseModel:
    return base_of(tiny_llama)


@pytest.fixture(scope="module")
def equal(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Family:
    """Of one rank, each with another scaling."""
    folder = tmp_path_factory.mktemp("equal")
    return tuple(
        make_adapter(folder / str(x), tiny_llama, rank=8, seed=x, std=0.03, lora_alpha=alpha)
        for x, alpha in enumerate((16, 8, 4))
    )


@pytest.fixture(scope="module")
def unequal(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Family:
    """Of three ranks, one with rsLoRA, one that lacks some targets.

    Weak ones: with stronger ones the logits of PEFT's own svd, computed in fp32, are more than 1e-5
    from those of fp64.
    """
    folder = tmp_path_factory.mktemp("unequal")
    return (
        make_adapter(folder / "4", tiny_llama, rank=4, seed=1, std=0.02),
        make_adapter(folder / "1", tiny_llama, rank=1, seed=2, std=0.02, targets=ATTENTION),
        make_adapter(folder / "16", tiny_llama, rank=16, seed=3, std=0.02, **RSLORA),
    )
