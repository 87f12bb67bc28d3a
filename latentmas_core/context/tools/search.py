"""The tool that looks something up in documents; how it is found is for others to say."""

from collections.abc import Callable, Sequence
from typing import Annotated, Protocol

from pydantic import Field, StringConstraints

from latentmas_core.config import FrozenModel, JsonInt
from latentmas_core.context.tools.tool import DEFAULT_TIMEOUT_S, Tool

SEARCH_DOCUMENTS = "search_documents"
MAX_QUERY_CHARS = 1000
MAX_PASSAGES = 10


class Passage(Protocol):
    """What a search finds: a text, and where it is from."""

    @property
    def text(self) -> str: ...

    @property
    def source(self) -> str: ...


class Query(FrozenModel):
    """What is looked for, and how much of it is wanted."""

    query: Annotated[str, StringConstraints(min_length=1, max_length=MAX_QUERY_CHARS)]
    max_passages: Annotated[JsonInt, Field(ge=1, le=MAX_PASSAGES)] = 4


def document_search_tool(
    search: Callable[[str, int], Sequence[Passage]], *, timeout_s: float = DEFAULT_TIMEOUT_S
) -> Tool:
    """``search`` takes a query and how many passages to return at most, the best first.

    It runs in a thread. Passages are quoted line by line below their sources, for the answer to
    name; they have no numbers, since those of several calls would be the same.
    """

    def find(asked: Query) -> str:
        found = search(asked.query, asked.max_passages)[: asked.max_passages]
        return "\n\n".join(map(_quoted, found)) or "Nothing was found. Try other words."

    return Tool(
        SEARCH_DOCUMENTS,
        "Searches the documents of this conversation and returns the passages that fit best.",
        Query,
        find,
        timeout_s=timeout_s,
    )


def _quoted(passage: Passage) -> str:
    """So that no text of a document looks like another source, or like the end of this one."""
    lines = [f"> {line}".rstrip() for line in passage.text.strip().splitlines()]
    return "\n".join([f"{' '.join(passage.source.split())}:", *lines])
