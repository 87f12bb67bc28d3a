"""Random adapters, made and saved by PEFT itself."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from latentmas_core.engine.engine import Engine
from latentmas_core.engine.quiet import quiet_transformers
from latentmas_core.lora.mix import AdapterMix, AdapterUse

ALL_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def make_adapter(
    folder: Path,
    model_path: Path,
    *,
    rank: int = 8,
    targets: tuple[str, ...] = ALL_TARGETS,
    seed: int = 0,
    std: float = 0.1,
    **options: Any,
) -> Path:
    """Saves an adapter for the model at ``model_path``; both of its matrices are random."""
    options = {"lora_alpha": 2 * rank, "task_type": "CAUSAL_LM"} | options
    config = LoraConfig(r=rank, target_modules=list(targets), **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = get_peft_model(_read(model_path), config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.normal_(std=std)
        model.save_pretrained(folder)
    return folder


def lone_peft(model_path: Path, adapter: Path, *, name: str = "default") -> Any:
    """The base with one adapter, as PEFT computes it: the oracle."""
    return PeftModel.from_pretrained(_read(model_path), adapter, adapter_name=name).eval()


def mix_of(engine: Engine, *names: str, **weights: float) -> AdapterMix:
    """Adapters by their names, each with weight 1 or the one that is given."""
    chosen = dict.fromkeys(names, 1.0) | weights
    return AdapterMix(
        tuple(AdapterUse(engine.adapter(name).digest, weight) for name, weight in chosen.items())
    )


def _read(model_path: Path) -> Any:
    with quiet_transformers():
        return AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)


def greedy_ids(model: Any, prompt: tuple[int, ...], num_tokens: int) -> tuple[int, ...]:
    """What the model says, without a cache: the whole text is computed for every token."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(num_tokens):
            logits = model(input_ids=torch.tensor([ids])).logits
            ids.append(int(logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])
