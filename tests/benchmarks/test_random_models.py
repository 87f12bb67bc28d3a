"""Random models are written so that the engine's loader takes them."""

from pathlib import Path

import pytest
import torch

from benchmarks.models import ModelWriter
from benchmarks.prompts import latent_prompts, single_prompt
from benchmarks.shapes import SHAPES, shape_of
from latentmas_core.engine.model_loader import load_model

SMALL = {
    "hidden_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 14,
    "intermediate_size": 64,
    "vocab_size": 1200,
}


def test_a_shape_is_found_by_its_name_and_other_names_are_passed_on() -> None:
    assert shape_of("random:qwen2.5-3b") is SHAPES["qwen2.5-3b"]
    assert shape_of("embedded:smollm2-135m-instruct") is None
    with pytest.raises(LookupError, match="'qwen9' is not known"):
        shape_of("random:qwen9")


def test_a_written_model_is_loaded_and_cuts_prompts_into_words(tmp_path: Path) -> None:
    shape = {**SHAPES["qwen2.5-0.5b"], **SMALL}
    ModelWriter("cpu").write(folder=str(tmp_path), shape=shape)
    loaded = load_model(str(tmp_path), device=torch.device("cpu"), dtype=torch.float32)
    assert loaded.shape.num_layers == 2
    assert loaded.shape.head_dim == 4
    question = "What is the capital of France? <|im_end|>"
    prompt_ids = single_prompt(loaded.tokenizer, question)
    assert question in loaded.tokenizer.decode(prompt_ids)
    assert max(prompt_ids) < SMALL["vocab_size"]
    assert all(len(ids) < 120 for ids in latent_prompts(loaded.tokenizer, question))
