"""Writes models with random weights, for machines that reach no hub.

Their words mean nothing, but a step over them takes as long as over real ones of that shape.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from benchmarks.questions import NUM_QUESTIONS, questions
from latentmas_core.agents.role_prompts import role_prompts
from latentmas_core.engine.quiet import quiet_transformers

SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
# It learns on the prompts themselves: this many tokens cut them about as a real tokenizer does.
MAX_NUM_TOKENS = 1024
CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class ModelWriter:
    """Lives in a worker, so that its memory is free again before anything is measured."""

    def __init__(self, device: str) -> None:
        self._device = device

    def close(self) -> None:
        """Holds nothing."""

    def write(self, *, folder: str, shape: Mapping[str, Any]) -> None:
        """Save a bfloat16 model with its tokenizer as ``save_pretrained`` does."""
        tokenizer = train_tokenizer(_texts())
        settings = dict(shape)
        config = AutoConfig.for_model(
            settings.pop("architecture"),
            **settings,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        with torch.device(self._device), quiet_transformers():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
            model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
            model.save_pretrained(Path(folder))
        tokenizer.save_pretrained(folder)


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that has learnt a few merges, with ChatML around messages."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_NUM_TOKENS,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHATML_TEMPLATE,
    )


def _texts() -> list[str]:
    texts = questions(NUM_QUESTIONS, round_index=0)
    for prompts in role_prompts().values():
        texts += [prompts.system, *prompts.instructions.model_dump().values()]
    return texts
