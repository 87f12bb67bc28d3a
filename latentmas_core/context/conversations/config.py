"""Options of conversations: where they are stored, how much of them, how long turns may wait."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from latentmas_core.config import FrozenModel

SQLITE = "sqlite"
POSTGRESQL = "postgresql"
DRIVERS = {SQLITE: "sqlite+pysqlite", POSTGRESQL: "postgresql+psycopg"}

_EXAMPLES = "sqlite:////srv/latentmas/conversations.db or postgresql://user@host/database"


def read_url(text: str) -> URL:
    """The URL with the driver that is used here. ValueError never tells the URL: it may hold a
    password."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError(f"it cannot be read as the URL of a database, as {_EXAMPLES}") from None
    backend = url.get_backend_name()
    if backend not in DRIVERS or url.drivername not in (backend, DRIVERS[backend]):
        raise ValueError(
            f"it is of {url.drivername!r}; conversations are stored in {_EXAMPLES}, without "
            "another driver's name"
        )
    if backend == SQLITE and (not url.database or ":memory:" in url.database or url.query):
        raise ValueError(f"it names no file and nothing but a file. Name one, as {_EXAMPLES}")
    if backend == POSTGRESQL and not url.database:
        raise ValueError(f"it names no database. Name one, as {_EXAMPLES}")
    return url.set(drivername=DRIVERS[backend])


def _readable(text: str) -> str:
    read_url(text)
    return text


def default_url() -> str:
    """SQLite: ``latentmas/conversations.db`` in the user's folder of data."""
    user_data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    path = Path(user_data).expanduser().absolute() / "latentmas" / "conversations.db"
    return f"sqlite:///{path}"


DatabaseUrl = Annotated[str, AfterValidator(_readable)]


class ConversationsConfig(FrozenModel):
    """Where conversations are stored, and how much of them.

    Turns on one conversation take place one after the other; the claim of a turn is renewed while
    it runs.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    url: DatabaseUrl | None = Field(default=None, repr=False)
    """`sqlite:////path/to/file.db` or `postgresql://user@host/database`; null: SQLite in the user's
    folder of data. PostgreSQL for an ingress on several nodes."""
    max_conversations: int = Field(default=1000, ge=1)
    """Conversations of a tenant; above it 422."""
    max_turns: int = Field(default=1000, ge=1)
    """A conversation takes turns while it has fewer."""
    max_bytes: int = Field(default=8 * 2**20, ge=1)
    """A conversation takes turns while they have fewer bytes, so the last one may go beyond."""
    max_title_chars: int = Field(default=200, ge=1, le=1000)
    """The most characters of a title."""
    max_history_turns: int = Field(default=64, ge=0, le=1000)
    """The most turns that a question is told of, the latest ones."""
    max_history_tokens: int = Field(default=2048, ge=0)
    """The most tokens of turns that a question is told of; more cost time in every agent."""
    max_wait_s: float = Field(default=60.0, gt=0.0, allow_inf_nan=False)
    """Seconds that a turn waits for those before it on the same conversation; after it 409."""
    lease_s: float = Field(default=30.0, gt=0.0, allow_inf_nan=False)
    """Seconds that a turn whose process died keeps the others waiting."""

    @property
    def database_url(self) -> URL:
        return read_url(self.url or default_url())
