"""Tiny random models of the three families, and one forward without any cache over them."""

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: dict[str, tuple[type[PreTrainedConfig], dict[str, object]]] = {
    "llama": (LlamaConfig, {}),
    "llama-yarn": (LlamaConfig, {"rope_parameters": YARN}),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {}),
}


def build_model(family: str, *, is_tied: bool = False) -> PreTrainedModel:
    """fp32, three layers, grouped heads; norms and biases are random too."""
    config_class, options = FAMILIES[family]
    config = config_class(
        vocab_size=160,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        initializer_range=0.1,
        tie_word_embeddings=is_tied,
        **options,
    )
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def build_prompt(length: int, *, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 160, (length,), generator=generator).tolist()


class FullForward(NamedTuple):
    hidden: Tensor  # [num_rows, hidden_size]
    logits: Tensor  # [num_rows, vocab_size]
    keys: list[Tensor]  # per layer [num_kv_heads, num_rows, head_dim]
    values: list[Tensor]


@torch.no_grad()
def forward_at_once(
    model: PreTrainedModel,
    embeddings: Tensor,
    *,
    positions: Tensor | None = None,
    mask: Tensor | None = None,
) -> FullForward:
    """All rows from nothing: [num_rows, hidden_size] under a bool mask [num_rows, num_rows]."""
    num_rows = len(embeddings)
    positions = torch.arange(num_rows) if positions is None else positions
    mask = torch.ones(num_rows, num_rows).tril().bool() if mask is None else mask
    cache = DynamicCache(config=model.config)  # only to read the keys and values that were made
    hidden = model.model(
        inputs_embeds=embeddings[None],
        position_ids=positions[None],
        attention_mask=mask[None, None],
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state[0]
    keys = [layer.keys[0] for layer in cache.layers]
    values = [layer.values[0] for layer in cache.layers]
    return FullForward(hidden, model.lm_head(hidden), keys, values)


@torch.no_grad()
def embed(model: PreTrainedModel, token_ids: list[int]) -> Tensor:
    return model.get_input_embeddings()(torch.tensor(token_ids))  # [num_rows, hidden_size]
