"""Adapters over tiny models, made once per run, and engines that are checked and closed."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from latentmas_core.engine.engine import Engine
from tests.engine.engines import OpenEngine, assert_nothing_left, make_engine
from tests.lora.adapters import greedy_ids, lone_peft, make_adapter
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
