"""What an adapter must fit: the name of a base model and the shapes of its linear layers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

# Parts of a repository's name that say how the weights are stored or tuned, not which model it is.
_VARIANT = re.compile(
    r"[-_.](instruct|it|chat|base|unsloth|bnb|4bit|8bit|awq|gptq|int4|int8|nf4|fp16|bf16)$"
)


_TARGET = re.compile(r"(self_attn|mlp)\.\w+_proj")


@dataclass(frozen=True)
class BaseModel:
    """What adapters are validated against.

    targets: [out_features, in_features] of every linear layer that an adapter may change, by its
    path within a decoder layer, as ``self_attn.q_proj``; the same in each of ``num_layers`` layers.
    """

    name: str
    num_layers: int
    targets: Mapping[str, tuple[int, int]]

    def num_parameters(self, rank: int) -> int:
        """Parameters of an adapter of this rank that changes every target."""
        per_rank = sum(out_features + in_features for out_features, in_features in self.shapes)
        return self.num_layers * rank * per_rank

    @property
    def shapes(self) -> list[tuple[int, int]]:
        return list(self.targets.values())


def describe_base(name: str, layers: Any) -> BaseModel:
    """The linear layers of a decoder's ``layers`` that adapters may change: all of one shape."""
    by_layer = [_linears_of(layer) for layer in layers]
    same = [
        target
        for target, shape in by_layer[0].items()
        if all(x.get(target) == shape for x in by_layer)
    ]
    return BaseModel(name, len(by_layer), {target: by_layer[0][target] for target in same})


def _linears_of(layer: nn.Module) -> dict[str, tuple[int, int]]:
    # Quantised layers are nn.Linear too. Experts of a mixture see other rows than the step has.
    return {
        path: (module.out_features, module.in_features)
        for path, module in layer.named_modules()
        if isinstance(module, nn.Linear) and _TARGET.fullmatch(path)
    }


def family_of(model_name: str) -> str:
    """The name without owner, folder, and what says how it is stored or tuned.

    ``unsloth/Qwen2.5-3B-Instruct-bnb-4bit`` and ``Qwen/Qwen2.5-3B`` are one family, of one shape:
    an adapter of one is used on the other everywhere. ``Qwen2.5-Coder-7B`` is another.
    """
    name = model_name.rstrip("/").rpartition("/")[2].rpartition(":")[2].lower()
    while (shorter := _VARIANT.sub("", name)) != name:
        name = shorter
    return name


def is_same_base(adapter_base: str, model_name: str) -> bool:
    """Whether an adapter that names ``adapter_base`` was made for the model ``model_name``."""
    return family_of(adapter_base) == family_of(model_name)
