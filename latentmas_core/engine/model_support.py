"""What the engine cannot run exactly, refused by name.

The engine runs every layer with full causal attention over keys it stores rotated, moves them by
rotating them again, and takes logits straight from lm_head. A model for which one of these does not
hold would answer, but wrongly; it is refused before its weights are read wherever its config tells.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from latentmas_core.errors import ModelError

_OTHER_MODEL = "Use a model of the Llama, Qwen2 or Qwen3 shape"
_CAUSAL_LM_ENDINGS = ("ForCausalLM", "LMHeadModel")
_FIXED_ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn"})


@dataclass(frozen=True)
class _Limit:
    """One setting of a config that makes the engine inexact, and what to do about it."""

    setting: str
    is_broken_by: Callable[[Any], bool]
    reason: str
    remedy: str = _OTHER_MODEL


def _is_set(value: Any) -> bool:
    return value is not None


def _is_scale(value: Any) -> bool:
    return value is not None and value != 1


_LIMITS = (
    _Limit("is_encoder_decoder", bool, "the engine runs decoder-only models"),
    _Limit("use_bidirectional_attention", bool, "the engine's attention is causal"),
    _Limit(
        "sliding_window",
        _is_set,
        "the engine runs full attention only",
        "Set it to null in config.json if the model was trained without it, or use another model",
    ),
    _Limit("attn_logit_softcapping", _is_set, "the engine's attention has no soft-capping"),
    _Limit("final_logit_softcapping", _is_set, "the engine takes logits as lm_head gives them"),
    _Limit("logits_scaling", _is_scale, "the engine takes logits as lm_head gives them"),
    _Limit("logit_scale", _is_scale, "the engine takes logits as lm_head gives them"),
    _Limit("kv_lora_rank", _is_set, "the engine stores whole keys and values"),
    _Limit(
        "no_rope_layers",
        lambda layers: bool(layers) and not all(layers),
        "the engine rotates the keys of every layer",
    ),
)


def refuse_unsupported_config(model_name: str, config: PreTrainedConfig) -> None:
    """Raises ModelError if the config alone tells that the engine would be inexact."""
    _refuse_other_than_causal_lm(model_name, config)
    _refuse_partial_attention(model_name, config)
    for limit in _LIMITS:
        value = getattr(config, limit.setting, None)
        if limit.is_broken_by(value):
            raise _refusal(model_name, limit.setting, value, limit.reason, limit.remedy)
    _refuse_rotary_settings(model_name, getattr(config, "rope_parameters", None))


def refuse_unsupported_tokenizer(model_name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ModelError if prompts cannot be rendered or answers cannot be streamed with it."""
    if not tokenizer.is_fast:
        raise _refusal(
            model_name,
            "tokenizer",
            type(tokenizer).__name__,
            "a fast tokenizer is needed",
            "Add a tokenizer.json to the model's folder",
        )
    if not tokenizer.chat_template:
        raise _refusal(
            model_name,
            "chat_template",
            tokenizer.chat_template,
            "agents are prompted through the chat template",
            "Use the instruct version of the model, or add a chat_template.jinja to its folder",
        )


def refuse_unsupported_modules(model_name: str, model: PreTrainedModel) -> None:
    """Raises ModelError if the modules are not those that the engine's forward needs."""
    attention_backend = getattr(model, "_supports_attention_backend", False)
    if not attention_backend:
        raise _refusal(
            model_name,
            "attention backend",
            attention_backend,
            "the engine brings its own attention function",
        )
    rotary = getattr(getattr(model, "model", None), "rotary_emb", None)
    inv_freq = getattr(rotary, "inv_freq", None)
    if not isinstance(inv_freq, torch.Tensor):
        reason = "positions must be one rotary basis, shared by all layers"
        raise _refusal(model_name, "model.rotary_emb", rotary, reason)
    _refuse_other_rotation(model_name, model, num_rotated=2 * inv_freq.numel())


def head_dim_of(config: PreTrainedConfig) -> int:
    """Size of one head; configs that leave it out mean hidden_size / num_attention_heads."""
    head_dim = getattr(config, "head_dim", None)
    return int(head_dim or config.hidden_size // config.num_attention_heads)


def _refuse_other_than_causal_lm(model_name: str, config: PreTrainedConfig) -> None:
    architectures = config.architectures or []
    is_causal_lm = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and (
        not architectures or any(name.endswith(_CAUSAL_LM_ENDINGS) for name in architectures)
    )
    if not is_causal_lm:
        kind = ", ".join(architectures) or config.model_type
        reason = "the engine runs causal language models"
        raise _refusal(model_name, "architectures", kind, reason)


def _refuse_partial_attention(model_name: str, config: PreTrainedConfig) -> None:
    layer_types = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention"})
    if layer_types:
        reason = "the engine runs full attention only"
        raise _refusal(model_name, "layer_types", layer_types, reason)


def _refuse_rotary_settings(model_name: str, rope_parameters: dict[str, Any] | None) -> None:
    settings = rope_parameters or {}
    bases = [name for name, value in settings.items() if isinstance(value, dict)]
    if bases:
        reason = "the engine needs one rotary basis for all layers"
        raise _refusal(model_name, "rope_parameters", bases, reason)
    rope_type = settings.get("rope_type", "default")
    if rope_type not in _FIXED_ROPE_TYPES:
        raise _refusal(
            model_name,
            "rope_type",
            rope_type,
            "stored keys need frequencies that do not depend on the running length, one of "
            + ", ".join(sorted(_FIXED_ROPE_TYPES)),
            "Set one of these in config.json, or use another model",
        )


def _refuse_other_rotation(model_name: str, model: PreTrainedModel, *, num_rotated: int) -> None:
    head_dim = head_dim_of(model.config)
    if num_rotated != head_dim:
        reason = f"the engine rotates whole heads of {head_dim}"
        raise _refusal(model_name, "rotary dimensions", num_rotated, reason)
    rotate_half = getattr(sys.modules[type(model).__module__], "rotate_half", None)
    rotated = rotate_half(torch.arange(4)).tolist() if rotate_half else None
    if rotated != [-2, -3, 0, 1]:
        reason = "the engine rotates the first half of a head against the second"
        raise _refusal(model_name, "rotation of [0, 1, 2, 3]", rotated, reason)


def _refusal(
    model_name: str, setting: str, value: object, reason: str, remedy: str = _OTHER_MODEL
) -> ModelError:
    return ModelError(
        f"model {model_name!r} cannot be run exactly: {setting} is {value!r}; {reason}. {remedy}.",
        param="model_name",
    )
