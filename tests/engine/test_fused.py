"""Fused decoders against transformers' own: the same numbers, and only where that is certain."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from latentmas_core.engine import fused
from latentmas_core.engine.attention import ATTENTION_NAME, SequenceRows, prepare_batch
from latentmas_core.engine.fused import (
    FusedDecoder,
    FusedMLP,
    FusedNorm,
    PlainDecoder,
    Rotation,
    can_fuse,
    make_decoder,
)
from latentmas_core.engine.kv_pool import KVPool
from latentmas_core.engine.linear import MakeLinear, PackedLinear, PlainLinear
from latentmas_core.engine.model_loader import LoadedModel
from tests.engine.engines import OpenEngine, load_plain
from tests.engine.oracle import Agent, Chain, Oracle, release_all, run_chains
from tests.factories import make_tiny_model

FAMILIES = ["tiny_llama", "tiny_qwen2", "tiny_qwen3"]
CHAINS = [
    Chain((Agent("Think about it, then say what you think.", 3), Agent("So?", 1)), max_tokens=7),
    Chain((Agent("Hello there!", 2),)),
    Chain((Agent("Count.", 0),), max_tokens=5),
]

# Two steps of three sequences: (block table, slots before, rows), those with one row first.
FIRST_STEP = [SequenceRows([9], 0, 1), SequenceRows([3, 7], 0, 6), SequenceRows([5], 0, 3)]
SECOND_STEP = [SequenceRows([9], 1, 1), SequenceRows([5], 3, 1), SequenceRows([3, 7], 6, 2)]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def load(model: Path) -> LoadedModel:
    loaded = load_plain(model)
    loaded.model.set_attn_implementation(ATTENTION_NAME)
    return loaded


def create_hidden(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def run_steps(decoder: nn.Module, loaded: LoadedModel) -> tuple[torch.Tensor, KVPool]:
    """The hidden states of both steps, and the pool behind them."""
    pool = KVPool(
        loaded.shape,
        num_blocks=10,
        block_size=4,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    hidden = []
    for seed, sequences in enumerate((FIRST_STEP, SECOND_STEP)):
        batch = prepare_batch(sequences, pool, num_groups=2, is_paged=False)
        starts = [torch.arange(s.num_context, s.num_slots) for s in sequences]
        embeddings = create_hidden(sum(s.num_rows for s in sequences), 64, seed=seed)
        hidden.append(decoder(embeddings, torch.cat(starts), batch))
    return torch.cat(hidden), pool


# --- the parts ------------------------------------------------------------------------------------


@torch.inference_mode()
@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_fused_norm_equals_the_models(family: Path, scale: float) -> None:
    norm = load(family).model.model.layers[1].input_layernorm
    rows = scale * create_hidden(7, 64)
    assert_close(FusedNorm(norm)(rows), norm(rows), atol=1e-5, rtol=1e-6)


@torch.inference_mode()
def test_fused_norm_does_not_subtract_the_mean(family: Path) -> None:
    norm = load(family).model.model.norm
    rows = 5 + create_hidden(7, 64)
    assert_close(FusedNorm(norm)(rows), norm(rows), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_fused_norm_of_heads_equals_the_models(tiny_qwen3: Path) -> None:
    norm = load(tiny_qwen3).model.model.layers[0].self_attn.q_norm
    heads = create_hidden(5, 4, 16)
    assert_close(FusedNorm(norm)(heads), norm(heads), atol=1e-5, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("make_linear", [PackedLinear, PlainLinear])
def test_fused_mlp_equals_the_models(family: Path, make_linear: MakeLinear) -> None:
    mlp = load(family).model.model.layers[2].mlp
    rows = create_hidden(6, 64)
    assert_close(FusedMLP(mlp, 2, make_linear)(rows), mlp(rows), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_rotation_equals_that_of_transformers(family: Path) -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    positions, heads = torch.tensor([[0, 3, 70, 1500]]), create_hidden(4, 6, 16)
    cos, sin = load(family).model.model.rotary_emb(heads, positions)
    heads_first = heads.transpose(0, 1)[None]
    expected, _ = apply_rotary_pos_emb(heads_first, heads_first, cos, sin)
    rotated = Rotation.from_tables(cos, sin).apply(heads)
    assert_close(rotated, expected[0].transpose(0, 1), atol=1e-6, rtol=0)


# --- the whole ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_linear", [PackedLinear, PlainLinear])
def test_fused_decoder_equals_transformers_own(family: Path, make_linear: MakeLinear) -> None:
    plain = load(family)
    expected, expected_pool = run_steps(PlainDecoder(plain.model.model), plain)
    loaded = load(family)
    decoder = make_decoder(loaded.model.model, make_linear)
    assert isinstance(decoder, FusedDecoder)
    hidden, pool = run_steps(decoder, loaded)
    assert_close(hidden, expected, atol=1e-5, rtol=0)
    assert_close(pool.keys, expected_pool.keys, atol=1e-5, rtol=0)
    assert_close(pool.values, expected_pool.values, atol=1e-5, rtol=0)


def test_biases_and_head_norms_make_a_difference_here(tiny_qwen2: Path, tiny_qwen3: Path) -> None:
    changes = [
        (tiny_qwen2, "q_proj.bias"),
        (tiny_qwen2, "v_proj.bias"),
        (tiny_qwen3, "k_norm.weight"),
    ]
    for model, parameter in changes:
        plain, changed = load(model), load(model)
        changed.model.model.layers[0].self_attn.get_parameter(parameter).mul_(0.5)
        expected, _ = run_steps(PlainDecoder(plain.model.model), plain)
        hidden, _ = run_steps(make_decoder(changed.model.model, PackedLinear), changed)
        assert (hidden - expected).abs().max() > 1e-3


def test_fusing_leaves_no_second_copy_of_the_layers(family: Path) -> None:
    loaded = load(family)
    make_decoder(loaded.model.model, PackedLinear)
    names = [name for name, _ in loaded.model.model.named_parameters()]
    assert not any("proj" in name for name in names)


async def test_engine_without_fusing_equals_the_plain_loop(
    open_engine: OpenEngine, family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "can_fuse", lambda decoder: False)
    engine, oracle = open_engine(family, max_num_batched_tokens=16), Oracle(family)
    assert isinstance(engine.stepper.runner._decoder, PlainDecoder)
    runs = await run_chains(engine, CHAINS)
    for run, chain in zip(runs, CHAINS, strict=True):
        await oracle.assert_run_equals(engine, run, chain)
    await release_all(engine, runs)


# --- what is not known exactly --------------------------------------------------------------------

# Each differs from Llama in something that the fused decoder does not compute.
UNKNOWN: dict[str, dict[str, Any]] = {
    "olmo": {"clip_qkv": 0.5},
    "olmo2": {},  # norms behind the parts, and over all heads at once
    "granite": {"attention_multiplier": 0.3, "residual_multiplier": 0.5, "logits_scaling": 1.0},
    "gemma": {},  # weights of norms count from 1
    "phi3": {},  # q, k and v in one
    "starcoder2": {"sliding_window": None},
}


@pytest.mark.parametrize("architecture", UNKNOWN)
async def test_unknown_structure_is_left_alone_and_served_rightly(
    open_engine: OpenEngine, tmp_path: Path, architecture: str
) -> None:
    model = make_tiny_model(tmp_path, architecture, **UNKNOWN[architecture])
    assert not can_fuse(load(model).model.model)
    engine, oracle = open_engine(model, max_num_batched_tokens=16), Oracle(model)
    runs = await run_chains(engine, CHAINS)
    for run, chain in zip(runs, CHAINS, strict=True):
        await oracle.assert_run_equals(engine, run, chain)
    await release_all(engine, runs)


class OtherLinear(nn.Linear):
    """Stands for a quantised layer."""


@pytest.mark.parametrize("name", ["self_attn.o_proj", "mlp.down_proj"])
def test_one_layer_that_is_not_plain_leaves_all_alone(tiny_llama: Path, name: str) -> None:
    decoder = load(tiny_llama).model.model
    assert can_fuse(decoder)
    decoder.layers[2].set_submodule(name, OtherLinear(64, 64))
    assert not can_fuse(decoder)
    assert isinstance(make_decoder(decoder, PackedLinear), PlainDecoder)
