"""Weights in 4 and 8 bits: smaller, told apart, multiplied exactly, not confused by neighbours."""

import asyncio
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from latentmas_core.config import EngineConfig
from latentmas_core.engine import quantization
from latentmas_core.engine.attention import ATTENTION_NAME
from latentmas_core.engine.engine import Engine
from latentmas_core.engine.fused import PlainDecoder
from latentmas_core.engine.model_loader import LoadedModel, load_model
from latentmas_core.engine.self_check import reference_hidden, refuse_if_different
from latentmas_core.errors import ConfigError, ModelError
from latentmas_core.system import LatentMASSystem
from tests.engine.engines import CPU, OpenEngine, make_engine
from tests.engine.test_model_loader import copy_model
from tests.engine.turns import create_turn, think
from tests.factories import make_tiny_model

KINDS = ("4bit", "8bit")
ATOL = 1e-5


def load(
    model: Path, kind: Any = None, *, device: torch.device = CPU, dtype: torch.dtype = torch.float32
) -> LoadedModel:
    return load_model(str(model), device=device, dtype=dtype, quantization=kind)


def save(loaded: LoadedModel, folder: Path) -> Path:
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def embedded(request: pytest.FixtureRequest, embedded_model_path: Path) -> LoadedModel:
    return load(embedded_model_path, request.param)


# --- an engine over quantised weights ---------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
async def test_quantised_model_thinks_and_speaks(
    open_engine: OpenEngine, tiny_qwen3: Path, kind: str, dtype: str
) -> None:
    engine = open_engine(tiny_qwen3, quantization=kind, dtype=dtype)
    assert isinstance(engine.stepper.runner._decoder, PlainDecoder)
    assert engine.dtype is getattr(torch, dtype)
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


def test_rows_of_the_embedded_model_do_not_depend_on_their_neighbours(
    embedded: LoadedModel,
) -> None:
    """As bitsandbytes multiplies, logits change by 0.4 (4bit) and by 5 (8bit, threshold 6)."""
    model: Any = embedded.model
    ids = torch.randint(1000, 40000, (3, 24), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        together = model(input_ids=ids).logits
        alone = model(input_ids=ids[:1]).logits
        begun = model(input_ids=ids[:1, :5]).logits
    assert_close(together[:1], alone, atol=1e-3, rtol=0)
    assert_close(begun, alone[:, :5], atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_engine_loads_what_its_config_says(tiny_llama: Path, kind: Any) -> None:
    config = EngineConfig(
        model_name=str(tiny_llama), device="cpu", quantization=kind, kv_cache_bytes=10**6
    )
    with Engine(config) as engine:
        assert engine.fingerprint == load(tiny_llama, kind).fingerprint


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
async def test_quantised_model_speaks_on_a_card(tiny_qwen2: Path, kind: Any) -> None:
    loaded = load(tiny_qwen2, kind, device=torch.device("cuda", 0))
    assert loaded.model.device == torch.device("cuda", 0)
    config = EngineConfig(
        model_name=str(tiny_qwen2), device="cuda", dtype="float32", kv_cache_bytes=10**7
    )
    with Engine(config, loaded) as engine:
        on_card = await engine.complete(create_turn(max_tokens=8))
    with make_engine(tiny_qwen2, quantization=kind) as engine:
        assert (await engine.complete(create_turn(max_tokens=8))).output_ids == on_card.output_ids


# --- what is kept, and how it is multiplied ---------------------------------------------------


def test_each_kind_has_a_fingerprint_of_its_own_and_takes_less_memory(tiny_qwen2: Path) -> None:
    plain, *quantised = [load(tiny_qwen2, kind) for kind in (None, *KINDS)]
    assert len({loaded.fingerprint for loaded in (plain, *quantised)}) == 3
    sizes = [num_bytes_of_projections(loaded.model) for loaded in (plain, *quantised)]
    assert sizes == [sizes[0], sizes[0] // 8, sizes[0] // 4]
    for kind, loaded in zip(KINDS, quantised, strict=True):
        assert load(tiny_qwen2, kind).fingerprint == loaded.fingerprint


def num_bytes_of_projections(model: Any) -> int:
    parameters = model.model.layers.named_parameters()
    return sum(parameter.nbytes for name, parameter in parameters if name.endswith("proj.weight"))


@pytest.mark.parametrize("kind", KINDS)
def test_head_embeddings_and_norms_stay_as_they_are(tiny_qwen2: Path, kind: str) -> None:
    plain, model = load(tiny_qwen2).model, load(tiny_qwen2, kind).model
    assert type(model.lm_head) is nn.Linear
    assert model.dtype is torch.float32
    kept = {name: x for name, x in model.named_parameters() if x.is_floating_point()}
    originals = dict(plain.named_parameters())
    assert originals.keys() - kept.keys() == {x for x in originals if x.endswith("proj.weight")}
    for name, parameter in kept.items():
        assert torch.equal(parameter, originals[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_4_bits_are_multiplied_in_the_dtype_of_the_model(
    tiny_llama: Path, dtype: torch.dtype
) -> None:
    layer = load(tiny_llama, "4bit", dtype=dtype).model.model.layers[0].self_attn.q_proj
    from bitsandbytes.functional import dequantize_4bit

    weight = dequantize_4bit(layer.weight.data.clone(), layer.weight.quant_state)
    x = torch.randn(5, 64, dtype=dtype)
    with torch.inference_mode():
        for num_rows in (1, 5):
            assert_close(layer(x[:num_rows]), x[:num_rows] @ weight.T)


@pytest.mark.parametrize("num_at_a_time", [1024, 24])
def test_8_bits_are_multiplied_with_unrounded_inputs(
    tiny_qwen2: Path, monkeypatch: pytest.MonkeyPatch, num_at_a_time: int
) -> None:
    monkeypatch.setattr(quantization, "NUM_WIDENED_OUTPUTS", num_at_a_time)
    layer = load(tiny_qwen2, "8bit").model.model.layers[0].self_attn.q_proj
    weight = layer.weight.data * (layer.weight.SCB[:, None] / 127)
    x = torch.randn(2, 5, 64)
    with torch.inference_mode():
        assert_close(layer(x), x @ weight.T + layer.bias, atol=ATOL, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_fingerprint_differs_where_only_the_scales_do(
    tiny_llama: Path, tmp_path: Path, kind: str
) -> None:
    folder = copy_model(tiny_llama, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] *= 2
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load(folder, kind).fingerprint != load(tiny_llama, kind).fingerprint


def test_loading_and_running_say_nothing(tiny_llama: Path) -> None:
    """In a process of its own: bitsandbytes speaks when it is imported."""
    script = (
        "import sys, torch\n"
        "from latentmas_core.engine.model_loader import load_model\n"
        "for kind in ('4bit', '8bit'):\n"
        "    loaded = load_model(sys.argv[1], device=torch.device('cpu'), dtype=torch.float32,\n"
        "                        quantization=kind)\n"
        "    loaded.model(input_ids=torch.tensor([[1, 2]]))\n"
    )
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-c", script, str(tiny_llama)],
        capture_output=True,
        text=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    assert (ran.stdout, ran.stderr, ran.returncode) == ("", "", 0)


# --- the self-check of unfamiliar structures --------------------------------------------------


def test_self_check_holds_at_the_limits_of_unquantised_models(embedded: LoadedModel) -> None:
    """Measured: off by 1e-6, with a limit of 1e-3. With inputs rounded to 8 bits it was 4e-2."""
    model: Any = embedded.model
    expected = reference_hidden(embedded)
    model.set_attn_implementation(ATTENTION_NAME)
    try:
        decoder = PlainDecoder(model.model)
        refuse_if_different(embedded, decoder, model.get_input_embeddings(), expected)
    finally:
        model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
async def test_unfamiliar_structure_passes_its_self_check(
    open_engine: OpenEngine, tmp_path: Path, kind: str, dtype: str
) -> None:
    model = make_tiny_model(tmp_path, "mistral", sliding_window=None)
    engine = open_engine(model, quantization=kind, dtype=dtype)
    assert len((await engine.complete(create_turn(max_tokens=3))).output_ids) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_model_that_would_answer_wrongly_is_refused(tmp_path: Path, kind: str) -> None:
    model = make_tiny_model(tmp_path, "diffllama")
    with pytest.raises(ModelError, match=r"is off by .* more than 1e-03, from transformers"):
        make_engine(model, quantization=kind)


# --- checkpoints that are quantised already ---------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_stored_weights_are_read_as_they_are(tiny_qwen2: Path, tmp_path: Path, kind: Any) -> None:
    original = load(tiny_qwen2, kind)
    folder = save(original, tmp_path / "model")
    ids = torch.arange(9)[None]
    for asked in (None, kind):
        stored = load(folder, asked)
        assert stored.fingerprint == original.fingerprint
        with torch.inference_mode():
            assert torch.equal(stored.model(ids).logits, original.model(ids).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_stored_weights_are_computed_in_the_dtype_that_is_asked_for(
    tiny_qwen2: Path, tmp_path: Path, kind: str
) -> None:
    folder = save(load(tiny_qwen2, kind, dtype=torch.bfloat16), tmp_path / "model")
    model: Any = load(folder).model
    floats = {x.dtype for x in model.parameters() if x.is_floating_point()}
    assert floats == {model.dtype} == {torch.float32}
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        assert_close(model(ids[:, :7]).logits, model(ids).logits[:, :7], atol=ATOL, rtol=0)


@pytest.mark.parametrize(("stored", "asked"), [("4bit", "8bit"), ("8bit", "4bit")])
def test_weights_that_are_stored_otherwise_are_refused(
    tiny_llama: Path, tmp_path: Path, stored: str, asked: str
) -> None:
    folder = save(load(tiny_llama, stored), tmp_path / "model")
    with pytest.raises(ModelError, match=f"is '{asked}', .* already: {stored}") as refused:
        load(folder, asked)
    assert refused.value.param == "quantization"
    assert str(folder) in str(refused.value)


def test_weights_of_another_method_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    method = {"quant_method": "gptq", "bits": 4}
    folder = copy_model(tiny_llama, tmp_path / "model", quantization_config=method)
    with pytest.raises(ModelError, match="already: gptq"):
        load(folder, "4bit")


# --- wrong values -----------------------------------------------------------------------------


@pytest.fixture
def _no_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "bitsandbytes" else find_spec(name, *rest),
    )


@pytest.mark.usefixtures("_no_bitsandbytes")
def test_missing_library_is_named_with_the_extra(tiny_llama: Path) -> None:
    with pytest.raises(ModelError, match=r"pip install 'latentmas\[quant\]'") as refused:
        load(tiny_llama, "4bit")
    assert refused.value.param == "quantization"
    assert load(tiny_llama).model.dtype is torch.float32


def test_missing_library_is_named_for_stored_weights(
    tiny_llama: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = save(load(tiny_llama, "8bit"), tmp_path / "model")
    request.getfixturevalue("_no_bitsandbytes")
    with pytest.raises(
        ModelError, match=r"in 8bit need bitsandbytes.*latentmas\[quant\]"
    ) as caught:
        load(folder)
    assert caught.value.param == "model_name"


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="3bit") as refused:
        LatentMASSystem(quantization="3bit")
    assert refused.value.param == "quantization"
