"""Weights in 4 or 8 bits, by bitsandbytes: how they are read, and what keeps them exact.

Adapters are added on top of the quantised layers, never merged into them (QLoRA, Dettmers et al.
2023). Embeddings, norms and the head stay as they are.
"""

import importlib.util
from typing import Any, Literal

import torch
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel

from latentmas_core.engine.quiet import quiet_bitsandbytes
from latentmas_core.errors import ModelError

Quantization = Literal["4bit", "8bit"]


def quantization_config(kind: Quantization, dtype: torch.dtype) -> BitsAndBytesConfig:
    """4bit: nf4, multiplied in ``dtype``. 8bit: rows and columns scaled to int8 (LLM.int8).

    LLM.int8 would multiply outliers apart: columns that are large in any row of a step, so a row's
    result would depend on its neighbours. Its threshold is 0 here, which does without.
    """
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


def refuse_unless_possible(model_name: str, kind: Quantization, config: PreTrainedConfig) -> None:
    """Raise ModelError if bitsandbytes is missing, or if the weights are quantised already."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"quantization is {kind!r}, and bitsandbytes is not installed. Install it with "
            "pip install 'latentmas[quant]', or leave quantization out.",
            param="quantization",
        )
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"quantization is {kind!r}, but the weights of model {model_name!r} are quantised "
            "already. Leave it out, or use the model's original weights.",
            param="quantization",
        )
    quiet_bitsandbytes()


def keep_exact(model: PreTrainedModel) -> None:
    """On a CPU bitsandbytes multiplies 4-bit weights in bfloat16 where it can, whatever the dtype.

    In float32 that is off by 1 % of the largest logit, and differs with the number of rows. Layers
    that are to compute in float32 are told that this CPU cannot.
    """
    for module in model.modules():
        layer: Any = module
        if getattr(layer, "compute_dtype", None) is torch.float32:
            layer.support_avx512bf16_for_cpu = False
