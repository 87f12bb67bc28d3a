"""A tokenizer without a model, and the embedder, loaded once."""

import re

import pytest

from latentmas_core.context.documents.chunking import TokenSpans
from latentmas_core.context.documents.embedding import Embedder


def word_spans(text: str) -> list[tuple[int, int]]:
    """Words of up to six letters, and each other mark by itself."""
    return [match.span() for match in re.finditer(r"\w{1,6}|[^\w\s]", text)]


@pytest.fixture(scope="session")
def token_spans() -> TokenSpans:
    return word_spans


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    if not Embedder.is_installed():
        pytest.skip("the package of the extra 'dense' is not installed")
    return Embedder.load()
