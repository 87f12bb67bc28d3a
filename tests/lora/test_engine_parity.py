"""Every row of a mixed step is what a lone PEFT model with that adapter computes."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from latentmas_core.engine import fused, model_runner
from latentmas_core.engine.engine import Engine
from tests.engine.engines import OpenEngine
from tests.engine.turns import create_turn
from tests.lora.adapters import ALL_TARGETS, greedy_ids, lone_peft, make_adapter, mix_of
from tests.lora.conftest import RANKS

PROMPT = tuple(b"The quick brown fox jumps over the lazy dog.")
NUM_TOKENS = 12
ATOL = 1e-5

TARGETS = {
    "all": ALL_TARGETS,
    "q, v": ("q_proj", "v_proj"),
    "k": ("k_proj",),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
    "o, up": ("o_proj", "up_proj"),
}


@pytest.fixture(params=["fused", "plain"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which of the two decoders the engine takes."""
    if request.param == "plain":
        monkeypatch.setattr(fused, "can_fuse", lambda _: False)
    return str(request.param)


@pytest.fixture
def logits(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """All rows of logits that tokens were chosen from, in order: [vocab_size] each."""
    seen: list[torch.Tensor] = []
    choose = model_runner.choose_tokens

    def record(rows: torch.Tensor, choosers: Any) -> list[int]:
        seen.extend(rows.clone())
        return choose(rows, choosers)

    monkeypatch.setattr(model_runner, "choose_tokens", record)
    return seen


async def speak(
    engine: Engine, *names: str, prompt: tuple[int, ...] = PROMPT, num_tokens: int = NUM_TOKENS
) -> tuple[int, ...]:
    turn = create_turn(prompt, max_tokens=num_tokens, adapters=mix_of(engine, *names))
    return (await engine.complete(turn)).output_ids


def logits_of(model: Any, prompt: tuple[int, ...], output_ids: tuple[int, ...]) -> torch.Tensor:
    """What the model says where each of the outputs was chosen: [num_outputs, vocab_size]."""
    ids = torch.tensor([[*prompt, *output_ids[:-1]]])
    with torch.inference_mode():
        rows: torch.Tensor = model(input_ids=ids).logits[0, len(prompt) - 1 :]
    return rows


@pytest.mark.parametrize("rank", RANKS)
async def test_logits_are_those_of_a_lone_peft_model(
    open_engine: OpenEngine,
    tiny_llama: Path,
    llama_adapters: dict[int, Path],
    logits: list[torch.Tensor],
    decoder: str,
    rank: int,
) -> None:
    engine = open_engine(tiny_llama)
    await engine.load_adapter("one", llama_adapters[rank])
    output_ids = await speak(engine, "one")
    peft = lone_peft(tiny_llama, llama_adapters[rank])
    expected = logits_of(peft, PROMPT, output_ids)
    assert_close(torch.stack(logits), expected, atol=ATOL, rtol=0)
    assert output_ids == greedy_ids(peft, PROMPT, NUM_TOKENS)


@pytest.mark.parametrize("is_rslora", [False, True], ids=["plain", "rslora"])
@pytest.mark.parametrize("family", ["tiny_llama", "tiny_qwen2", "tiny_qwen3"])
@pytest.mark.parametrize("targets", TARGETS)
async def test_targets_scalings_and_families(
    open_engine: OpenEngine,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    logits: list[torch.Tensor],
    family: str,
    targets: str,
    is_rslora: bool,
) -> None:
    model: Path = request.getfixturevalue(family)
    # rsLoRA scales by 1 / sqrt(rank): with the same numbers answers would be all but one token.
    adapter = make_adapter(
        tmp_path / "a",
        model,
        rank=5,
        targets=TARGETS[targets],
        use_rslora=is_rslora,
        std=0.05 if is_rslora else 0.1,
    )
    engine = open_engine(model)
    await engine.load_adapter("one", adapter)
    output_ids = await speak(engine, "one")
    expected = logits_of(lone_peft(model, adapter), PROMPT, output_ids)
    assert_close(torch.stack(logits), expected, atol=ATOL, rtol=0)
    assert not torch.allclose(expected, await base_logits(engine, logits, output_ids), atol=0.1)


async def base_logits(
    engine: Engine, logits: list[torch.Tensor], output_ids: tuple[int, ...]
) -> torch.Tensor:
    """What the base says in the same places."""
    logits.clear()
    for end in range(len(output_ids)):
        await speak(engine, prompt=(*PROMPT, *output_ids[:end]), num_tokens=1)
    return torch.stack(logits)


async def test_adapters_of_all_ranks_and_the_base_share_every_step(
    open_engine: OpenEngine, tiny_llama: Path, llama_adapters: dict[int, Path], decoder: str
) -> None:
    engine = open_engine(tiny_llama)
    base = await speak(open_engine(tiny_llama))
    expected = {(): base}
    for rank, folder in llama_adapters.items():
        await engine.load_adapter(str(rank), folder)
        expected[str(rank),] = greedy_ids(lone_peft(tiny_llama, folder), PROMPT, NUM_TOKENS)
    assert len(set(expected.values())) > len(RANKS) / 2, "adapters that change little"
    names = [(), *((str(rank),) for rank in RANKS), (), ("8",), ("33",)]
    answers = await asyncio.gather(*(speak(engine, *chosen) for chosen in names))
    assert answers == [expected[chosen] for chosen in names]


@pytest.mark.parametrize(
    "pattern", ["identical", "distinct", "uniform", "zipf", "skewed", "base only"]
)
async def test_patterns_of_batches(
    open_engine: OpenEngine, tiny_llama: Path, llama_adapters: dict[int, Path], pattern: str
) -> None:
    """Prompts of different lengths, so that chunks and single rows meet in one step."""
    engine = open_engine(tiny_llama, max_num_batched_tokens=64)
    for rank, folder in llama_adapters.items():
        await engine.load_adapter(str(rank), folder)
    names = {
        "identical": ["8"] * 9,
        "distinct": [str(rank) for rank in RANKS],
        "uniform": [str(rank) for rank in RANKS] * 2,
        "zipf": [str(rank) for n, rank in enumerate(RANKS, start=1) for _ in range(6 // n)],
        "skewed": ["8"] * 6 + ["1", "64", "base"],
        "base only": ["base"] * 4,
    }[pattern]
    prompts = [PROMPT[: 5 + 7 * index % 37] for index in range(len(names))]
    answers = await asyncio.gather(
        *(
            speak(engine, *([name] if name != "base" else []), prompt=prompt)
            for name, prompt in zip(names, prompts, strict=True)
        )
    )
    pefts = {name: lone_peft(tiny_llama, llama_adapters[int(name)]) for name in {*names} - {"base"}}
    for name, prompt, answer in zip(names, prompts, answers, strict=True):
        if name == "base":
            assert answer == await speak(engine, prompt=prompt)
        else:
            assert answer == greedy_ids(pefts[name], prompt, NUM_TOKENS), name


async def test_base_rows_are_untouched_in_every_position_with_all_places_full(
    open_engine: OpenEngine,
    tiny_llama: Path,
    llama_adapters: dict[int, Path],
    logits: list[torch.Tensor],
    decoder: str,
) -> None:
    alone = open_engine(tiny_llama, lora={"max_loaded_adapters": 0})
    assert await speak(alone)
    expected = torch.stack(logits)
    engine = open_engine(tiny_llama, lora={"max_loaded_adapters": len(RANKS)})
    for rank, folder in llama_adapters.items():
        await engine.load_adapter(str(rank), folder, is_pinned=True)
    base = await speak(engine)
    for position in range(len(RANKS) + 1):
        names: list[tuple[str, ...]] = [(str(rank),) for rank in RANKS]
        names.insert(position, ())
        answers = await asyncio.gather(*(speak(engine, *chosen) for chosen in names))
        assert answers[position] == base
    logits.clear()
    await asyncio.gather(speak(engine), *(speak(engine, str(rank)) for rank in RANKS))
    # Which rows share a step depends on when each came: look for each row of the base among all.
    found = torch.stack(logits)
    distances = (found[:, None] - expected).abs().amax(dim=-1)
    assert distances.min(dim=0).values.max() <= ATOL


@pytest.mark.parametrize("rank", RANKS)
async def test_bfloat16_stays_within_its_own_rounding(
    open_engine: OpenEngine,
    tiny_llama: Path,
    llama_adapters: dict[int, Path],
    logits: list[torch.Tensor],
    rank: int,
) -> None:
    engine = open_engine(tiny_llama, dtype="bfloat16")
    await engine.load_adapter("one", llama_adapters[rank])
    output_ids = await speak(engine, "one")
    exact = logits_of(lone_peft(tiny_llama, llama_adapters[rank]), PROMPT, output_ids)
    peft = lone_peft(tiny_llama, llama_adapters[rank]).to(torch.bfloat16)
    rounding = (logits_of(peft, PROMPT, output_ids).float() - exact).abs().max()
    assert (torch.stack(logits).float() - exact).abs().max() < 2 * rounding


async def test_weighted_composition_is_pefts_cat(
    open_engine: OpenEngine,
    tiny_llama: Path,
    llama_adapters: dict[int, Path],
    logits: list[torch.Tensor],
) -> None:
    weights = {"8": 0.7, "33": -0.4, "1": 1.5}
    engine = open_engine(tiny_llama)
    peft = lone_peft(tiny_llama, llama_adapters[8], name="8")
    for name in weights:
        await engine.load_adapter(name, llama_adapters[int(name)])
        if name != "8":
            peft.load_adapter(llama_adapters[int(name)], name)
    # PEFT takes no negative weights for the two matrices apart, so the sign goes into one adapter.
    negate(peft, "33")
    peft.add_weighted_adapter(
        list(weights), [abs(w) for w in weights.values()], "mixed", combination_type="cat"
    )
    peft.set_adapter("mixed")
    turn = create_turn(PROMPT, max_tokens=NUM_TOKENS, adapters=mix_of(engine, **weights))
    output_ids = (await engine.complete(turn)).output_ids
    assert_close(torch.stack(logits), logits_of(peft, PROMPT, output_ids), atol=ATOL, rtol=0)


def negate(peft: Any, adapter: str) -> None:
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if f"lora_B.{adapter}." in name:
                parameter.neg_()


async def test_embedded_model_with_three_adapters_and_the_base(
    open_engine: OpenEngine, embedded_model_path: Path, tmp_path: Path
) -> None:
    adapters = {
        str(rank): make_adapter(
            tmp_path / str(rank), embedded_model_path, rank=rank, seed=rank, std=0.02
        )
        for rank in (4, 16, 33)
    }
    engine = open_engine(embedded_model_path, num_blocks=900, block_size=16)
    for name, folder in adapters.items():
        await engine.load_adapter(name, folder)
    names = [(), ("4",), ("16",), ("33",), ("4",)]
    prompt = tuple(engine.tokenizer("The capital of France is")["input_ids"])
    answers = await asyncio.gather(
        *(speak(engine, *chosen, prompt=prompt, num_tokens=6) for chosen in names)
    )
    for chosen, answer in zip(names[1:], answers[1:], strict=True):
        peft = lone_peft(embedded_model_path, adapters[chosen[0]])
        assert answer == greedy_ids(peft, prompt, 6), chosen
    assert answers[0] == await speak(engine, prompt=prompt, num_tokens=6)
