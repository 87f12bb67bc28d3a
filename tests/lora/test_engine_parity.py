"""Every row of a mixed step is what a lone PEFT model with that adapter computes."""

import asyncio
from pathlib import Path

import pytest

from latentmas_core.engine.engine import Engine
from latentmas_core.lora.mix import AdapterMix, AdapterUse
from tests.engine.engines import OpenEngine
from tests.engine.turns import create_turn
from tests.lora.adapters import greedy_ids, lone_peft
from tests.lora.conftest import RANKS

PROMPT = tuple(b"The quick brown fox jumps over the lazy dog.")
NUM_TOKENS = 12


async def speak(engine: Engine, *names: str, prompt: tuple[int, ...] = PROMPT) -> tuple[int, ...]:
    mix = AdapterMix(tuple(AdapterUse(engine.adapter(name).digest) for name in names))
    done = await engine.complete(create_turn(prompt, max_tokens=NUM_TOKENS, adapters=mix))
    return done.output_ids


@pytest.mark.parametrize("rank", RANKS)
async def test_answer_is_that_of_a_lone_peft_model(
    open_engine: OpenEngine, tiny_llama: Path, llama_adapters: dict[int, Path], rank: int
) -> None:
    engine = open_engine(tiny_llama)
    await engine.load_adapter("one", llama_adapters[rank])
    expected = greedy_ids(lone_peft(tiny_llama, llama_adapters[rank]), PROMPT, NUM_TOKENS)
    assert await speak(engine, "one") == expected


async def test_adapters_of_all_ranks_and_the_base_share_every_step(
    open_engine: OpenEngine, tiny_llama: Path, llama_adapters: dict[int, Path]
) -> None:
    engine = open_engine(tiny_llama)
    alone = open_engine(tiny_llama)
    base = await speak(alone)
    for rank, folder in llama_adapters.items():
        await engine.load_adapter(str(rank), folder)
    names = [(), *((str(rank),) for rank in RANKS), (), ("8",)]
    answers = await asyncio.gather(*(speak(engine, *chosen) for chosen in names))
    for chosen, answer in zip(names, answers, strict=True):
        expected = base
        if chosen:
            peft = lone_peft(tiny_llama, llama_adapters[int(chosen[0])])
            expected = greedy_ids(peft, PROMPT, NUM_TOKENS)
        assert answer == expected, f"adapters {chosen}"
