"""The URL of the database: which are taken, and that its password shows nowhere."""

import pytest
from pydantic import ValidationError

from latentmas_core.context.conversations.config import ConversationsConfig, default_url
from latentmas_core.errors import ConfigError
from latentmas_core.validation import validated


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("sqlite:////srv/c.db", "sqlite+pysqlite"),
        ("sqlite:///c.db", "sqlite+pysqlite"),
        ("postgresql://user@host/name", "postgresql+psycopg"),
        ("postgresql+psycopg://user:password@host:5433/name?sslmode=require", "postgresql+psycopg"),
    ],
)
def test_url_of_sqlite_or_postgresql_is_taken(url, driver):
    assert ConversationsConfig(url=url).database_url.drivername == driver


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "cannot be read"),
        ("/srv/c.db", "cannot be read"),
        ("postgresql://user:secret@host:port/name", "cannot be read"),
        ("mysql://user:secret@host/name", "'mysql'"),
        ("postgresql+asyncpg://user:secret@host/name", "'postgresql.asyncpg'"),
        ("postgresql://user:secret@host", "names no database"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:///file:x?mode=memory&uri=true", "names no file"),
    ],
)
def test_other_url_is_refused_without_telling_its_password(url, why):
    with pytest.raises(ValidationError, match=why) as refused:
        ConversationsConfig(url=url)
    assert "secret" not in str(refused.value)
    with pytest.raises(ConfigError, match=why) as told:
        validated(ConversationsConfig, {"url": url})
    assert "secret" not in told.value.message


def test_password_is_not_in_what_the_config_is_printed_as():
    config = ConversationsConfig(url="postgresql://user:secret@host/name")
    assert "secret" not in f"{config} {config!r} {config.database_url}"


def test_without_a_url_it_is_a_file_in_the_users_folder_of_data(monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", "/of/the/user")
    assert default_url() == "sqlite:////of/the/user/latentmas/conversations.db"
    assert ConversationsConfig().database_url.database == "/of/the/user/latentmas/conversations.db"


@pytest.mark.parametrize(
    "field", ["max_conversations", "max_turns", "max_bytes", "max_title_chars", "max_wait_s"]
)
def test_limits_begin_above_zero(field):
    with pytest.raises(ValidationError, match=field):
        ConversationsConfig(**{field: 0})
