"""Whole pipelines whose agents have different adapters say what PEFT says, switched by hand."""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator
from contextlib import nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

from benchmarks.baselines.plain import PlainLatentMAS, PlainMemory, merge_reused
from latentmas_core import EngineConfig, LatentMASSystem
from latentmas_core.engine.engine import Engine
from latentmas_core.engine.turn import Turn, TurnDone, TurnEvent
from latentmas_core.lora.mix import AdapterMix
from latentmas_core.result import Result
from tests.factories import make_tiny_model
from tests.lora.adapters import lone_peft, make_adapter

NUM_ADAPTERS, NUM_PLACES, NUM_REQUESTS = 24, 20, 200
RANKS = (4, 8, 16, 33)
STEPS, NUM_TOKENS = 2, 8
MAX_GAP = 1e-3  # between the two likeliest tokens: within it rounding decides
AGENTS = {
    "single": ("judger",),
    "hierarchical": ("planner", "critic", "refiner", "judger"),
    "parallel": ("medical", "math", "coder", "judger"),
}

Turns = dict[str, tuple[Turn, TurnDone]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    return make_tiny_model(folder, "qwen2", max_position_embeddings=8192)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, model: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    names = [f"a{number}" for number in range(NUM_ADAPTERS)]
    return {
        name: make_adapter(folder / name, model, rank=rank, seed=seed, std=0.2 * rank**-0.5)
        for seed, (name, rank) in enumerate(zip(names, RANKS * 6, strict=True))
    }


@pytest.fixture(scope="module")
def system(model: Path, folders: dict[str, Path]) -> Iterator[LatentMASSystem]:
    config = EngineConfig(dtype="float32", kv_cache_bytes=2**28, max_waiting_seqs=10_000)
    with LatentMASSystem(
        str(model),
        device="cpu",
        latent_steps=STEPS,
        max_loaded_adapters=NUM_PLACES,
        engine_config=config,
    ) as system:
        system.add_default_agents()
        for name, folder in folders.items():
            system.load_external_lora(name, folder)
        yield system


class Oracle:
    """PEFT with all adapters, one at a time, in the plain loop: one request after the other."""

    def __init__(self, model: Path, folders: dict[str, Path]) -> None:
        first, *others = folders
        self._peft = lone_peft(model, folders[first], name=first)
        for name in others:
            self._peft.load_adapter(folders[name], name)
        self._plain = PlainLatentMAS(self._peft.get_base_model())

    def assert_said(self, kind: str, turns: Turns, adapters: dict[str, str]) -> None:
        *thinkers, speaker = AGENTS[kind]
        memory: PlainMemory | None = None
        if kind == "parallel":
            memory = merge_reused([self._think(a, turns, adapters, None) for a in thinkers])
        else:
            for agent in thinkers:
                memory = self._think(agent, turns, adapters, memory)
        turn, done = turns[speaker]
        prompt = list(turn.prompt_ids)
        with self._adapter(adapters[speaker]):
            said = self._plain.speak(prompt, memory, max_tokens=NUM_TOKENS)
            for place, (ours, theirs) in enumerate(zip(done.output_ids, said, strict=True)):
                if ours != theirs:
                    logits = self._plain.logits(prompt + said[:place], memory)
                    gap = (logits[theirs] - logits[ours]).item()
                    assert gap < MAX_GAP, f"{kind}, {adapters}: {done.output_ids} != {said}"
                    return  # from here on they speak of different things

    def _think(
        self,
        agent: str,
        turns: Turns,
        adapters: dict[str, str],
        memory: PlainMemory | None,
    ) -> PlainMemory:
        with self._adapter(adapters[agent]):
            prompt = list(turns[agent][0].prompt_ids)
            return self._plain.think(prompt, memory, latent_steps=STEPS).memory

    def _adapter(self, name: str) -> Any:
        if name == "base":
            return self._peft.disable_adapter()
        self._peft.set_adapter(name)
        return nullcontext()


@pytest.fixture
def turns(system: LatentMASSystem, monkeypatch: pytest.MonkeyPatch) -> defaultdict[int, Turns]:
    """What the engine was asked and what it answered, by the number of the request and agent."""
    seen: defaultdict[int, Turns] = defaultdict(dict)
    run = system._engine.run

    async def spy(turn: Turn) -> AsyncGenerator[TurnEvent, None]:
        async for event in run(turn):
            if isinstance(event, TurnDone):
                seen[number_of_request.get()][turn.agent] = turn, event
            yield event

    monkeypatch.setattr(system._engine, "run", spy)
    return seen


number_of_request: ContextVar[int] = ContextVar("number_of_request")


async def ask(system: LatentMASSystem, number: int, kind: str, adapters: dict[str, str]) -> Result:
    number_of_request.set(number)
    pipeline = {"mode": "single"} if kind == "single" else {"pipeline": kind}
    return await system.arun(
        f"What is {number} times {number + 3}?",
        adapters=adapters,
        temperature=0.0,
        max_tokens=NUM_TOKENS,
        ignore_eos=True,
        **pipeline,
    )


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
async def test_200_requests_over_24_adapters_with_20_places_say_what_peft_says(
    system: LatentMASSystem,
    model: Path,
    folders: dict[str, Path],
    turns: defaultdict[int, Turns],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Evicted is always the adapter that was used longest ago; all counts add up."""
    engine = system._engine
    assert isinstance(engine, Engine)
    check_eviction_order(engine, monkeypatch)
    dice = random.Random(3)
    kinds = [dice.choice(list(AGENTS)) for _ in range(NUM_REQUESTS)]
    chosen = [{agent: dice.choice([*folders, "base"]) for agent in AGENTS[kind]} for kind in kinds]
    results = await asyncio.gather(
        *(ask(system, *one) for one in zip(range(NUM_REQUESTS), kinds, chosen, strict=True))
    )
    await engine.check_integrity()
    stats = await engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_memories) == (0, 0, 0)
    assert stats.num_used_blocks == stats.adapters.num_blocks
    assert stats.adapters.num_loaded == NUM_PLACES
    assert stats.adapters.num_evictions_total >= NUM_ADAPTERS - NUM_PLACES
    assert stats.adapters.num_loads_total == NUM_PLACES + stats.adapters.num_evictions_total
    digests = {spec.name: spec.digest for spec, _ in await engine.adapters()}
    oracle = Oracle(model, folders)
    for number, (result, kind, adapters) in enumerate(zip(results, kinds, chosen, strict=True)):
        assert {agent.name: agent.adapter for agent in result.agents} == adapters
        assert {agent.name: agent.adapter_digest for agent in result.agents} == {
            agent: digests.get(name) for agent, name in adapters.items()
        }
        oracle.assert_said(kind, turns[number], adapters)
    assert len({result.final_answer for result in results}) > NUM_REQUESTS / 2


def check_eviction_order(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever one is evicted, every other idle adapter that may go was used later."""
    cache = engine.stepper.adapters
    clock = iter(range(10**9))
    used: dict[str, int] = {}
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
