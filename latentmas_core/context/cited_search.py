"""Looks passages up for one question, and keeps which the answer may rest on."""

import threading
from collections.abc import Sequence

from latentmas_core.context.config import DocumentsConfig
from latentmas_core.context.documents.document import Citation, Document
from latentmas_core.context.documents.embedding import Embedder
from latentmas_core.context.documents.library import Library
from latentmas_core.context.documents.prompting import show_sources
from latentmas_core.context.reading import Reading


class CitedSearch:
    """Over the documents of one question. Its methods compute, so they are called in threads."""

    def __init__(
        self, documents: Sequence[Document], reading: Reading, config: DocumentsConfig
    ) -> None:
        self._reading = reading
        self._config = config
        by_meaning = config.finds_by_meaning and Embedder.is_installed()
        self._library = Library(
            documents,
            reading.token_spans,
            options=config.library,
            embedder=Embedder.load() if by_meaning else None,
        )
        self._lock = threading.Lock()
        self._citations: dict[tuple[str, int, str], Citation] = {}

    @property
    def citations(self) -> tuple[Citation, ...]:
        """What was shown or found so far, in that order, each passage once."""
        with self._lock:
            return tuple(self._citations.values())

    def preamble_to(self, question: str, *, max_tokens: int) -> str:
        """The passages that fit ``question`` best or, where none does, the first ones; empty if
        there is no room for any within ``max_tokens``, the question's own included."""
        max_passages = self._config.max_passages
        hits = self._library.search(question, max_passages) or self._library.opening(max_passages)
        budget = min(self._config.max_tokens, max_tokens)
        shown = show_sources(
            question, hits, max_tokens=budget, token_spans=self._reading.token_spans
        )
        self._note(shown.citations)
        return shown.text.removesuffix(question)

    def find(self, query: str, max_passages: int) -> list[Citation]:
        """For the tool that searches documents."""
        found = [hit.citation for hit in self._library.search(query, max_passages)]
        self._note(found)
        return found

    def _note(self, citations: Sequence[Citation]) -> None:
        with self._lock:
            for citation in citations:
                # Documents may have the same name.
                key = (citation.document, citation.chunk, citation.text)
                self._citations.setdefault(key, citation)
