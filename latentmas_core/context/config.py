"""What may be done for a question beyond reasoning about it: options of documents and tools."""

from pydantic import Field

from latentmas_core.config import FrozenModel
from latentmas_core.context.documents.fetching import FetchPolicy
from latentmas_core.context.documents.library import LibraryOptions
from latentmas_core.context.tools.loop import ToolLimits

# A vector takes some 50 to 90 ms of a core, and nobody's limits count them.
MAX_EMBEDDED_CHUNKS = 100


class DocumentsConfig(FrozenModel):
    """How documents of a request are had and searched."""

    fetching: FetchPolicy = FetchPolicy()
    """Which addresses are fetched, and how much of them."""
    library: LibraryOptions = LibraryOptions(max_embedded_chunks=MAX_EMBEDDED_CHUNKS)
    """How documents are cut into passages."""
    max_chars: int = Field(default=5_000_000, ge=1)
    """Characters that the documents of one request have together; above it 422."""
    max_passages: int = Field(default=4, ge=1, le=32)
    """Passages that a question is shown with, at most."""
    max_tokens: int = Field(default=2048, ge=64)
    """Tokens of passages that a question is shown with, at most; fewer where the model has fewer
    positions."""
    finds_by_meaning: bool = True
    """Search by meaning beside words, where the extra `dense` is installed. It takes tens of
    milliseconds of a core per passage."""


class ContextConfig(FrozenModel):
    """Options of all that may belong to a question."""

    documents: DocumentsConfig = DocumentsConfig()
    """How documents of a request are had and searched."""
    tools: ToolLimits = ToolLimits()
    """What bounds the calls of tools."""
