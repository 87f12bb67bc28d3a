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

MAX_FETCHES_AT_ONCE = 4


async def gather_documents(
    inputs: Sequence[DocumentInput], fetcher: Fetcher
) -> tuple[Document, ...]:
    """The documents in the order of ``inputs``; those without a name are called by their number.

    Raises the DocumentError of the first that cannot be had, and stops fetching the others.
    """
    free = asyncio.Semaphore(MAX_FETCHES_AT_ONCE)

    async def document_of(number: int, given: DocumentInput) -> Document:
        if isinstance(given, LinkedDocument):
            async with free:
                return await fetcher.fetch(given.url)
        named = given if isinstance(given, InlineDocument) else InlineDocument(text=given)
        return Document(name=named.name or f"document {number}", text=named.text)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(document_of(number, given))
                for number, given in enumerate(inputs, start=1)
            ]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return tuple(task.result() for task in tasks)
