"""Reads ``adapter_config.json`` as PEFT writes it, and refuses what is not understood by name.

Knows no weights and no base model.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from latentmas_core.engine.quiet import quiet_bitsandbytes
from latentmas_core.errors import AdapterError
from latentmas_core.lora.merge_options import is_finite_number

CONFIG_FILE = "adapter_config.json"
MAX_CONFIG_BYTES = 2**20

# Options that change nothing of what is computed from the weights, or that are understood here.
_UNDERSTOOD = {
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "r",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
}
# Other initialisations take a part of the base weights away, so the adapter alone is not enough.
_UNCHANGED_BASE = (True, False, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class AdapterConfig:
    """What of it is needed. ``target_modules``: names, or a pattern, or None where it is open."""

    base_model_name: str
    rank: int
    alpha: float
    is_rslora: bool
    target_modules: tuple[str, ...] | str | None

    @property
    def scaling(self) -> float:
        """alpha / rank, or alpha / sqrt(rank) for rsLoRA (Kalajdzievski 2023)."""
        return self.alpha / (math.sqrt(self.rank) if self.is_rslora else self.rank)


def parse_config(folder: Path, content: bytes) -> AdapterConfig:
    """Raises AdapterError; ``folder`` is for its message."""
    values = _parse(folder, content)
    _refuse_unknown(folder, values)
    _check_initialisation(folder, values)
    _refuse_unsupported(folder, _peft_config(folder, values))
    return AdapterConfig(
        base_model_name=_base_model_name(folder, values),
        rank=_rank(folder, values),
        alpha=_alpha(folder, values),
        is_rslora=_is_rslora(folder, values),
        target_modules=_target_modules(folder, values),
    )


def _parse(folder: Path, content: bytes) -> Mapping[str, Any]:
    path = folder / CONFIG_FILE
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path} is not JSON: {error}. Save it again.", param="path") from error
    if not isinstance(values, dict) or values.get("peft_type") != "LORA":
        kind = values.get("peft_type") if isinstance(values, dict) else type(values).__name__
        raise AdapterError(
            f"{path} says peft_type {kind!r}; LORA is the kind that is served.", param="peft_type"
        )
    return values


def _option(values: Mapping[str, Any], name: str) -> Any:
    return values.get(name, _defaults()[name])


def _refuse_unknown(folder: Path, values: Mapping[str, Any]) -> None:
    strangers = sorted(name for name in values.keys() - _defaults().keys() if values[name])
    if strangers:
        raise _unsupported(folder, {name: values[name] for name in strangers})


def _check_initialisation(folder: Path, values: Mapping[str, Any]) -> None:
    """Before PEFT looks at it: for some kinds it wants packages that are not there."""
    kind = _option(values, "init_lora_weights")
    if kind not in _UNCHANGED_BASE:
        raise _unsupported(folder, {"init_lora_weights": kind})


def _peft_config(folder: Path, values: Mapping[str, Any]) -> Any:
    """A ``peft.LoraConfig``."""
    try:
        return _peft().LoraConfig(
            **{name: values[name] for name in values.keys() & _defaults().keys()}
        )
    except Exception as error:  # values of any kind go in, so errors of any kind come out
        raise AdapterError(
            f"{folder / CONFIG_FILE} is no LoRA configuration: {error}", param="path"
        ) from error


@cache
def _peft() -> Any:
    """Takes seconds to import, and many a service has no adapter."""
    quiet_bitsandbytes()
    import peft

    return peft


@cache
def _defaults() -> Mapping[str, Any]:
    """The options of PEFT's LoRA and what they are where they are left out."""
    plain = _peft().LoraConfig()
    return {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}


def _refuse_unsupported(folder: Path, config: Any) -> None:
    """Whatever is not understood must be as if it had been left out."""
    unsupported = {
        name: getattr(config, name)
        for name, default in _defaults().items()
        if name not in _UNDERSTOOD and _is_meant(getattr(config, name), default)
    }
    if config.bias != "none":
        unsupported["bias"] = config.bias
    if unsupported:
        raise _unsupported(folder, unsupported)


def _is_meant(value: Any, default: Any) -> bool:
    return bool(value) and value != default


def _unsupported(folder: Path, options: Mapping[str, Any]) -> AdapterError:
    shown = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return AdapterError(
        f"adapter {folder} was made with {shown}, which is not supported: its answers would not "
        "be those of the adapter. Train or convert it to plain LoRA on linear layers.",
        param=next(iter(options)),
    )


def _base_model_name(folder: Path, values: Mapping[str, Any]) -> str:
    name = _option(values, "base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise AdapterError(
            f"adapter {folder} does not say which base model it was made for: "
            f"base_model_name_or_path is {name!r:.40}. Set it in its {CONFIG_FILE}.",
            param="base_model_name_or_path",
        )
    return name


def _rank(folder: Path, values: Mapping[str, Any]) -> int:
    rank = _option(values, "r")
    if type(rank) is not int or rank < 1:
        raise AdapterError(
            f"adapter {folder} has rank {rank!r:.40}; it must be a whole number, at least 1. "
            "Save it again.",
            param="r",
        )
    return rank


def _alpha(folder: Path, values: Mapping[str, Any]) -> float:
    alpha = _option(values, "lora_alpha")
    if not is_finite_number(alpha):
        raise AdapterError(
            f"adapter {folder} has lora_alpha {alpha!r:.40}; it must be a number that a float "
            "holds. Save it again.",
            param="lora_alpha",
        )
    return float(alpha)


def _is_rslora(folder: Path, values: Mapping[str, Any]) -> bool:
    is_rslora = _option(values, "use_rslora")
    if not isinstance(is_rslora, bool):
        raise AdapterError(
            f"adapter {folder} has use_rslora {is_rslora!r:.40}; it must be true or false: it "
            "says how the weights are scaled. Correct it.",
            param="use_rslora",
        )
    return is_rslora


def _target_modules(folder: Path, values: Mapping[str, Any]) -> tuple[str, ...] | str | None:
    targets = _option(values, "target_modules")
    if targets is None or isinstance(targets, str):
        return targets
    if not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
        raise AdapterError(
            f"adapter {folder} has target_modules {targets!r:.80}; it must be a list of names, or "
            "a pattern. Correct it.",
            param="target_modules",
        )
    return tuple(targets)
