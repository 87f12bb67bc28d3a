"""What conversations may be called: ids that are safe in URLs and files, titles of one line."""

import re
import unicodedata
import uuid
from typing import Annotated

from pydantic import AfterValidator, StringConstraints, TypeAdapter, ValidationError

from latentmas_core.errors import ConfigError

MAX_ID_CHARS = 128
MAX_DERIVED_TITLE_CHARS = 80

# What is no part of a line of text: control characters and separators of lines.
_NO_LINE = r"\u0000-\u001f\u007f-\u009f\u2028\u2029"
TITLE_PATTERN = rf"^[^{_NO_LINE}]*[^\s{_NO_LINE}][^{_NO_LINE}]*$"


def _not_only_dots(text: str) -> str:
    if not text.strip("."):
        raise ValueError("it is only dots")
    return text


ConversationId = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9._-]+$", max_length=MAX_ID_CHARS),
    AfterValidator(_not_only_dots),
]

_ids = TypeAdapter[str](ConversationId)


def new_id() -> str:
    """Of a conversation that its client gave none."""
    return uuid.uuid4().hex


def check_id(conversation_id: str) -> str:
    """Raise ConfigError unless it may be the id of a conversation."""
    try:
        return _ids.validate_python(conversation_id, strict=True)
    except ValidationError:
        raise ConfigError(
            f"conversation_id is {_shown(conversation_id)}; it has 1 to {MAX_ID_CHARS} characters "
            "of A-Z, a-z, 0-9, '.', '_' and '-', and not only dots. Choose another.",
            param="conversation_id",
        ) from None


def check_title(title: str, max_chars: int) -> str:
    """The title without blanks around it. ConfigError for one that is empty, too long or no line
    of text."""
    title = title.strip(" ")
    if not 1 <= len(title) <= max_chars:
        raise ConfigError(
            f"title has {len(title)} characters; it has 1 to {max_chars} "
            "(conversations.max_title_chars). Choose another.",
            param="title",
        )
    if not re.fullmatch(TITLE_PATTERN, title) or any("\ud800" <= c <= "\udfff" for c in title):
        raise ConfigError(
            f"title is {_shown(title)}; it is one line of text without control characters. "
            "Correct it.",
            param="title",
        )
    return title


def title_of(question: str, max_chars: int) -> str | None:
    """The beginning of a first question on one line; None if it has nothing that can be shown."""
    shown = "".join(" " if unicodedata.category(char)[0] == "C" else char for char in question)
    line = " ".join(shown.split())
    limit = min(max_chars, MAX_DERIVED_TITLE_CHARS)
    return line[:limit].strip() or None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:80]}...")
