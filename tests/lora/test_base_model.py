"""Which names mean the same base model, and which layers of it adapters may change."""

import pytest
import torch
from torch import nn

from latentmas_core.lora.base_model import BaseModel, describe_base, is_same_base


@pytest.mark.parametrize(
    ("adapter_base", "model_name"),
    [
        ("Qwen/Qwen2.5-3B", "Qwen/Qwen2.5-3B"),
        ("Qwen2.5-3B", "Qwen/Qwen2.5-3B-Instruct"),
        ("unsloth/qwen2.5-3b-instruct-unsloth-bnb-4bit", "Qwen/Qwen2.5-3B-Instruct"),
        ("/home/me/models/Qwen2.5-3B/", "Qwen/Qwen2.5-3B"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "embedded:smollm2-135m-instruct"),
    ],
)
def test_names_of_one_model(adapter_base: str, model_name: str) -> None:
    assert is_same_base(adapter_base, model_name)


@pytest.mark.parametrize(
    ("adapter_base", "model_name"),
    [
        ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-3B"),
        ("Qwen/Qwen2.5-Coder-7B", "Qwen/Qwen2.5-7B"),
        ("Qwen/Qwen2.5-Math-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen2-7B", "Qwen/Qwen2.5-7B"),
        ("meta-llama/Llama-3.2-3B", "Qwen/Qwen2.5-3B"),
    ],
)
def test_names_of_different_models(adapter_base: str, model_name: str) -> None:
    assert not is_same_base(adapter_base, model_name)


class Attention(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(size, 2 * size)
        self.norm = nn.LayerNorm(size)


class Layer(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.self_attn = Attention(size)
        self.mlp = nn.ModuleDict({"up_proj": nn.Linear(4, 8), "router": nn.Linear(4, 2)})
        self.other = nn.Linear(4, 4)


def test_targets_are_the_projections_that_all_layers_have_alike() -> None:
    with torch.device("meta"):
        base = describe_base("m", [Layer(4), Layer(4)])
        assert base.targets == {"self_attn.q_proj": (8, 4), "mlp.up_proj": (8, 4)}
        assert describe_base("m", [Layer(4), Layer(6)]).targets == {"mlp.up_proj": (8, 4)}
    assert base == BaseModel("m", 2, base.targets)
    assert base.num_parameters(3) == 2 * 3 * (8 + 4 + 8 + 4)
