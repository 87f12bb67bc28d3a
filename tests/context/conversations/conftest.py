"""Databases for conversations: a file of SQLite's, and a real PostgreSQL server."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from latentmas_core.context.conversations.config import ConversationsConfig
from latentmas_core.context.conversations.conversations import Conversations
from tests.context.conversations.clock import Clock
from tests.context.conversations.postgres import PostgresServer, find_postgres, is_required


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    programs = find_postgres()
    if programs is None:
        message = "no PostgreSQL server is installed. Try: make postgres"
        pytest.fail(message) if is_required() else pytest.skip(message)
    server = PostgresServer(programs)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a database that may hold what other tests left, under their own tenants."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/folder/conversations.db"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.url


@pytest.fixture
def tenant(request: pytest.FixtureRequest) -> str:
    """One for each test."""
    return request.node.name


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def conversations(url: str, clock: Clock) -> AsyncIterator[Conversations]:
    opened = Conversations(ConversationsConfig(url=url), clock=clock)
    yield opened
    await opened.close()
