"""What may be done for a question beyond reasoning about it: options of documents and tools."""

from pydantic import Field

from latentmas_core.config import FrozenModel
from latentmas_core.context.documents.fetching import FetchPolicy
from latentmas_core.context.documents.library import LibraryOptions
from latentmas_core.context.tools.loop import ToolLimits

# A vector takes some 50 to 90 ms of a core, and nobody's limits count them.
MAX_EMBEDDED_CHUNKS = 100


class DocumentsConfig(FrozenModel):
    """How documents of a request are had and searched.

    Those of one request have ``max_chars`` together. The question is shown with ``max_passages`` at
    most, and with no more than ``max_tokens`` of them, less where the model's positions are fewer.
    ``finds_by_meaning``: where the extra ``dense`` is installed; else words alone decide.
    """

    fetching: FetchPolicy = FetchPolicy()
    library: LibraryOptions = LibraryOptions(max_embedded_chunks=MAX_EMBEDDED_CHUNKS)
    max_chars: int = Field(default=5_000_000, ge=1)
    max_passages: int = Field(default=4, ge=1, le=32)
    max_tokens: int = Field(default=2048, ge=64)
    finds_by_meaning: bool = True


class ContextConfig(FrozenModel):
    """Options of all that may belong to a question."""

    documents: DocumentsConfig = DocumentsConfig()
    tools: ToolLimits = ToolLimits()
