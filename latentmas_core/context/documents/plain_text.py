"""Formats that are text: decoding, JSON and CSV, each as lines that a model can read."""

import csv
import io
import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from latentmas_core.errors import DocumentError

_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")  # all but blanks and escape
_DELIMITERS = ",;\t|"


def decoded(content: bytes, name: str) -> str:
    """Text in UTF-8, or UTF-16 with its mark; line ends become ``\\n``.

    Raises DocumentError for anything else: a picture, a program, another encoding.
    """
    encoding = "utf-16" if content.startswith(_UTF16_MARKS) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise _not_text(name, f"byte {error.start} is no {encoding[:6].upper()}") from None
    if control := _CONTROL.search(text):
        raise _not_text(name, f"character {control.start()} is U+{ord(control[0]):04X}")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def json_text(text: str, name: str) -> str:
    """One ``path: value`` a line; the entries of the outermost list or object are paragraphs."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        paragraphs = ["\n".join(_lines(part, path)) for path, part in _entries(value)]
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DocumentError(
            f"document {name!r} is no valid JSON: {reason}. Repair it, or name it .txt.",
            param="documents",
        ) from None
    # A string may spell half a surrogate pair, which no tokenizer can read.
    return "\n\n".join(paragraphs).encode(errors="replace").decode()


def csv_text(text: str, name: str) -> str:
    """One row a line, each value behind the name of its column, so that a row says it all."""
    head = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=head.count)
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise DocumentError(
            f"document {name!r} is no valid CSV: {error}. Repair it, or name it .txt.",
            param="documents",
        ) from None
    columns, *records = rows or [[]]
    if not records:
        return " | ".join(columns)
    return "\n".join(_record(columns, values) for values in records if any(values))


def _not_text(name: str, what: str) -> DocumentError:
    return DocumentError(
        f"document {name!r} is not text: {what}. Save it as UTF-8, or name it by its format.",
        param="documents",
    )


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list):
        yield from (("", part) for part in value)
    else:
        yield "", value


def _lines(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _lines(part, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for part in value:
            yield from _lines(part, path)
    elif value is not None:
        said = value if isinstance(value, str) else json.dumps(value)
        yield f"{path}: {said}" if path else said


def _record(columns: list[str], values: list[str]) -> str:
    named = [
        f"{columns[i]}: {value}" if i < len(columns) and columns[i] else value
        for i, value in enumerate(values)
        if value
    ]
    return " | ".join(" ".join(part.split()) for part in named)
