"""Reads a LoRA adapter as PEFT saves it, and refuses what the engine would not compute exactly.

A folder with ``adapter_config.json`` and ``adapter_model.safetensors``. Nothing is trusted: size,
options, names, shapes and numbers are checked before anything is handed on. Pickle is never opened.
"""

import hashlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from latentmas_core.errors import AdapterError
from latentmas_core.lora.adapter_config import (
    CONFIG_FILE,
    MAX_CONFIG_BYTES,
    AdapterConfig,
    parse_config,
)
from latentmas_core.lora.base_model import BaseModel, is_same_base

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"

MAX_HEADER_BYTES = 2**24  # names and shapes in front of the weights

WEIGHT_NAME = re.compile(
    r"base_model\.model\.(?:model\.)*layers\.(?P<layer>\d+)\.(?P<target>[\w.]+)"
    r"\.lora_(?P<matrix>[AB])\.weight"
)

# What weights may be stored as. A number is finite unless all these bits, its exponent, are set.
_EXPONENT_BITS: Mapping[torch.dtype, np.unsignedinteger[Any]] = {
    torch.float64: np.uint64(0x7FF0_0000_0000_0000),
    torch.float32: np.uint32(0x7F80_0000),
    torch.float16: np.uint16(0x7C00),
    torch.bfloat16: np.uint16(0x7F80),
}


class LoRAPair(NamedTuple):
    """a: [rank, in_features], b: [out_features, rank]; y = x W^T + scaling (x a^T) b^T."""

    a: torch.Tensor
    b: torch.Tensor


@dataclass(frozen=True)
class LoRACheckpoint:
    """A valid adapter, as it stands in its files.

    digest: SHA-256 of the bytes of both files. weights: by layer and target. scaling: of their
    product.
    """

    digest: str
    base_model_name: str
    rank: int
    scaling: float
    targets: tuple[str, ...]
    weights: Mapping[tuple[int, str], LoRAPair]


def read_checkpoint(folder: Path, base: BaseModel, *, max_rank: int) -> LoRACheckpoint:
    """Raises AdapterError when it is missing, broken, unsupported or made for another base."""
    config_bytes = read_file(folder, CONFIG_FILE, MAX_CONFIG_BYTES)
    config = parse_config(folder, config_bytes)
    _check_base(folder, config, base)
    _check_rank(folder, config, max_rank)
    weights_bytes = read_file(folder, WEIGHTS_FILE, max_file_bytes(base, config.rank))
    tensors = parse_weights(folder, weights_bytes)
    weights = _pair(folder, tensors, base, config.rank)
    _refuse_infinite(folder, tensors, weights_bytes)
    _check_targets(folder, config.target_modules, {target for _, target in weights}, base)
    return LoRACheckpoint(
        digest=_digest(config_bytes, weights_bytes),
        base_model_name=config.base_model_name,
        rank=config.rank,
        scaling=config.scaling,
        targets=tuple(target for target in base.targets if (0, target) in weights),
        weights=weights,
    )


def max_file_bytes(base: BaseModel, rank: int) -> int:
    """What the weights of an adapter of this rank take at most: fp32, all targets."""
    return 4 * base.num_parameters(rank) + MAX_HEADER_BYTES


def _digest(config_bytes: bytes, weights_bytes: bytes) -> str:
    # Each is hashed alone, so that no byte can wander from one file to the other.
    parts = (hashlib.sha256(content).digest() for content in (config_bytes, weights_bytes))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def read_file(folder: Path, name: str, max_bytes: int) -> bytes:
    """One of the two files of an adapter; AdapterError where it cannot be read or is too large."""
    path = folder / name
    try:
        num_bytes = path.stat().st_size
        if num_bytes > max_bytes:
            raise AdapterError(
                f"{path} has {num_bytes} bytes; an adapter of its rank for this base model has at "
                f"most {max_bytes}. It belongs to another model, or carries more than LoRA.",
                param="path",
            )
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(folder, name, error) from error


def _unreadable(folder: Path, name: str, error: OSError) -> AdapterError:
    if name == WEIGHTS_FILE and (folder / PICKLE_FILE).exists():
        return AdapterError(
            f"adapter {folder} has its weights in {PICKLE_FILE}, a pickle, which can run code when "
            f"it is read. Save it as {WEIGHTS_FILE}.",
            param="path",
        )
    return AdapterError(
        f"adapter {folder}: {name} cannot be read ({error.strerror}). An adapter is a folder with "
        f"{CONFIG_FILE} and {WEIGHTS_FILE}.",
        param="path",
    )


def _check_base(folder: Path, config: AdapterConfig, base: BaseModel) -> None:
    if not is_same_base(config.base_model_name, base.name):
        raise AdapterError(
            f"adapter {folder} was made for base model {config.base_model_name!r}; this one is "
            f"{base.name!r}. Load it where its base model is served.",
            param="base_model_name_or_path",
        )


def _check_rank(folder: Path, config: AdapterConfig, max_rank: int) -> None:
    if config.rank > max_rank:
        raise AdapterError(
            f"adapter {folder} has rank {config.rank}; allowed are 1 to {max_rank}. Raise "
            "max_lora_rank if there is memory for it.",
            param="r",
        )


def parse_weights(folder: Path, content: bytes) -> dict[str, torch.Tensor]:
    """By their names, whatever they are called. AdapterError for what is no safetensors file."""
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise AdapterError(
            f"{folder / WEIGHTS_FILE} is no complete safetensors file ({error}). Copy it again.",
            param="path",
        ) from error


def _pair(
    folder: Path, tensors: Mapping[str, torch.Tensor], base: BaseModel, rank: int
) -> dict[tuple[int, str], LoRAPair]:
    """Every tensor in its place, each of the right shape, none missing or too many."""
    found: dict[tuple[int, str, str], torch.Tensor] = {}
    for name, tensor in tensors.items():
        place = layer, target, matrix = _place_of(folder, name, base)
        if place in found:
            raise AdapterError(
                f"adapter {folder} holds {name!r} beside another tensor for layers.{layer}.{target}"
                f".lora_{matrix}. Leave the wrong one out.",
                param="path",
            )
        out_features, in_features = base.targets[target]
        expected = (rank, in_features) if matrix == "A" else (out_features, rank)
        _check_shape(folder, name, tensor, expected)
        found[place] = tensor
    targets = {target for _, target, _ in found}
    if not targets:
        raise AdapterError(f"adapter {folder} holds no weights at all.", param="path")
    missing = [
        f"layers.{layer}.{target}.lora_{matrix}"
        for layer in range(base.num_layers)
        for target in sorted(targets)
        for matrix in "AB"
        if (layer, target, matrix) not in found
    ]
    if missing:
        raise AdapterError(
            f"adapter {folder} lacks {len(missing)} weights, {missing[0]} first; an adapter changes"
            f" a target in all {base.num_layers} layers of its base model. It is incomplete, or "
            "made for another model.",
            param="path",
        )
    return {
        (layer, target): LoRAPair(found[layer, target, "A"], found[layer, target, "B"])
        for layer in range(base.num_layers)
        for target in targets
    }


def _check_targets(
    folder: Path, named: tuple[str, ...] | str | None, found: set[str], base: BaseModel
) -> None:
    """A list of names must be what the weights are; a pattern was resolved when it was trained."""
    if named is None or isinstance(named, str):
        return
    missing = [
        name for name in named if not any(f".{target}".endswith(f".{name}") for target in found)
    ]
    if missing:
        raise AdapterError(
            f"adapter {folder} names target_modules {', '.join(map(repr, sorted(missing)))} but "
            f"holds no weights for them. Targets of {base.name!r}: {', '.join(base.targets)}.",
            param="target_modules",
        )


def _place_of(folder: Path, name: str, base: BaseModel) -> tuple[int, str, str]:
    match = WEIGHT_NAME.fullmatch(name)
    if match is None or match["target"] not in base.targets:
        raise AdapterError(
            f"adapter {folder} holds {name!r}, which is no LoRA weight of a target that is served. "
            f"Targets of {base.name!r}: {', '.join(base.targets)}.",
            param="target_modules",
        )
    layer = int(match["layer"])
    if layer >= base.num_layers:
        raise AdapterError(
            f"adapter {folder} holds {name!r}; {base.name!r} has {base.num_layers} layers. It was "
            "made for another model.",
            param="base_model_name_or_path",
        )
    return layer, match["target"], match["matrix"]


def _check_shape(folder: Path, name: str, tensor: torch.Tensor, expected: tuple[int, int]) -> None:
    if tuple(tensor.shape) != expected:
        raise AdapterError(
            f"adapter {folder}: {name} has shape {tuple(tensor.shape)}; for its rank and this base "
            f"model it must be {expected}. It was made for another model, or is damaged.",
            param="base_model_name_or_path",
        )


def _refuse_infinite(folder: Path, tensors: Mapping[str, torch.Tensor], content: bytes) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype not in _EXPONENT_BITS:
            raise AdapterError(
                f"adapter {folder}: {name} is stored as {tensor.dtype}; allowed are "
                f"{', '.join(map(str, _EXPONENT_BITS))}. Convert it.",
                param="path",
            )
    if _is_finite(tensors, content):
        return
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise AdapterError(
                f"adapter {folder}: {name} holds numbers that are not finite. Its training "
                "diverged, or the file is damaged.",
                param="path",
            )


def _is_finite(tensors: Mapping[str, torch.Tensor], content: bytes) -> bool:
    """Whether all weights are, seen at once where they are of one kind; False if not known.

    On this thread alone: a check of tensor after tensor takes turns with the engine's thread.
    """
    kinds = {tensor.dtype for tensor in tensors.values()}
    if len(kinds) > 1:
        return False
    mask = _EXPONENT_BITS[kinds.pop()]
    start = 8 + int.from_bytes(content[:8], "little")  # the length of the header, and the header
    bits = np.frombuffer(content, mask.dtype, offset=start)
    return bool(((bits & mask) != mask).all())
