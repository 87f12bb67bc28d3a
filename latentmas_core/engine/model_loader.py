"""From a name to a model that the engine can run: found, checked, loaded, frozen, fingerprinted.

Owns the meaning of ``model_name``, ``device`` and ``dtype``. What is refused is written in
model_support; how the embedded model comes to be, in embedded_model.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_module  # type: ignore[import-untyped]
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from latentmas_core.engine.embedded_model import EMBEDDED_MODEL_NAME, prepare_embedded_model
from latentmas_core.engine.model_shape import ModelShape
from latentmas_core.engine.model_support import (
    head_dim_of,
    refuse_unsupported_config,
    refuse_unsupported_modules,
    refuse_unsupported_tokenizer,
)
from latentmas_core.engine.quantization import (
    BITSANDBYTES_KINDS,
    Quantization,
    multiply_exactly,
    quantization_config,
    refuse_unless_possible,
    scales_of,
    stored_quantization,
)
from latentmas_core.engine.quiet import quiet_transformers
from latentmas_core.engine.shards import Shard, bring_inputs, place
from latentmas_core.errors import ConfigError, ModelError

_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
_IDENTITY_SETTINGS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rope_parameters",
    "rms_norm_eps",
    "tie_word_embeddings",
)
_MAX_SAMPLED_ELEMENTS = 64
_MAX_REASON_CHARS = 300


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A frozen model on its devices, with what belongs to it.

    ``shards``: the layers of each device; one shard where one device holds the whole model.
    ``fingerprint`` is equal for equal weights, quantisation, dtype and rotary settings, on any
    devices: a segment made by one model fits another of the same fingerprint.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    shape: ModelShape
    shards: tuple[Shard, ...]
    fingerprint: str
    eos_token_ids: frozenset[int]


def resolve_device(device: str) -> torch.device:
    """The device meant by "auto", "cpu", "cuda" or "cuda:1"; ConfigError if it is not there."""
    if not _DEVICE.fullmatch(device):
        raise ConfigError(
            f"device is {device!r}; it must be 'auto', 'cpu', 'cuda' or 'cuda:<index>'.",
            param="device",
        )
    num_cuda_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and num_cuda_devices == 0):
        return torch.device("cpu")
    index = int(device.partition(":")[2] or 0)
    if index >= num_cuda_devices:
        raise ConfigError(
            f"device is {device!r}; the number of visible CUDA devices is {num_cuda_devices}. "
            "Use 'auto' or 'cpu', or check the driver and CUDA_VISIBLE_DEVICES.",
            param="device",
        )
    return torch.device("cuda", index)


def resolve_devices(device: str, num_devices: int) -> tuple[torch.device, ...]:
    """``device`` and its neighbours; ConfigError if there are not so many."""
    first = resolve_device(device)
    if num_devices == 1:
        return (first,)
    if first.type == "cpu":
        raise ConfigError(
            f"num_devices is {num_devices} and device {device!r} is a CPU, which counts as 1. Set "
            "num_devices to 1, or use 'cuda' where there are several cards.",
            param="num_devices",
        )
    num_visible = torch.cuda.device_count()
    if first.index + num_devices > num_visible:
        raise ConfigError(
            f"num_devices is {num_devices}, counted from cuda:{first.index}; the number of visible "
            f"CUDA devices is {num_visible}. Lower num_devices, or check CUDA_VISIBLE_DEVICES.",
            param="num_devices",
        )
    return tuple(torch.device("cuda", first.index + number) for number in range(num_devices))


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype of that name; "auto" is float32 on a CPU, bfloat16 (else float16) on CUDA."""
    if dtype in _DTYPES:
        return _DTYPES[dtype]
    if dtype != "auto":
        allowed = ", ".join(["auto", *_DTYPES])
        raise ConfigError(f"dtype is {dtype!r}; it must be one of {allowed}.", param="dtype")
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def load_model(
    model_name: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    further_devices: Sequence[torch.device] = (),
    quantization: Quantization | None = None,
    attn_implementation: str = "sdpa",
) -> LoadedModel:
    """Loads the embedded model, a local folder or a model of the hub.

    With ``further_devices`` its layers are spread over all devices; each weight is read straight
    to its own. A device may be named more than once.

    A checkpoint whose weights are quantised already is read as it is; ``quantization`` is left out
    then, or says the same. Raises ModelError when the model is missing, broken, does not fit, or
    cannot be run exactly, and when bitsandbytes is needed and missing.
    """
    source = _locate(model_name)
    with quiet_transformers():
        with _failure_named(model_name, source, "config.json"):
            config = AutoConfig.from_pretrained(source)
        refuse_unsupported_config(model_name, config)
        stored = stored_quantization(config)
        refuse_unless_possible(model_name, quantization, stored)
        kind = quantization or stored
        options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attn_implementation}
        shards: tuple[Shard, ...] = (Shard(device, 0, config.num_hidden_layers),)
        if further_devices:
            devices = (device, *further_devices)
            shards, options["device_map"] = place(
                model_name, config, devices, dtype=dtype, quantization=kind
            )
        elif kind:
            options["device_map"] = {"": device}  # a quantised model stays where it was read to
        if quantization and not stored:
            options["quantization_config"] = quantization_config(quantization, dtype)
        with _failure_named(model_name, source, "the tokenizer"):
            tokenizer: Any = AutoTokenizer.from_pretrained(source)
        refuse_unsupported_tokenizer(model_name, tokenizer)
        with _fitting(model_name, device), _failure_named(model_name, source, "the weights"):
            model = _read_weights(source, options)
    refuse_unsupported_modules(model_name, model)
    if further_devices:
        _let_us_move_inputs(model, shards)
    if kind in BITSANDBYTES_KINDS:
        multiply_exactly(model, dtype)
    elif kind is None and not further_devices:
        with _fitting(model_name, device):
            torch.nn.Module.to(model, device)
    model.requires_grad_(False).train(False)
    return LoadedModel(
        name=model_name,
        model=model,
        tokenizer=tokenizer,
        shape=_shape_of(model.config),
        shards=shards,
        fingerprint=_fingerprint(model),
        eos_token_ids=_eos_token_ids(model, tokenizer),
    )


def _let_us_move_inputs(model: Any, shards: Sequence[Shard]) -> None:
    # Accelerate's hooks would do it for every module, in every step.
    remove_hook_from_module(model, recurse=True)
    bring_inputs(model.model.layers, shards)


def _locate(model_name: str) -> str:
    """What transformers is asked for: the path of a whole-looking folder, or an id of the hub."""
    if model_name == EMBEDDED_MODEL_NAME:
        return str(prepare_embedded_model())
    path = Path(model_name).expanduser()
    if not path.is_dir():
        if not path.exists() and not _looks_like_path(model_name):
            return model_name
        state = "is not a folder" if path.exists() else "does not exist"
        raise ModelError(
            f"model folder {str(path)!r} {state}. Give a folder with config.json, tokenizer.json "
            f"and *.safetensors, an id of the hub, or {EMBEDDED_MODEL_NAME!r}.",
            param="model_name",
        )
    for pattern in ("config.json", "*.safetensors"):
        if not any(path.glob(pattern)):
            raise ModelError(
                f"model folder {str(path)!r} has no {pattern}. Save the model with "
                "save_pretrained (pickled weights are not read).",
                param="model_name",
            )
    return str(path)


def _looks_like_path(model_name: str) -> bool:
    return model_name.startswith((".", "/", "~")) or model_name.count("/") > 1


@contextmanager
def _failure_named(model_name: str, source: str, part: str) -> Iterator[None]:
    """Turns whatever the libraries raise over ``part`` into a ModelError with a remedy."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # tokenizers raises Exception itself
        reason = " ".join(str(error).split())[:_MAX_REASON_CHARS] or type(error).__name__
        if Path(source).is_dir():
            what, remedy = f"model folder {source!r} is broken", "Save or copy the folder again"
        else:
            what = f"model {model_name!r} cannot be had from the hub"
            remedy = (
                "Check the name, the network and HF_TOKEN, or give a local folder or "
                f"{EMBEDDED_MODEL_NAME!r}"
            )
        raise ModelError(
            f"{what}: {part} cannot be read: {reason}. {remedy}.", param="model_name"
        ) from error


def _read_weights(source: str, options: dict[str, Any]) -> PreTrainedModel:
    model: PreTrainedModel
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source, use_safetensors=True, output_loading_info=True, **options
    )
    model, report = loaded
    # transformers fills what the files lack with random numbers and only warns.
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"{len(missing)} parameters are missing, the first is {missing[0]!r}")
    return model


@contextmanager
def _fitting(model_name: str, device: torch.device) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = " ".join(str(error).split())[:_MAX_REASON_CHARS]
        raise ModelError(
            f"model {model_name!r} does not fit into the memory of {device}: {reason}. "
            "Use a smaller model, a smaller dtype, quantization, another device, more devices "
            "(num_devices) or a larger share of them (device_memory_share).",
            param="model_name",
        ) from error


def _shape_of(config: PreTrainedConfig) -> ModelShape:
    return ModelShape(
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_dim=head_dim_of(config),
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        max_positions=config.max_position_embeddings,
    )


def _fingerprint(model: PreTrainedModel) -> str:
    """sha256 over the settings and a sample of every parameter: cheap for any size of model."""
    parameters = sorted(model.named_parameters())
    identity = {
        "settings": {name: getattr(model.config, name, None) for name in _IDENTITY_SETTINGS},
        "quantization": _quantization_of(model.config),
        "dtype": str(model.dtype),
        "parameters": [(name, tuple(parameter.shape)) for name, parameter in parameters],
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode())
    scales = [scales_of(parameter) for _, parameter in parameters]
    tensors = [parameter for _, parameter in parameters] + [x for x in scales if x is not None]
    sample = torch.cat([_sample(tensor) for tensor in tensors])  # [num_sampled]
    digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def _quantization_of(config: PreTrainedConfig) -> Any:
    quantization: Any = getattr(config, "quantization_config", None)
    return quantization.to_dict() if hasattr(quantization, "to_dict") else quantization


def _sample(parameter: torch.Tensor) -> torch.Tensor:
    """Up to 64 evenly strided elements, as float32 on the CPU."""
    stride = -(-parameter.numel() // _MAX_SAMPLED_ELEMENTS)
    return parameter.detach().reshape(-1)[:: max(stride, 1)].float().cpu()


def _eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token that any of the three places calls an end."""
    ids: set[int] = set()
    for owner in (model.generation_config, model.config, tokenizer):
        eos = getattr(owner, "eos_token_id", None)
        ids.update([eos] if isinstance(eos, int) else eos or ())
    return frozenset(ids)
