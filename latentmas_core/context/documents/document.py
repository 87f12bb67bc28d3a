"""Documents, what a request may say of them, and where a passage stands. Reads and fetches nothing.

All offsets are characters of ``Document.text``, counted from 0; lines and pages count from 1.
"""

import re
from bisect import bisect_right
from typing import Annotated, Any, NamedTuple, Self

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)

from latentmas_core.config import FrozenModel
from latentmas_core.context.documents.urls import parsed_url
from latentmas_core.errors import DocumentError

MAX_DOCUMENTS = 100
MAX_DOCUMENT_CHARS = 1_000_000
MAX_NAME_CHARS = 200
MAX_URL_CHARS = 2_048

# What a name could end its line with, or look like a number of a source with.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\[\]]+")


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("it holds no text. Leave the document out, or fill it")
    return text


def _fetchable(url: str) -> str:
    try:
        parsed_url(url)
    except DocumentError as error:
        raise ValueError(str(error)) from None
    return url


_HasText = Field(json_schema_extra={"pattern": r"\S"})
_Strict = StringConstraints(strict=True, min_length=1)

DocumentName = Annotated[
    str,
    _Strict,
    StringConstraints(max_length=MAX_NAME_CHARS),
    AfterValidator(_not_blank),
    _HasText,
]
DocumentText = Annotated[
    str,
    _Strict,
    StringConstraints(max_length=MAX_DOCUMENT_CHARS),
    AfterValidator(_not_blank),
    _HasText,
]
DocumentUrl = Annotated[
    str,
    _Strict,
    StringConstraints(max_length=MAX_URL_CHARS),
    AfterValidator(_fetchable),
    Field(json_schema_extra={"pattern": r"^[Hh][Tt][Tt][Pp][Ss]?://[^\x00-\x20\x7f\\]+$"}),
]


class InlineDocument(FrozenModel):
    """A document that a request carries in full."""

    name: DocumentName | None = None
    """What citations call it; without one its number."""
    text: DocumentText
    """All of it."""


class LinkedDocument(FrozenModel):
    """A document that is fetched from ``url``, http or https, as FetchPolicy allows."""

    url: DocumentUrl
    """http or https; which hosts are fetched from is the operator's choice."""


def _kind_of_input(given: Any) -> str:
    if isinstance(given, str):
        return "text"
    has_url = isinstance(given, LinkedDocument) or (isinstance(given, dict) and "url" in given)
    return "linked" if has_url else "inline"


# A plain string is the text itself, never an address. Told apart first, so that an error speaks of
# the kind that was meant.
DocumentInput = Annotated[
    Annotated[DocumentText, Tag("text")]
    | Annotated[InlineDocument, Tag("inline")]
    | Annotated[LinkedDocument, Tag("linked")],
    Discriminator(_kind_of_input),
]
DocumentInputs = Annotated[tuple[DocumentInput, ...], Field(max_length=MAX_DOCUMENTS)]


class SourceRange(NamedTuple):
    """First and last page or line of a passage."""

    first: int
    last: int


class Document(FrozenModel):
    """A text and what it is called."""

    name: DocumentName
    """What citations call it."""
    text: str
    """All of it."""
    page_starts: tuple[int, ...] = ()
    """Offsets at which its pages begin, where it has pages."""
    url: str | None = None
    """Where it was fetched from, after all redirects."""

    @model_validator(mode="after")
    def _pages_are_in_order(self) -> Self:
        starts = self.page_starts
        if starts and (starts[0] != 0 or list(starts) != sorted(starts)):
            raise ValueError("page_starts must begin with 0 and never go back")
        if starts and starts[-1] > len(self.text):
            raise ValueError("page_starts must lie within the text")
        return self

    def pages_of(self, start: int, end: int) -> SourceRange | None:
        """The pages that the characters [start, end) stand on; None for a text without pages."""
        if not self.page_starts:
            return None
        last_char = max(start, end - 1)
        first = bisect_right(self.page_starts, start)
        return SourceRange(first, bisect_right(self.page_starts, last_char))

    def lines_of(self, start: int, end: int) -> SourceRange:
        """The lines that the characters [start, end) stand on."""
        first = self.text.count("\n", 0, start) + 1
        return SourceRange(first, first + self.text.count("\n", start, max(start, end - 1)))


class Citation(FrozenModel):
    """A passage that was shown with the question."""

    document: str
    """The document's name."""
    chunk: int
    """Which passage of it, from 0."""
    start: int
    """The passage's first character in the document, from 0."""
    end: int
    """The character behind its last."""
    pages: tuple[int, int] | None = None
    """First and last page, where it has pages."""
    lines: tuple[int, int] | None = None
    """First and last line, where it has none."""
    text: str
    """The passage."""
    score: float
    """Orders the citations of one answer; means nothing between answers."""
    url: str | None = None
    """Where the document was fetched from."""

    @property
    def source(self) -> str:
        """Where it stands, in one line: ``manual.pdf, pages 3-4``."""
        name = " ".join(_UNPRINTABLE.sub(" ", self.document).split())
        what, place = ("page", self.pages) if self.pages else ("line", self.lines)
        if place is None:
            return name
        first, last = place
        return f"{name}, {what} {first}" if first == last else f"{name}, {what}s {first}-{last}"


def too_large(name: str, size: str, limit: str) -> DocumentError:
    """``size`` and ``limit`` with their units."""
    return DocumentError(
        f"document {name!r} has {size}, which is more than {limit}. Split it, or raise the limit.",
        param="documents",
    )
