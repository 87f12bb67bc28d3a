"""What the tests of merging do: merge, let PEFT merge, and compare."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from latentmas_core.engine.quiet import quiet_transformers
from latentmas_core.lora.adapter_config import CONFIG_FILE
from latentmas_core.lora.base_model import BaseModel, describe_base
from latentmas_core.lora.checkpoint import (
    WEIGHTS_FILE,
    LoRACheckpoint,
    read_checkpoint,
)
from latentmas_core.lora.merge_options import MajoritySign, MergeMethod, MergeOptions
from latentmas_core.lora.merging import MergeInput, merge_adapters
from tests.lora.adapters import lone_peft
from tests.lora.speaking import PROMPT

WEIGHTS = (0.7, -0.4, 1.2)
MAX_RANK = 64
SEED = 11
ATTENTION = ("q_proj", "k_proj", "v_proj")
RSLORA = {"use_rslora": True, "lora_alpha": 4}

OPTIONS = (
    MergeOptions(MergeMethod.LINEAR),
    MergeOptions(MergeMethod.CAT),
    MergeOptions(MergeMethod.SVD, rank=6),
    MergeOptions(MergeMethod.TIES, density=0.4),
    MergeOptions(MergeMethod.TIES, density=0.4, majority_sign=MajoritySign.FREQUENCY),
    MergeOptions(MergeMethod.DARE, density=0.4, seed=SEED),
    MergeOptions(MergeMethod.DARE_TIES, density=0.4, seed=SEED),
    MergeOptions(
        MergeMethod.DARE_TIES, density=0.4, seed=SEED, majority_sign=MajoritySign.FREQUENCY
    ),
)
ELEMENTWISE = tuple(x for x in OPTIONS if x.method not in (MergeMethod.CAT, MergeMethod.SVD))

by_options = pytest.mark.parametrize("options", OPTIONS, ids=lambda x: label_of(x))


def label_of(options: MergeOptions) -> str:
    return f"{options.method}-{options.majority_sign or 'total'}"


Family = tuple[Path, ...]


def base_of(model: Path) -> BaseModel:
    return describe_base(str(model), lone_base(model).model.layers)


def lone_base(model: Path) -> Any:
    with quiet_transformers():
        return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


def merge(
    folders: Sequence[Path],
    output: Path,
    base: BaseModel,
    options: MergeOptions,
    *,
    weights: Sequence[float] = WEIGHTS,
    max_rank: int = MAX_RANK,
) -> LoRACheckpoint:
    """Merges, and reads what was written as any adapter is read."""
    inputs = [MergeInput(*one) for one in zip(folders, weights, strict=False)]
    written = merge_adapters(inputs, output, options=options, base=base, max_rank=max_rank)
    assert written == output
    return read_checkpoint(output, base, max_rank=max_rank)


def peft_merge(model: Path, folders: Sequence[Path], options: MergeOptions) -> Any:
    """The oracle: PEFT's own merge, as the active adapter ``merged``."""
    peft = lone_peft(model, folders[0], name="0")
    for index, folder in enumerate(folders[1:], start=1):
        peft.load_adapter(folder, adapter_name=str(index))
    inject = peft.base_model.inject_adapter

    def inject_and_seed(*args: Any, **kwargs: Any) -> None:
        inject(*args, **kwargs)  # draws initial weights that nothing needs
        torch.manual_seed(SEED)

    peft.base_model.inject_adapter = inject_and_seed
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The density 1.0 is greater")
        peft.base_model.add_weighted_adapter(
            [str(index) for index in range(len(folders))],
            list(WEIGHTS[: len(folders)]),
            "merged",
            combination_type="dare_linear"
            if options.method == MergeMethod.DARE
            else options.method,
            svd_rank=options.rank,
            density=options.density,
            majority_sign_method=str(options.majority_sign or "total"),
        )
    peft.set_adapter("merged")
    return peft.eval()


def logits_of(peft: Any) -> torch.Tensor:
    with torch.inference_mode():
        return peft(input_ids=torch.tensor([PROMPT])).logits  # [1, num_tokens, vocab_size]


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def assert_equals_peft(
    merged: LoRACheckpoint, output: Path, model: Path, oracle: Any, *, are_signs_free: bool
) -> None:
    """Weights and logits. Singular vectors have free signs: there the product is compared."""
    layers = oracle.base_model.model.model.layers
    for (layer, target), pair in merged.weights.items():
        module = layers[layer].get_submodule(target)
        a, b = (matrix["merged"].weight.data for matrix in (module.lora_A, module.lora_B))
        assert_close(pair.b @ pair.a, b @ a)
        if not are_signs_free:
            torch.testing.assert_close(pair.a, a, rtol=1e-6, atol=0)
            torch.testing.assert_close(pair.b, b, rtol=1e-6, atol=0)
    assert_close(logits_of(lone_peft(model, output)), logits_of(oracle))


def padded(folder: Path, output: Path, rank: int) -> Path:
    """The same adapter with rows and columns of zeros up to ``rank``, and the same scaling."""
    config = json.loads((folder / CONFIG_FILE).read_text())
    divisor = config["r"] ** (0.5 if config["use_rslora"] else 1.0)
    scaling = config["lora_alpha"] / divisor
    missing = rank - config["r"]
    tensors = {
        name: F.pad(tensor, (0, 0, 0, missing) if "lora_A" in name else (0, missing))
        for name, tensor in load_file(folder / WEIGHTS_FILE).items()
    }
    output.mkdir()
    save_file(tensors, output / WEIGHTS_FILE)
    changed = {"r": rank, "lora_alpha": scaling * rank, "use_rslora": False}
    (output / CONFIG_FILE).write_text(json.dumps(config | changed))
    return output


def cast(folder: Path, output: Path, dtype: torch.dtype) -> Path:
    output.mkdir()
    tensors = {name: x.to(dtype) for name, x in load_file(folder / WEIGHTS_FILE).items()}
    save_file(tensors, output / WEIGHTS_FILE)
    (output / CONFIG_FILE).write_bytes((folder / CONFIG_FILE).read_bytes())
    return output
