"""Documents as a command line names them: files, folders, addresses, JSON; for requests."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from latentmas_core.context.documents.document import (
    DocumentInput,
    DocumentInputs,
    InlineDocument,
    LinkedDocument,
)
from latentmas_core.errors import ConfigError
from latentmas_core.validation import validated

if TYPE_CHECKING:
    from latentmas_core.context.documents.document import Document

_SCHEMES = ("http://", "https://")
_NAMELESS = "text"


class ReadDocuments(NamedTuple):
    """``skipped``: files of a folder that are in no format that is read."""

    documents: tuple[DocumentInput, ...]
    skipped: tuple[str, ...] = ()

    @property
    def notice(self) -> str | None:
        """What is to be told of what was skipped."""
        if not self.skipped:
            return None
        return f"left out, in no format that is read: {', '.join(self.skipped)}"

    def and_then(self, more: "ReadDocuments") -> "ReadDocuments":
        return ReadDocuments(self.documents + more.documents, self.skipped + more.skipped)


def read_source(source: str) -> ReadDocuments:
    """An address, a file or a folder. DocumentError and ConfigError for what cannot be read."""
    if source.lower().startswith(_SCHEMES):
        return ReadDocuments((link_to(source),))
    return read_path(Path(source))


def link_to(url: str) -> LinkedDocument:
    """Whoever answers fetches it, and says which addresses are allowed."""
    return validated(LinkedDocument, {"url": url})


def read_path(path: Path) -> ReadDocuments:
    """A file, or a folder with all below it; read here, wherever the question goes."""
    from latentmas_core.context.documents.readers import read_documents

    found = read_documents(path.expanduser())
    return ReadDocuments(tuple(map(_inline, found.documents)), found.skipped)


def read_json(text: str) -> tuple[DocumentInput, ...]:
    """A document as requests carry it, or a list of them. ConfigError for anything else."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"it is no JSON: {error}.") from None
    try:
        inputs: tuple[DocumentInput, ...] = TypeAdapter(DocumentInputs).validate_python(
            tuple(value) if isinstance(value, list) else (value,)
        )
    except ValidationError:
        raise ConfigError(
            'a document is a text, {"text": ..., "name": ...} or {"url": ...}; up to 100 in a list.'
        ) from None
    return inputs


def as_field(documents: Sequence[DocumentInput]) -> list[Any]:
    """The field ``documents`` of a request."""
    return [one if isinstance(one, str) else one.model_dump(exclude_none=True) for one in documents]


def name_of(document: DocumentInput) -> str:
    """What a list of them calls it."""
    if isinstance(document, LinkedDocument):
        return document.url
    if isinstance(document, InlineDocument):
        return document.name or _NAMELESS
    return _NAMELESS


def _inline(document: "Document") -> InlineDocument:
    return validated(InlineDocument, {"name": document.name, "text": document.text})
