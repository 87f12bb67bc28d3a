"""Many requests over many adapters, at random: every answer is right and all counts add up."""

import asyncio
import random
from pathlib import Path

import pytest

from latentmas_core.engine.engine import Engine
from latentmas_core.errors import LatentMASError
from latentmas_core.lora.mix import AdapterMix
from tests.engine.engines import OpenEngine
from tests.lora.adapters import greedy_ids, lone_peft, make_adapter
from tests.lora.conftest import RANKS
from tests.lora.speaking import NUM_TOKENS, PROMPT, speak


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
    for turn, name in asked.items():
        if not turn.cancelled() and not isinstance(turn.exception(), LatentMASError):
            assert turn.result() == expected[name]
    assert sum(not turn.cancelled() for turn in asked) > 30
    adapters = engine.stepper.adapters._adapters.values()
    assert all(a.num_refs == a.num_holds == 0 for a in adapters)


@pytest.mark.slow
async def test_200_requests_over_24_adapters_with_20_places(
    open_engine: OpenEngine, tiny_qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answer is a lone PEFT model's; evicted is always the one that was used longest ago."""
    ranks = [4, 8, 16, 33] * 6
    folders = {
        f"a{i}": make_adapter(
            tmp_path / f"a{i}", tiny_qwen2, rank=rank, seed=i, std=0.2 * rank**-0.5
        )
        for i, rank in enumerate(ranks)
    }
    engine = open_engine(tiny_qwen2, num_blocks=6000, lora={"max_loaded_adapters": 20})
    for name, folder in folders.items():
        await engine.load_adapter(name, folder)
    used: dict[str, int] = {}
    check_eviction_order(engine, used, monkeypatch)
    dice = random.Random(3)
    names = [dice.choice(list(folders)) for _ in range(200)]
    answers = await asyncio.gather(*(speak(engine, name) for name in names))
    expected = {
        name: greedy_ids(lone_peft(tiny_qwen2, folder), PROMPT, NUM_TOKENS)
        for name, folder in folders.items()
    }
    assert answers == [expected[name] for name in names]
    assert len(set(expected.values())) > 12
    stats = (await engine.stats()).adapters
    assert stats.num_loaded == 20
    assert stats.num_evictions_total >= 4
    assert stats.num_loads_total == 20 + stats.num_evictions_total


def check_eviction_order(
    engine: Engine, used: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever one is evicted, every other idle adapter that may go was used later."""
    cache = engine.stepper.adapters
    clock = iter(range(10**9))
    acquire, release, evict = cache.acquire, cache.release, cache._evict

    def note(mix: AdapterMix) -> None:
        used.update(dict.fromkeys(mix.digests, next(clock)))

    monkeypatch.setattr(cache, "acquire", lambda mix: (note(mix), acquire(mix))[1])
    monkeypatch.setattr(cache, "release", lambda mix: (note(mix), release(mix))[1])

    def check(adapter: object) -> None:
        digest = adapter.spec.digest  # type: ignore[attr-defined]
        others = [a.spec.digest for a in cache._idle() if a is not adapter and not a.is_claimed]
        assert all(used.get(digest, -1) <= used.get(other, -1) for other in others)
        evict(adapter)  # type: ignore[arg-type]

    monkeypatch.setattr(cache, "_evict", check)
