"""Weights kept in 4 or 8 bits by bitsandbytes, and multiplied without rounding anything else.

Adapters are added on top of the quantised layers, never merged into them (QLoRA, Dettmers et al.
2023). Embeddings, norms and the head stay as they are. In float32 a row is computed alike whatever
stands beside it, which bitsandbytes by itself does not do: see ``multiply_exactly``.
"""

import importlib.util
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel

from latentmas_core.engine.linear import NUM_WIDENED_OUTPUTS
from latentmas_core.engine.quiet import quiet_bitsandbytes
from latentmas_core.errors import ModelError

Quantization = Literal["4bit", "8bit"]
BITSANDBYTES_KINDS: tuple[str, ...] = get_args(Quantization)

INT8_MAX = 127


def quantization_config(kind: Quantization, dtype: torch.dtype) -> BitsAndBytesConfig:
    """4bit: nf4 in blocks of 64 weights, multiplied in ``dtype``. 8bit: int8, scaled by output."""
    make_config: Any = BitsAndBytesConfig
    options: dict[str, Any] = {"load_in_8bit": True, "llm_int8_threshold": 0.0}
    if kind == "4bit":
        options = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": dtype,
        }
    config: BitsAndBytesConfig = make_config(**options)
    return config


def stored_quantization(config: PreTrainedConfig) -> str | None:
    """How the weights of a checkpoint are stored: "4bit", "8bit", a method's name, or None."""
    settings: Any = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    settings = settings if isinstance(settings, dict) else settings.to_dict()
    for kind in BITSANDBYTES_KINDS:
        if settings.get(f"load_in_{kind}"):
            return kind
    return str(settings.get("quant_method", "unknown"))


def refuse_unless_possible(model_name: str, asked: Quantization | None, stored: str | None) -> None:
    """Raise ModelError if the weights are stored otherwise, or if bitsandbytes is missing."""
    if asked and stored and asked != stored:
        raise ModelError(
            f"quantization is {asked!r}, but the weights of model {model_name!r} are quantised "
            f"already: {stored}. Leave quantization out, or use the model's original weights.",
            param="quantization",
        )
    kind = asked or stored
    if kind not in BITSANDBYTES_KINDS:
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"the weights of model {model_name!r} in {kind} need bitsandbytes, which is not "
            "installed. Install it with pip install 'latentmas[quant]', or use unquantised "
            "weights.",
            param="quantization" if asked else "model_name",
        )
    quiet_bitsandbytes()


def multiply_exactly(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Have every quantised layer multiply its inputs as they are, and all be computed in ``dtype``.

    Measured on the embedded model with 96 tokens in float32, where logits go up to 38; times of a
    step of 1 and of 32 rows on one core with AVX-512, where unquantised layers take 48 and 135 ms:

    8bit. bitsandbytes rounds the inputs to int8 too, but for columns in which any row of the step
    is large (LLM.int8, threshold 6). So a row's logits move by 5.5 beside another sequence, and
    15 % of the tokens change. With no such columns (threshold 0) rows are independent and the
    divergence from the unquantised model is 0.064 instead of 0.038; large models cannot do without
    (Dettmers et al. 2022). With inputs as they are: independent to 5e-5, divergence 0.005, 45 and
    135 ms instead of 45 and 90 (threshold 0). bitsandbytes does the same on a CPU in training.

    4bit. On a CPU with bfloat16 instructions bitsandbytes multiplies in bfloat16, whatever the
    dtype: the same row in a step of 33 and of 96 differs by 0.36. In float32: by 3e-5, at 56 and
    135 ms instead of 25 and 78. A model in bfloat16 keeps those instructions: it differs by 0.50,
    unquantised by 0.62. On a card bitsandbytes multiplies in the dtype of the inputs, few rows by
    another kernel than many: they differ by the rounding of that dtype.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point() and scales_of(parameter) is None:
            parameter.data = parameter.data.to(dtype)  # transformers leaves stored ones as they are
    for module in model.modules():
        layer: Any = module
        if _is_4bit(layer):
            layer.compute_dtype = dtype
            layer.compute_type_is_set = True
            if dtype is not torch.bfloat16:
                layer.support_avx512bf16_for_cpu = False
        elif _is_8bit(layer):
            layer.forward = partial(_multiply_int8, layer)


def scales_of(parameter: torch.Tensor) -> torch.Tensor | None:
    """What the stored numbers of a quantised weight are to be multiplied with."""
    state = getattr(parameter, "quant_state", None)
    scales: torch.Tensor | None = getattr(parameter, "SCB", None)
    return scales if state is None else state.absmax


def _is_4bit(layer: Any) -> bool:
    return isinstance(layer, nn.Linear) and hasattr(layer.weight, "quant_state")


def _is_8bit(layer: Any) -> bool:
    return isinstance(layer, nn.Linear) and hasattr(layer.weight, "SCB")


def _multiply_int8(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """y = x (diag(s / 127) W)^T + b. x: [..., in_features], W: int8 [out_features, in_features].

    On a CPU some outputs at a time, whose weights stay in its cache: 12 times faster for 8192.
    """
    weight: torch.Tensor = layer.weight
    scales = (layer.weight.SCB if layer.state.SCB is None else layer.state.SCB)[:, None] / INT8_MAX
    size = NUM_WIDENED_OUTPUTS if x.device.type == "cpu" else weight.shape[0]
    parts = zip(torch.split(weight, size), torch.split(scales, size), strict=True)
    outputs = [F.linear(x, part.to(x.dtype).mul_(scale)) for part, scale in parts]
    y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
    return y if layer.bias is None else y.add_(layer.bias)
