"""A model whose weights know a few sentences by heart, and a chat template with tools.

Its only layer adds nothing, so what it says next depends on the last token alone: each token of a
sentence leads to the next. The template ends a prompt with the token that begins the right one.
"""

from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from latentmas_core.engine.quiet import quiet_transformers
from tests.factories import byte_symbols

SAYS, CALLS, CONCLUDES = "<|says|>", "<|calls|>", "<|concludes|>"
SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", SAYS, CALLS, CONCLUDES)

ANSWER = ("Paris", " is", " the", " capital", " of", " France", ".")
CALL = (
    "Let me look.\n",
    "<tool",
    "_call>\n",
    '{"name": "weather", ',
    '"arguments": {"city": "Paris"}}',
    "\n</tool_call>",
)
CONCLUSION = ("It", " rains", " in", " Paris", "!")
SCRIPT = {SAYS: ANSWER, CALLS: CALL, CONCLUDES: CONCLUSION}

HIDDEN_SIZE = 64
SURENESS = 2.0  # the next token's logit is this times the root of the hidden size

TEMPLATE = (
    "{%- if tools %}<|im_start|>system\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}<tools>\n"
    "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}</tools>\n"
    "Call as <tool_call>{json}</tool_call>.<|im_end|>\n"
    "{%- elif messages[0].role == 'system' %}<|im_start|>system\n"
    "{{ messages[0].content }}<|im_end|>\n"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'system' and loop.first %}"
    "{%- elif message.role == 'tool' %}<|im_start|>user\n<tool_response>\n"
    "{{ message.content }}\n</tool_response><|im_end|>\n"
    "{%- else %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n"
    "{%- if messages[-1].role == 'tool' %}<|concludes|>"
    "{%- elif tools %}<|calls|>{% else %}<|says|>{% endif %}{% endif %}"
)


def make_scripted_model(folder: Path, *, max_positions: int = 4096) -> Path:
    """Saves model and tokenizer into ``folder``; a prompt may have ``max_positions`` bytes."""
    tokenizer = make_scripted_tokenizer()
    config = LlamaConfig(
        num_hidden_layers=1,
        hidden_size=HIDDEN_SIZE,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=32,
        max_position_embeddings=max_positions,
        vocab_size=len(tokenizer),
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]), quiet_transformers(), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        _learn(model, tokenizer)
        model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_scripted_tokenizer() -> PreTrainedTokenizerFast:
    """Text is read byte by byte; the pieces of the script are tokens that are only written."""
    symbols = byte_symbols()
    vocabulary = {symbol: byte for byte, symbol in enumerate(symbols)}
    vocabulary |= {token: 256 + index for index, token in enumerate(SPECIAL_TOKENS)}
    for piece in (piece for sentence in SCRIPT.values() for piece in sentence):
        vocabulary.setdefault("".join(symbols[byte] for byte in piece.encode()), len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", SAYS, CALLS, CONCLUDES],
        chat_template=TEMPLATE,
    )


def id_of(tokenizer: PreTrainedTokenizerFast, piece: str) -> int:
    symbols = byte_symbols()
    spelt = piece if piece in SPECIAL_TOKENS else "".join(symbols[b] for b in piece.encode())
    token_id = tokenizer.convert_tokens_to_ids(spelt)
    assert isinstance(token_id, int), f"{piece!r} is no token"
    return token_id


def _learn(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast) -> None:
    embeddings = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    embeddings.zero_()
    head.zero_()
    place = 0
    for begin, sentence in SCRIPT.items():
        tokens = [id_of(tokenizer, piece) for piece in (begin, *sentence, "<|im_end|>")]
        for token, next_token in pairwise(tokens):
            embeddings[token, place] = 1.0
            head[next_token, place] = SURENESS
            place += 1
