"""Writes random adapters for any base model, many of them in little time.

Their words mean nothing, but a step with them takes as long as with trained ones of that shape.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from latentmas_core.engine.embedded_model import EMBEDDED_MODEL_NAME, prepare_embedded_model
from latentmas_core.lora.base_model import BaseModel, describe_base
from latentmas_core.lora.checkpoint import WEIGHTS_FILE

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
# Both matrices get this over the root of the rank: answers change, and stay far from infinity.
STRENGTH = 0.05


class AdapterWriter:
    """Lives in a worker, so that its memory is free again before anything is measured."""

    def __init__(self, model_name: str) -> None:
        self._base = base_of(model_name)

    def close(self) -> None:
        """Holds nothing."""

    def write(
        self, *, folder: str, ranks: Sequence[int], targets: Sequence[str], first_seed: int = 0
    ) -> list[str]:
        """One adapter per rank, in bfloat16; their folders."""
        num_bytes = sum(2 * self._num_parameters(rank, targets) for rank in ranks)
        free = shutil.disk_usage(folder).free
        if num_bytes > free:
            raise OSError(
                f"{len(ranks)} adapters take {num_bytes / 2**30:.1f} GiB under {folder}, and "
                f"{free / 2**30:.1f} GiB are free. Make room, or set TMPDIR."
            )
        return [
            self._write_one(Path(folder) / f"adapter-{index}", rank, targets, first_seed + index)
            for index, rank in enumerate(ranks)
        ]

    def _num_parameters(self, rank: int, targets: Sequence[str]) -> int:
        shapes = (self._base.targets[target] for target in targets)
        return self._base.num_layers * rank * sum(map(sum, shapes))

    def _write_one(self, folder: Path, rank: int, targets: Sequence[str], seed: int) -> str:
        generator = torch.Generator().manual_seed(seed)
        weights = {}
        for layer in range(self._base.num_layers):
            for target in targets:
                out_features, in_features = self._base.targets[target]
                name = f"base_model.model.model.layers.{layer}.{target}"
                for matrix, size in (("A", (rank, in_features)), ("B", (out_features, rank))):
                    numbers = torch.randn(size, generator=generator) * STRENGTH * rank**-0.5
                    weights[f"{name}.lora_{matrix}.weight"] = numbers.bfloat16()
        config = LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules=[target.rpartition(".")[2] for target in targets],
            base_model_name_or_path=self._base.name,
            task_type="CAUSAL_LM",
        )
        folder.mkdir(parents=True)
        config.save_pretrained(folder)
        save_file(weights, folder / WEIGHTS_FILE)
        return str(folder)


def base_of(model_name: str) -> BaseModel:
    """The shapes that adapters must have, from the model's config alone."""
    is_embedded = model_name == EMBEDDED_MODEL_NAME
    source = prepare_embedded_model() if is_embedded else model_name
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source))
    return describe_base(model_name, model.model.layers)
