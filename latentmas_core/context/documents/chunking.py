"""Cuts a document into passages of at most so many tokens, at ends of paragraphs or sentences.

Knows a tokenizer only as a function from a text to the spans of its tokens.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator
from tokenizers import Tokenizer

from latentmas_core.config import FrozenModel
from latentmas_core.context.documents.document import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The tokens of a text, as [start, end) of its characters, in order.
TokenSpans = Callable[[str], list[tuple[int, int]]]

_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")
_SENTENCE = re.compile(r"[.!?…][\"'”’)\]]*\s+|[。！？]\s*")  # noqa: RUF001 (Chinese, Japanese)
_LINE = re.compile(r"\n+")
_WORD = re.compile(r"\s+")
_CUTS = (_PARAGRAPH, _SENTENCE, _LINE, _WORD)  # the best place to cut first


class ChunkOptions(FrozenModel):
    """How long passages are, and how much of each the next one repeats; both in tokens."""

    max_tokens: int = Field(default=200, ge=16, le=8192)
    """Tokens of a passage. Shorter ones are found more exactly, longer ones say more."""
    overlap_tokens: int = Field(default=40, ge=0)
    """Tokens that each passage repeats of the one before it; at most a quarter of `max_tokens`."""

    @model_validator(mode="after")
    def _overlap_is_the_smaller_part(self) -> Self:
        limit = self.max_tokens // 4
        if self.overlap_tokens > limit:
            raise ValueError(
                f"overlap_tokens ({self.overlap_tokens}) must be <= a quarter of max_tokens "
                f"({limit}). Lower it, or raise max_tokens"
            )
        return self


@dataclass(frozen=True)
class Chunk:
    """The characters [start, end) of a document; ``index`` counts its chunks from 0."""

    document: Document
    index: int
    start: int
    end: int
    num_tokens: int

    @property
    def text(self) -> str:
        return self.document.text[self.start : self.end]


def token_spans_of(tokenizer: "PreTrainedTokenizerBase") -> TokenSpans:
    """The tokens that a text takes in a prompt, where control tokens in it are characters.

    Works on a copy: transformers sets switches on its tokenizer at each call, so another thread
    must not use the engine's own.
    """
    return token_spans_of_json(tokenizer.backend_tokenizer.to_str())


def token_spans_of_json(tokenizer_json: str) -> TokenSpans:
    """The same of a tokenizer that was written out, as in tokenizer.json."""
    own = Tokenizer.from_str(tokenizer_json)
    own.encode_special_tokens = True
    own.no_truncation()
    own.no_padding()
    return lambda text: own.encode(text, add_special_tokens=False).offsets


def split_document(
    document: Document, token_spans: TokenSpans, options: ChunkOptions
) -> tuple[Chunk, ...]:
    """Chunks in reading order; together they cover every character of the document."""
    return tuple(_Cutter(document, token_spans, options).chunks())


class _Cutter:
    """Walks through one document."""

    def __init__(self, document: Document, token_spans: TokenSpans, options: ChunkOptions) -> None:
        self._document = document
        self._text = document.text
        self._token_spans = token_spans
        self._options = options
        # The parts of a character that takes several tokens all start where it does.
        self._token_starts = sorted(start for start, _ in token_spans(self._text))

    def chunks(self) -> Iterator[Chunk]:
        start, index = 0, 0
        while start < len(self._text):
            end, num_tokens = self._end_of(start)
            yield Chunk(self._document, index, start, end, num_tokens)
            if end == len(self._text):
                return
            start, index = self._start_after(start, end), index + 1

    def _end_of(self, start: int) -> tuple[int, int]:
        """Where a chunk from ``start`` on ends, and its tokens."""
        max_tokens = self._options.max_tokens
        end = self._after_tokens(start, max_tokens)
        if end < len(self._text):
            end = self._last_cut(self._after_tokens(start, max_tokens // 2), end)
        while True:
            end = max(end, start + 1)  # one character may be more tokens than a chunk may have
            num_tokens = len(self._token_spans(self._text[start:end]))
            if num_tokens <= max_tokens or end == start + 1:
                return end, num_tokens
            # Cut out of its text a piece may take some tokens more than it took there.
            end = self._after_tokens(end, max_tokens - num_tokens)

    def _start_after(self, start: int, end: int) -> int:
        """Where the chunk behind [start, end) starts: within it by the overlap, or at its end."""
        if not self._options.overlap_tokens:
            return end
        begin = max(start + 1, self._after_tokens(end, -self._options.overlap_tokens))
        for pattern in _CUTS:
            for cut in pattern.finditer(self._text, begin, end):
                if cut.end() < end:
                    return cut.end()
        return begin

    def _after_tokens(self, position: int, num_tokens: int) -> int:
        """The start of the token that is so many behind ``position`` (before it, if negative)."""
        index = bisect_left(self._token_starts, position) + num_tokens
        in_text = index < len(self._token_starts)
        return self._token_starts[max(0, index)] if in_text else len(self._text)

    def _last_cut(self, begin: int, end: int) -> int:
        """The last of the best places in (begin, end]; ``end`` where there is none."""
        for pattern in _CUTS:
            places = [cut.end() for cut in pattern.finditer(self._text, begin, end)]
            if places:
                return places[-1]
        return end
