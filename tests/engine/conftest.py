"""Fixtures of the engine's tests: engines that are closed behind every test."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from latentmas_core.engine.engine import Engine
from latentmas_core.engine.resident import ResidentMemory
from tests.engine.engines import OpenEngine, assert_nothing_left, make_engine
from tests.engine.turns import think


@pytest.fixture
async def open_engine() -> AsyncIterator[OpenEngine]:
    """``make_engine``; at the end of the test all engines hold nothing, add up, and are closed."""
    engines: list[Engine] = []

    def open_one(model: Path, **overrides: Any) -> Engine:
        engines.append(make_engine(model, **overrides))
        return engines[-1]

    yield open_one
    try:
        for engine in engines:
            await assert_nothing_left(engine)
    finally:
        for engine in engines:
            engine.close()


@pytest.fixture
def engine(open_engine: OpenEngine, tiny_llama: Path) -> Engine:
    return open_engine(tiny_llama)


@pytest.fixture
async def memory(engine: Engine) -> AsyncIterator[ResidentMemory]:
    """What a planner left, released behind the test."""
    planned = await think(engine)
    yield planned
    await engine.release(planned)
