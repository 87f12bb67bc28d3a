"""Models of a few hundred kilobytes with the shapes of the real ones, made from a seed."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from latentmas_core.engine.quiet import quiet_transformers

SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
TINY_VOCAB_SIZE = 320  # more rows than tokens, as in real models
CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tiny_model(
    folder: Path,
    architecture: str,
    *,
    tied: bool = False,
    seed: int = 0,
    chat_template: bool = True,
    **config_overrides: Any,
) -> Path:
    """Saves a random model of 3 layers with its byte-level tokenizer into ``folder``.

    ``architecture`` is a model type of transformers ("llama", "qwen2", "qwen3" are the tested
    ones). Biases and norms are random too, so that a computation that forgets them is wrong.
    """
    tokenizer = _byte_tokenizer(chat_template=chat_template)
    settings = {
        "num_hidden_layers": 3,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 128,
        "max_position_embeddings": 2048,
        "vocab_size": TINY_VOCAB_SIZE,
        "initializer_range": 0.15,  # large enough that answers differ between prompts
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = AutoConfig.for_model(architecture, **(settings | config_overrides))
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _randomize_vectors(model, std=0.1)
        model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _randomize_vectors(model: torch.nn.Module, *, std: float) -> None:
    """Norm weights and biases start as ones and zeros; here they say something."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=std)


def _byte_tokenizer(*, chat_template: bool) -> PreTrainedTokenizerFast:
    """Token ``b`` is byte ``b``; the special tokens follow at 256."""
    vocabulary = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    vocabulary |= {token: 256 + index for index, token in enumerate(SPECIAL_TOKENS)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHATML_TEMPLATE if chat_template else None,
    )


def byte_symbols() -> list[str]:
    """The printable character that byte-level tokenizers write for each byte (from GPT-2)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    unprintable = [byte for byte in range(256) if byte not in printable]
    shifted = {byte: 256 + index for index, byte in enumerate(unprintable)}
    return [chr(shifted.get(byte, byte)) for byte in range(256)]
