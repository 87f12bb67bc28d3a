"""Shapes of real models that can be had with random weights. Data only."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

RANDOM_PREFIX = "random:"

_QWEN2_5 = {
    "architecture": "qwen2",
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}

SHAPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "qwen2.5-0.5b": {
            **_QWEN2_5,
            "hidden_size": 896,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "intermediate_size": 4864,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
        "qwen2.5-3b": {
            **_QWEN2_5,
            "hidden_size": 2048,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "intermediate_size": 11008,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
        "qwen2.5-7b": {
            **_QWEN2_5,
            "hidden_size": 3584,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "intermediate_size": 18944,
            "vocab_size": 152064,
            "tie_word_embeddings": False,
        },
    }
)


def shape_of(model_name: str) -> Mapping[str, Any] | None:
    """The shape that ``random:<shape>`` names, None for any other name; LookupError if unknown."""
    if not model_name.startswith(RANDOM_PREFIX):
        return None
    shape_name = model_name.removeprefix(RANDOM_PREFIX)
    if shape_name not in SHAPES:
        raise LookupError(f"shape {shape_name!r} is not known. Known: {', '.join(SHAPES)}.")
    return SHAPES[shape_name]
