"""Adapters on quantised bases, beside PEFT on the same quantised base."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from latentmas_core.engine.engine import Engine
from latentmas_core.engine.model_loader import load_model
from tests.engine.engines import CPU, OpenEngine
from tests.engine.turns import create_turn
from tests.lora.adapters import make_adapter, mix_of
from tests.lora.test_engine_parity import logits, logits_of  # noqa: F401 - a fixture

NUM_POSITIONS = 200
MAX_ERROR = 1e-2
MIN_SAME = 0.95


def quantised_peft(model: Path, kind: Any, adapter: Path) -> Any:
    base = load_model(str(model), device=CPU, dtype=torch.float32, quantization=kind).model
    return PeftModel.from_pretrained(base, adapter).eval()


async def speak(engine: Engine, prompt: tuple[int, ...], *names: str) -> tuple[int, ...]:
    turn = create_turn(prompt, max_tokens=NUM_POSITIONS, adapters=mix_of(engine, *names))
    return (await engine.complete(turn)).output_ids


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["4bit", "8bit"])
async def test_embedded_model_says_what_peft_says(
    open_engine: OpenEngine,
    embedded_model_path: Path,
    tmp_path: Path,
    logits: list[torch.Tensor],  # noqa: F811
    kind: str,
) -> None:
    """Logits too in 4 bits. In 8 bits inputs are rounded as well, and what differs in the last
    digit of fp32 may be rounded the other way: logits then differ by up to 4 of 40."""
    adapter = make_adapter(tmp_path / "a", embedded_model_path, rank=16, std=0.02)
    engine = open_engine(embedded_model_path, num_blocks=200, block_size=16, quantization=kind)
    await engine.load_adapter("a", adapter)
    prompt = tuple(engine.tokenizer("The history of France begins")["input_ids"])
    output_ids = await speak(engine, prompt, "a")
    expected = logits_of(quantised_peft(embedded_model_path, kind, adapter), prompt, output_ids)
    if kind == "4bit":
        assert (torch.stack(logits) - expected).abs().max() <= MAX_ERROR
    same = (expected.argmax(-1) == torch.tensor(output_ids)).float().mean()
    assert same >= MIN_SAME


@pytest.mark.parametrize("rank", [8, 33])
async def test_4bit_rows_of_an_adapter_and_of_the_base_in_one_batch(
    open_engine: OpenEngine,
    tiny_qwen2: Path,
    tmp_path: Path,
    logits: list[torch.Tensor],  # noqa: F811
    rank: int,
) -> None:
    adapter = make_adapter(tmp_path / "a", tiny_qwen2, rank=rank, std=0.12 * rank**-0.5)
    engine = open_engine(tiny_qwen2, quantization="4bit")
    await engine.load_adapter("a", adapter)
    prompt = tuple(b"The quick brown fox")
    alone = {names: await speak(engine, prompt, *names) for names in ((), ("a",))}
    expected = logits_of(quantised_peft(tiny_qwen2, "4bit", adapter), prompt, alone["a",])
    assert (torch.stack(logits[-NUM_POSITIONS:]) - expected).abs().max() <= MAX_ERROR
    assert alone[()] != alone["a",]
    names = [(), ("a",), (), ("a",), ("a",)]
    together = await asyncio.gather(*(speak(engine, prompt, *chosen) for chosen in names))
    assert together == [alone[chosen] for chosen in names]
