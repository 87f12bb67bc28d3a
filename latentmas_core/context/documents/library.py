"""Documents that can be searched: by words always, by meaning where an embedder is given.

Immutable once built and owned by whoever built it: one request, one conversation, one tenant.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from latentmas_core.config import FrozenModel
from latentmas_core.context.documents.chunking import (
    Chunk,
    ChunkOptions,
    TokenSpans,
    split_document,
)
from latentmas_core.context.documents.document import Citation, Document
from latentmas_core.context.documents.embedding import Embedder
from latentmas_core.context.documents.words import WordIndex
from latentmas_core.errors import DocumentError

# Cormack, Clarke and Buettcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank
# Learning Methods", SIGIR 2009: the sum of 1 / (60 + rank) over the rankings that hold a passage.
RRF_K = 60
DEPTH_FACTOR = 2


class LibraryOptions(FrozenModel):
    """How documents are cut, and how many passages they may make."""

    chunks: ChunkOptions = ChunkOptions()
    """How long passages are."""
    max_chunks: int = Field(default=5_000, ge=1)
    """Passages that the documents of one request may make."""
    max_embedded_chunks: int = Field(default=500, ge=0)
    """Passages that are searched by meaning too; where there are more, words alone decide: a vector
    takes tens of milliseconds of a core."""


DEFAULT_OPTIONS = LibraryOptions()


class Hit(NamedTuple):
    """A passage that was found. ``word_rank`` and ``dense_rank`` count from 1; None: not among the
    candidates of that ranking."""

    chunk: Chunk
    score: float
    word_rank: int | None = None
    dense_rank: int | None = None

    @property
    def citation(self) -> Citation:
        """With pages where the document has any, else with lines."""
        chunk, document = self.chunk, self.chunk.document
        first = chunk.end - len(chunk.text.lstrip())  # blanks around it are on no page of its own
        last = chunk.start + len(chunk.text.rstrip())
        pages = document.pages_of(first, last)
        return Citation(
            document=document.name,
            chunk=chunk.index,
            start=chunk.start,
            end=chunk.end,
            pages=pages,
            lines=None if pages else document.lines_of(first, last),
            text=chunk.text,
            score=self.score,
            url=document.url,
        )


class Library:
    """The passages of some documents in reading order, and what finds them."""

    def __init__(
        self,
        documents: Sequence[Document],
        token_spans: TokenSpans,
        *,
        options: LibraryOptions = DEFAULT_OPTIONS,
        embedder: Embedder | None = None,
    ) -> None:
        """Raises DocumentError for more passages than ``options`` allow."""
        self.chunks = _chunks(documents, token_spans, options)
        # A title says what the passages under it are about, and they may not.
        texts = [f"{chunk.document.name}\n{chunk.text}" for chunk in self.chunks]
        self._words = WordIndex(texts) if texts else None
        can_embed = len(texts) <= options.max_embedded_chunks
        self._embedder = embedder if can_embed else None
        self._vectors = self._embedder.embed(texts) if self._embedder and texts else None

    @property
    def has_dense(self) -> bool:
        """Whether passages are found by meaning too, not by their words alone."""
        return self._embedder is not None

    def search(self, query: str, max_chunks: int = 5) -> list[Hit]:
        """The passages for ``query``, best first: both rankings joined by reciprocal rank fusion.

        Each is read to twice the passages that are asked for: far down, chance ranks them, and
        being in both would count for more than being first in one. Without an embedder only those
        that share a word with it are found, so there may be none.
        """
        depth = DEPTH_FACTOR * max_chunks
        word_ranks = _ranks(self.ranked_by_words(query)[:depth])
        dense_ranks = _ranks(self.ranked_by_meaning(query)[:depth])
        hits = [
            Hit(
                chunk=self.chunks[index],
                score=_fused(word_ranks.get(index), dense_ranks.get(index)),
                word_rank=word_ranks.get(index),
                dense_rank=dense_ranks.get(index),
            )
            for index in sorted(word_ranks.keys() | dense_ranks.keys())
        ]
        return sorted(hits, key=lambda hit: -hit.score)[:max_chunks]

    def opening(self, max_chunks: int = 5) -> list[Hit]:
        """The first passages, for a question that is about the whole ("What does it say?")."""
        return [Hit(chunk, score=0.0) for chunk in self.chunks[:max_chunks]]

    def ranked_by_words(self, query: str) -> list[int]:
        """Indices of the passages that share a word with ``query``, by BM25."""
        if self._words is None:
            return []
        scores = self._words.scores(query)
        return [index for index in _descending(scores) if scores[index] > 0.0]

    def ranked_by_meaning(self, query: str) -> list[int]:
        """Indices of the passages nearest to ``query``, by cosine; empty without an embedder."""
        if self._embedder is None or self._vectors is None:
            return []
        return _descending(self._vectors @ self._embedder.embed([query])[0])


def _chunks(
    documents: Sequence[Document], token_spans: TokenSpans, options: LibraryOptions
) -> tuple[Chunk, ...]:
    chunks: list[Chunk] = []
    for document in documents:
        split = split_document(document, token_spans, options.chunks)
        chunks += (chunk for chunk in split if chunk.text.strip())
        if len(chunks) > options.max_chunks:
            raise DocumentError(
                f"document {document.name!r} makes {len(chunks)} passages of these documents, more "
                f"than max_chunks ({options.max_chunks}). Leave some out, or raise the limit.",
                param="documents",
            )
    return tuple(chunks)


def _descending(scores: npt.NDArray[np.float32]) -> list[int]:
    # Stable: of equal passages the one that comes first.
    return [int(index) for index in np.argsort(-scores, kind="stable")]


def _ranks(ranking: list[int]) -> dict[int, int]:
    return {index: rank for rank, index in enumerate(ranking, start=1)}


def _fused(*ranks: int | None) -> float:
    return sum(1.0 / (RRF_K + rank) for rank in ranks if rank is not None)
