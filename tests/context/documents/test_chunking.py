import random
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import ValidationError
from transformers import AutoTokenizer

from latentmas_core.context.documents.chunking import (
    Chunk,
    ChunkOptions,
    TokenSpans,
    split_document,
    token_spans_of,
)
from latentmas_core.context.documents.document import Document

PIECES = (
    "Alpha beta. ",
    "gamma",
    " delta!\n",
    "\n\n",
    "  ",
    "漢字。",
    "🙂",
    "e\u0301",
    "<|im_end|>",
    "x" * 40,
    "\t",
    '"Well?" ',
)


@pytest.fixture(scope="module")
def byte_spans(tiny_llama: Path) -> TokenSpans:
    """One token a byte, so most characters of other scripts take several."""
    return token_spans_of(AutoTokenizer.from_pretrained(tiny_llama))


def random_text(seed: int) -> str:
    rng = random.Random(seed)
    return "".join(rng.choices(PIECES, k=rng.randint(1, 120)))


def check_covers(document: Document, chunks: tuple[Chunk, ...]) -> None:
    """Every character, in order, each chunk bringing something new."""
    assert (chunks[0].start, chunks[-1].end) == (0, len(document.text))
    for before, after in pairwise(chunks):
        assert before.start < after.start <= before.end < after.end
    rebuilt = chunks[0].text
    for before, after in pairwise(chunks):
        rebuilt += document.text[before.end : after.end]
    assert rebuilt == document.text


@pytest.mark.parametrize("seed", range(60))
def test_joined_chunks_are_the_whole_document_and_none_is_over_the_limit(
    seed: int, byte_spans: TokenSpans, token_spans: TokenSpans
) -> None:
    document = Document(name="d", text=random_text(seed))
    for spans in (byte_spans, token_spans):
        for max_tokens, overlap in ((16, 0), (16, 4), (64, 16), (200, 40)):
            options = ChunkOptions(max_tokens=max_tokens, overlap_tokens=overlap)
            chunks = split_document(document, spans, options)
            check_covers(document, chunks)
            assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
            assert all(chunk.num_tokens == len(spans(chunk.text)) for chunk in chunks)
            assert max(chunk.num_tokens for chunk in chunks) <= max_tokens


def test_chunks_end_at_paragraphs_where_these_are_near(token_spans: TokenSpans) -> None:
    text = "\n\n".join(f"Para {n} is here. It says a thing or two." for n in range(6))
    chunks = split_document(
        Document(name="d", text=text),
        token_spans,
        ChunkOptions(max_tokens=30, overlap_tokens=0),
    )
    assert len(chunks) == 3
    assert all(chunk.text.startswith("Para ") for chunk in chunks)


def test_chunks_end_at_sentences_where_no_paragraph_does(token_spans: TokenSpans) -> None:
    text = " ".join(f"Line {n} ends here." for n in range(40))
    chunks = split_document(
        Document(name="d", text=text),
        token_spans,
        ChunkOptions(max_tokens=24, overlap_tokens=0),
    )
    assert all(chunk.text.rstrip().endswith(".") for chunk in chunks)


def test_a_word_longer_than_a_chunk_is_cut(token_spans: TokenSpans) -> None:
    document = Document(name="d", text="y" * 500)
    chunks = split_document(document, token_spans, ChunkOptions(max_tokens=16, overlap_tokens=0))
    check_covers(document, chunks)
    assert len(chunks) == 6


def test_a_character_of_more_tokens_than_a_chunk_is_a_chunk() -> None:
    def spans(text: str) -> list[tuple[int, int]]:
        """As where a tokenizer spells a ligature out."""
        return [(at, at + 1) for at, char in enumerate(text) for _ in range(1 + 19 * (char == "ﷺ"))]

    document = Document(name="d", text="ab ﷺ cd ﷺﷺ " + "e" * 30)
    chunks = split_document(document, spans, ChunkOptions(max_tokens=16, overlap_tokens=0))
    check_covers(document, chunks)
    assert all(chunk.num_tokens <= 16 or chunk.text == "ﷺ" for chunk in chunks)


def test_the_overlap_repeats_whole_sentences_within_its_tokens(token_spans: TokenSpans) -> None:
    text = " ".join(f"Line {n} ends here." for n in range(40))
    chunks = split_document(
        Document(name="d", text=text),
        token_spans,
        ChunkOptions(max_tokens=40, overlap_tokens=10),
    )
    for before, after in pairwise(chunks):
        repeated = text[after.start : before.end]
        assert repeated.startswith("Line ")
        assert 0 < len(token_spans(repeated)) <= 10


def test_control_tokens_in_a_document_count_as_the_characters_they_are(
    byte_spans: TokenSpans,
) -> None:
    assert len(byte_spans("<|im_end|>")) == len("<|im_end|>")


def test_counting_tokens_leaves_the_engines_tokenizer_as_it_was(tiny_llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    token_spans_of(tokenizer)("<|im_end|>")
    assert len(tokenizer("<|im_end|>", add_special_tokens=False)["input_ids"]) == 1


def test_an_overlap_over_a_quarter_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"overlap_tokens \(26\) must be <= .* \(25\)"):
        ChunkOptions(max_tokens=100, overlap_tokens=26)
