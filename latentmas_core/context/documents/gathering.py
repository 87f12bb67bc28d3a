"""From what a request says of its documents to the documents."""

import asyncio
from collections.abc import Sequence

from latentmas_core.context.documents.document import (
    Document,
    DocumentInput,
    InlineDocument,
    LinkedDocument,
)
from latentmas_core.context.documents.fetching import Fetcher
from latentmas_core.errors import DocumentError

MAX_FETCHES_AT_ONCE = 4


async def gather_documents(
    inputs: Sequence[DocumentInput], fetcher: Fetcher, *, max_chars: int, first_number: int = 1
) -> tuple[Document, ...]:
    """The documents in the order of ``inputs``; those without a name are called by their number,
    which counts from ``first_number``.

    Raises the DocumentError of the first that cannot be had, or with which they have more than
    ``max_chars`` together, and stops fetching the others.
    """
    free = asyncio.Semaphore(MAX_FETCHES_AT_ONCE)
    counter = _Counter(max_chars)

    async def document_of(number: int, given: DocumentInput) -> Document:
        if isinstance(given, LinkedDocument):
            async with free:
                return counter.counted(await fetcher.fetch(given.url))
        named = given if isinstance(given, InlineDocument) else InlineDocument(text=given)
        return counter.counted(Document(name=named.name or f"document {number}", text=named.text))

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(document_of(number, given))
                for number, given in enumerate(inputs, start=first_number)
            ]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return tuple(task.result() for task in tasks)


class _Counter:
    """Counts the characters of documents, as they come."""

    def __init__(self, max_chars: int) -> None:
        self._max_chars = max_chars
        self._num_chars = 0

    def counted(self, document: Document) -> Document:
        self._num_chars += len(document.text)
        if self._num_chars > self._max_chars:
            raise DocumentError(
                f"document {document.name!r} makes {self._num_chars} characters of these "
                f"documents, more than max_chars ({self._max_chars}). Leave some out, or raise the "
                "limit.",
                param="documents",
            )
        return document
