"""Turns over adapters that come and go at random: every answer is right, all counts add up."""

import asyncio
import random
from pathlib import Path

from latentmas_core.errors import AdapterError, NotFoundError
from tests.engine.engines import OpenEngine
from tests.lora.conftest import RANKS
from tests.lora.speaking import speak


async def test_random_loads_unloads_turns_and_cancellations_add_up(
    open_engine: OpenEngine,
    tiny_llama: Path,
    llama_adapters: dict[int, Path],
    expected: dict[str, tuple[int, ...]],
) -> None:
    """Against a reference of which names are loaded; every answer is the right adapter's."""
    engine = open_engine(tiny_llama, num_blocks=900, lora={"max_loaded_adapters": 3})
    dice = random.Random(20)
    known: set[str] = set()
    turns: list[asyncio.Task[tuple[int, ...]]] = []
    asked: dict[asyncio.Task[tuple[int, ...]], str] = {}
    for _ in range(250):
        name = str(dice.choice(RANKS))
        match dice.choice(["load", "speak", "speak", "speak", "unload", "cancel", "wait"]):
            case "load":
                await engine.load_adapter(name, llama_adapters[int(name)])
                known.add(name)
            case "unload" if name in known:
                await engine.unload_adapter(name)
                known.discard(name)
            case "speak" if name in known:
                turns.append(asyncio.create_task(speak(engine, name)))
                asked[turns[-1]] = name
            case "cancel" if turns:
                turns.pop(dice.randrange(len(turns))).cancel()
            case "wait" if turns:
                await asyncio.wait([turns.pop(0)])
        assert {spec.name for spec, _ in await engine.adapters()} == known
        await engine.check_integrity()
    await asyncio.wait(asked)
    num_right = 0
    for turn, name in asked.items():
        if turn.cancelled():
            continue
        error = turn.exception()
        if error is None:
            assert turn.result() == expected[name]
            num_right += 1
        else:  # it was unloaded before the turn could name it, or before the engine had the turn
            assert isinstance(error, NotFoundError | AdapterError), error
            assert f"{name!r} is not loaded" in str(error) or "was unloaded" in str(error), error
    assert num_right > 30
    adapters = engine.stepper.adapters._adapters.values()
    assert all(a.num_refs == a.num_holds == 0 for a in adapters)
