"""Which device holds which layers of a model: runs of neighbours, balanced by bytes.

Reads configs and module trees, no weights. Knows nothing of blocks or of what a layer computes.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from latentmas_core.errors import ConfigError, ModelError

# Bytes of a quantised weight with its scales; of anything else, those of the model's dtype.
_QUANTISED_BYTES = {"4bit": 0.5625, "8bit": 1.0}
_LAYERS = "layers"
_ROTARY = "rotary_emb"


class Shard(NamedTuple):
    """The layers ``start`` .. ``end - 1`` on one device. Several may name the same device."""

    device: torch.device
    start: int
    end: int

    @property
    def num_layers(self) -> int:
        return self.end - self.start


class Placement(NamedTuple):
    """A model over several devices. device_map: the device of every module, by its path."""

    shards: tuple[Shard, ...]
    device_map: Mapping[str, torch.device]


def devices_of(shards: Iterable[Shard]) -> dict[torch.device, int]:
    """Every device once, with the number of layers on it."""
    num_layers: dict[torch.device, int] = {}
    for shard in shards:
        num_layers[shard.device] = num_layers.get(shard.device, 0) + shard.num_layers
    return num_layers


def split_layers(
    layer_bytes: Sequence[int],
    devices: Sequence[torch.device],
    *,
    first_bytes: int = 0,
    last_bytes: int = 0,
) -> tuple[Shard, ...]:
    """A run of layers for each device, so that all hold about equally many bytes.

    first_bytes, last_bytes: what the first and the last device hold besides layers.
    """
    num_layers, num_devices = len(layer_bytes), len(devices)
    if num_devices > num_layers:
        raise ConfigError(
            f"num_devices is {num_devices}; the model has {num_layers} layers, and each device "
            f"holds at least one. Use at most {num_layers}.",
            param="num_devices",
        )
    # used[i]: bytes of all that stands before layer i.
    used = list(accumulate(layer_bytes, initial=first_bytes))
    total = used[-1] + last_bytes
    cuts = [0]
    for number in range(1, num_devices):
        possible = range(cuts[-1] + 1, num_layers - (num_devices - number) + 1)
        cuts.append(_nearest(used, possible, total * number / num_devices))
    ends = [*cuts[1:], num_layers]
    return tuple(map(Shard, devices, cuts, ends))


def _nearest(used: Sequence[int], possible: Iterable[int], wanted: float) -> int:
    return min(possible, key=lambda cut: abs(used[cut] - wanted))


def place(
    model_name: str,
    config: PreTrainedConfig,
    devices: Sequence[torch.device],
    *,
    dtype: torch.dtype,
    quantization: str | None = None,
) -> Placement:
    """Where every module of this model goes: decided from its config, before weights are read.

    Embeddings lie on the first device, the final norm and the head on the last. A head that is tied
    to the embeddings lies with them: one matrix, on one device.
    """
    make_model: Any = AutoModelForCausalLM.from_config
    with torch.device("meta"):
        skeleton = make_model(copy.deepcopy(config))  # the model writes its choices into it
    layers = getattr(getattr(skeleton, "model", None), _LAYERS, None)
    if not isinstance(layers, nn.ModuleList):
        raise ModelError(
            f"model {model_name!r} cannot be spread over {len(devices)} devices: it has no list of "
            "layers at model.layers. Set num_devices to 1, or use a Llama, Qwen2 or Qwen3 style "
            "model.",
            param="num_devices",
        )
    outside = _modules_outside(skeleton)
    layer_bytes = [_num_bytes(layer, dtype, quantization) for layer in layers]
    sums = {"first": 0, "last": 0}
    for module, side in outside.values():
        sums[side] += _num_bytes(module, dtype, None)
    shards = split_layers(layer_bytes, devices, first_bytes=sums["first"], last_bytes=sums["last"])
    ends = {"first": devices[0], "last": devices[-1]}
    device_map = {path: ends[side] for path, (_, side) in outside.items()}
    for shard in shards:
        for index in range(shard.start, shard.end):
            device_map[f"model.{_LAYERS}.{index}"] = shard.device
    return Placement(shards, device_map)


def _modules_outside(skeleton: Any) -> dict[str, tuple[nn.Module, str]]:
    """The modules beside the layers by path, each with the side of the layers where it belongs."""
    sides: dict[str, tuple[nn.Module, str]] = {}
    side = "first"
    for name, module in skeleton.model.named_children():
        if name == _LAYERS:
            side = "last"
        else:
            sides[f"model.{name}"] = (module, "first" if name == _ROTARY else side)
    is_tied = skeleton.get_output_embeddings().weight is skeleton.get_input_embeddings().weight
    for name, module in skeleton.named_children():
        if name != "model":
            sides[name] = (module, "first" if is_tied else "last")
    return sides


def _num_bytes(module: nn.Module, dtype: torch.dtype, quantization: str | None) -> int:
    num_linear = sum(
        part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear)
    )
    num_parameters = sum(parameter.numel() for parameter in module.parameters())
    linear_bytes = _QUANTISED_BYTES.get(quantization or "", dtype.itemsize)
    return int(num_linear * linear_bytes + (num_parameters - num_linear) * dtype.itemsize)


def bring_inputs(layers: Sequence[nn.Module], shards: Sequence[Shard]) -> None:
    """Have the layers of every further shard bring what they are given to their device.

    For a decoder that transformers runs; ``FusedDecoder`` hands over by itself.
    """
    for shard in shards[1:]:
        entrance = _Entrance(shard.device)
        for index in range(shard.start, shard.end):
            layers[index].register_forward_pre_hook(entrance, with_kwargs=True)


class _Entrance:
    """Forward pre-hook of the layers of one shard.

    What all layers of a step are given alike is moved by the first of them, once.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._moved: dict[str, tuple[Any, Any]] = {}  # what was given last, and its copy here

    def __call__(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return _to(args, self._device), {name: self._once(name, x) for name, x in kwargs.items()}

    def _once(self, name: str, given: Any) -> Any:
        last, moved = self._moved.get(name, (None, None))
        if last is not given:
            moved = _to(given, self._device)
            self._moved[name] = (given, moved)
        return moved


def _to(given: Any, device: torch.device) -> Any:
    """Tensors, tuples of them, and what can move itself."""
    if isinstance(given, tuple):
        return tuple(_to(part, device) for part in given)
    return given.to(device) if hasattr(given, "to") else given
