"""The tokenizer of the tiny models: one token per byte, three control tokens."""

import pytest
from transformers import AutoTokenizer


@pytest.fixture(scope="session")
def tokenizer(tiny_llama):
    return AutoTokenizer.from_pretrained(tiny_llama)
