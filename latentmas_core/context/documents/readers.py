"""From files and bytes to documents: which format a name says, and the limits of them all.

Knows nothing of the formats themselves, of networks or of chunks.
"""

import os
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from latentmas_core.config import FrozenModel
from latentmas_core.context.documents.document import MAX_NAME_CHARS, Document, too_large
from latentmas_core.context.documents.html_text import html_text
from latentmas_core.context.documents.pdf_text import pdf_pages
from latentmas_core.context.documents.plain_text import csv_text, decoded, json_text
from latentmas_core.errors import DocumentError

_PAGE_BREAK = "\n\n"


class Format(StrEnum):
    """What a document is written in."""

    TEXT = "text"
    MARKDOWN = "markdown"
    JSON = "json"
    CSV = "csv"
    HTML = "html"
    PDF = "pdf"


_FORMAT_OF = {
    ".txt": Format.TEXT,
    ".text": Format.TEXT,
    ".md": Format.MARKDOWN,
    ".markdown": Format.MARKDOWN,
    ".json": Format.JSON,
    ".csv": Format.CSV,
    ".tsv": Format.CSV,
    ".html": Format.HTML,
    ".htm": Format.HTML,
    ".pdf": Format.PDF,
}


class ReadLimits(FrozenModel):
    """What may be read: bytes of one file, characters and pages that come out of it, files of a
    folder."""

    max_bytes: int = Field(default=10 * 2**20, ge=1)
    max_chars: int = Field(default=2_000_000, ge=1)
    max_pages: int = Field(default=1_000, ge=1)
    max_files: int = Field(default=1_000, ge=1)


DEFAULT_LIMITS = ReadLimits()


class FolderReading(NamedTuple):
    """What came of a folder; ``skipped`` are the files in no format that is read, links and hidden
    ones left out."""

    documents: tuple[Document, ...]
    skipped: tuple[str, ...]


def format_of(name: str) -> Format | None:
    """The format that the ending of a name says; None if it says none."""
    return _FORMAT_OF.get(Path(name).suffix.lower())


def read_documents(path: Path, limits: ReadLimits = DEFAULT_LIMITS) -> FolderReading:
    """One file, or a folder with all below it. Raises DocumentError as the other two do."""
    if path.is_dir():
        return read_folder(path, limits)
    return FolderReading((read_file(path, limits),), ())


def read_file(
    path: Path, limits: ReadLimits = DEFAULT_LIMITS, *, name: str | None = None
) -> Document:
    """The document in ``path``, called by its file name unless ``name`` is given.

    Raises DocumentError for a file that is not there, too large, or not what its ending says.
    """
    name = name or path.name
    try:
        if not path.is_file() and path.exists():  # a pipe or a device may never end
            raise OSError(0, "it is no regular file")
        with path.open("rb") as file:
            content = file.read(limits.max_bytes + 1)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise DocumentError(
            f"document {str(path)!r} cannot be read: {error.strerror}. Check the path.",
            param="documents",
        ) from error
    if len(content) > limits.max_bytes:
        raise too_large(name, f"{size} bytes", f"max_bytes ({limits.max_bytes})")
    return read_bytes(content, name, limits)


def read_folder(folder: Path, limits: ReadLimits = DEFAULT_LIMITS) -> FolderReading:
    """All files below ``folder`` in the order of their paths, called by their path within it.

    Raises DocumentError for one that cannot be read, more files than the limit, or none at all.
    """
    files = sorted(_files_below(folder, limits.max_files))
    names = [path.relative_to(folder).as_posix() for path in files]
    documents = tuple(
        read_file(path, limits, name=name)
        for path, name in zip(files, names, strict=True)
        if format_of(name)
    )
    if not documents:
        raise DocumentError(
            f"folder {str(folder)!r} holds no document. Put files in it that end in "
            f"{', '.join(_FORMAT_OF)}.",
            param="documents",
        )
    return FolderReading(documents, tuple(name for name in names if not format_of(name)))


def read_bytes(
    content: bytes,
    name: str,
    limits: ReadLimits = DEFAULT_LIMITS,
    *,
    written_in: Format | None = None,
) -> Document:
    """The document that ``content`` is, in the format that ``written_in`` or its name says.

    Raises DocumentError for content that is empty, too large or broken, and for unknown formats.
    """
    written_in = written_in or format_of(name)
    if written_in is None:
        raise DocumentError(
            f"document {name!r} is in no known format. Rename it to end in one of "
            f"{', '.join(_FORMAT_OF)}.",
            param="documents",
        )
    if len(content) > limits.max_bytes:
        raise too_large(name, f"{len(content)} bytes", f"max_bytes ({limits.max_bytes})")
    pages = _pages(content, name, written_in, limits)
    text = _PAGE_BREAK.join(pages)
    if not text.strip():
        remedy = "Recognise its text first (OCR)" if written_in is Format.PDF else "Fill it"
        raise DocumentError(
            f"document {name!r} ({len(content)} bytes) holds no text. {remedy}, or leave it out.",
            param="documents",
        )
    if len(text) > limits.max_chars:
        raise too_large(name, f"{len(text)} characters", f"max_chars ({limits.max_chars})")
    starts = _starts(pages) if written_in is Format.PDF else ()
    # A name on disk may be no UTF-8.
    readable = name[-MAX_NAME_CHARS:].encode(errors="replace").decode()
    return Document(name=readable, text=text, page_starts=starts)


def _pages(content: bytes, name: str, written_in: Format, limits: ReadLimits) -> list[str]:
    if written_in is Format.PDF:
        return pdf_pages(content, name, max_pages=limits.max_pages, max_chars=limits.max_chars)
    text = decoded(content, name)
    if written_in is Format.JSON:
        return [json_text(text, name)]
    if written_in is Format.CSV:
        return [csv_text(text, name)]
    return [html_text(text) if written_in is Format.HTML else text]


def _starts(pages: list[str]) -> tuple[int, ...]:
    starts, position = [], 0
    for page in pages:
        starts.append(position)
        position += len(page) + len(_PAGE_BREAK)
    return tuple(starts)


def _files_below(folder: Path, max_files: int) -> Iterator[Path]:
    """Regular files; neither links, which may lead out of the folder, nor hidden ones."""
    num_files = 0
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(parent, name)
            if name.startswith(".") or path.is_symlink():
                continue
            num_files += 1
            if num_files > max_files:
                raise DocumentError(
                    f"folder {str(folder)!r} holds more than max_files ({max_files}). Choose a "
                    "folder within it, or raise the limit.",
                    param="documents",
                )
            yield path
