"""Weights in 4 and 8 bits: smaller, told apart, and not confused by their neighbours."""

import asyncio
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from latentmas_core.engine.fused import PlainDecoder
from latentmas_core.engine.model_loader import load_model
from latentmas_core.errors import ConfigError, ModelError
from latentmas_core.system import LatentMASSystem
from tests.engine.engines import CPU, OpenEngine
from tests.engine.turns import create_turn, think

KINDS = ("4bit", "8bit")


@pytest.mark.parametrize("kind", KINDS)
async def test_quantised_model_thinks_and_speaks(
    open_engine: OpenEngine, tiny_llama: Path, kind: str
) -> None:
    engine = open_engine(tiny_llama, quantization=kind)
    assert isinstance(engine.stepper.runner._decoder, PlainDecoder)
    memory = await think(engine)
    done = await engine.complete(create_turn("Go on.", max_tokens=8, memory=memory))
    assert len(done.output_ids) == 8
    await engine.release(memory)


@pytest.mark.parametrize("kind", KINDS)
async def test_rows_do_not_depend_on_their_neighbours(
    open_engine: OpenEngine, tiny_qwen2: Path, kind: str
) -> None:
    engine = open_engine(tiny_qwen2, quantization=kind)
    prompts = [f"Question number {number}" * (1 + number % 3) for number in range(9)]
    turns = [create_turn(prompt, max_tokens=10) for prompt in prompts]
    together = await asyncio.gather(*(engine.complete(turn) for turn in turns))
    for turn, done in zip(turns, together, strict=True):
        assert (await engine.complete(turn)).output_ids == done.output_ids


def load(model: Path, kind: Any = None) -> Any:
    return load_model(str(model), device=CPU, dtype=torch.float32, quantization=kind)


def test_each_kind_has_a_fingerprint_of_its_own_and_takes_less_memory(tiny_llama: Path) -> None:
    plain, *quantised = [load(tiny_llama, kind) for kind in (None, *KINDS)]
    assert len({loaded.fingerprint for loaded in (plain, *quantised)}) == 3
    sizes = [num_bytes_of_layers(loaded.model) for loaded in (plain, *quantised)]
    assert sizes[0] > 3 * sizes[2] > 4 * sizes[1]
    assert load(tiny_llama, "4bit").fingerprint == quantised[0].fingerprint
    for loaded in quantised:
        assert type(loaded.model.lm_head) is torch.nn.Linear
        assert loaded.model.dtype is torch.float32


def num_bytes_of_layers(model: Any) -> int:
    return sum(parameter.nbytes for parameter in model.model.layers.parameters())


def test_4_bits_in_float32_are_multiplied_in_float32(tiny_llama: Path) -> None:
    layer = load(tiny_llama, "4bit").model.model.layers[0].self_attn.q_proj
    from bitsandbytes.functional import dequantize_4bit

    weight = dequantize_4bit(layer.weight.data.clone(), layer.weight.quant_state)
    x = torch.randn(5, 64)
    for num_rows in (1, 5):
        y = layer(x[:num_rows])
        torch.testing.assert_close(y, x[:num_rows] @ weight.T, atol=1e-5, rtol=0)


def test_missing_library_is_named_with_the_extra(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"latentmas\[quant\]") as refused:
        load(tiny_llama, "4bit")
    assert refused.value.param == "quantization"


def test_weights_that_are_quantised_already_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    load(tiny_llama, "4bit").model.save_pretrained(tmp_path)
    load(tiny_llama).tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="quantised already"):
        load(tmp_path, "8bit")


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="3bit") as refused:
        LatentMASSystem(quantization="3bit")
    assert refused.value.param == "quantization"
