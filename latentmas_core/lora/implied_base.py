"""The base model as adapters themselves describe it: for looking at them where no model is."""

from collections.abc import Sequence
from pathlib import Path

from latentmas_core.lora.adapter_config import CONFIG_FILE, MAX_CONFIG_BYTES, parse_config
from latentmas_core.lora.base_model import BaseModel
from latentmas_core.lora.checkpoint import WEIGHT_NAME, WEIGHTS_FILE, parse_weights, read_file

MAX_WEIGHTS_BYTES = 2**35


def implied_base(folders: Sequence[Path]) -> BaseModel:
    """What the first adapter is called to be made for, with the layers that any of them changes.

    Where they contradict each other the first is believed, so ``read_checkpoint`` refuses the
    others. Raises AdapterError for one that cannot be read.
    """
    names = [_base_name(folder) for folder in folders]
    layers: set[int] = set()
    targets: dict[str, tuple[int, int]] = {}
    for folder in folders:
        sizes: dict[tuple[str, str], int] = {}
        content = read_file(folder, WEIGHTS_FILE, MAX_WEIGHTS_BYTES)
        for name, tensor in parse_weights(folder, content).items():
            place = WEIGHT_NAME.fullmatch(name)
            if place is None or tensor.dim() != 2:
                continue  # refused by its name when the adapter is read
            layers.add(int(place["layer"]))
            # a: [rank, in_features], b: [out_features, rank]
            sizes[place["target"], place["matrix"]] = tensor.shape[
                1 if place["matrix"] == "A" else 0
            ]
        for target, matrix in sizes:
            if matrix == "A" and (target, "B") in sizes:
                targets.setdefault(target, (sizes[target, "B"], sizes[target, "A"]))
    return BaseModel(names[0], max(layers, default=-1) + 1, targets)


def _base_name(folder: Path) -> str:
    content = read_file(folder, CONFIG_FILE, MAX_CONFIG_BYTES)
    return parse_config(folder, content).base_model_name
