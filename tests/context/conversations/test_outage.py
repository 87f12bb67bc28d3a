"""Databases that are down, wrong or silent: an error at once, nothing secret in it, and all well
once they are back.
"""

import asyncio
import sqlite3
import sys

import pytest
from sqlalchemy import create_engine, make_url, text, update
from sqlalchemy.exc import DBAPIError

from latentmas_core.context.conversations import tables
from latentmas_core.context.conversations.config import ConversationsConfig
from latentmas_core.context.conversations.conversations import Conversations
from latentmas_core.context.conversations.database import MAX_CONNECTIONS, Database
from latentmas_core.errors import ConfigError, StoreError
from tests.context.conversations.answers import make_result, take_turn

AT_ONCE_S = 0.3


def open_at(url):
    return Conversations(ConversationsConfig(url=url))


def engine_of(url):
    return create_engine(ConversationsConfig(url=url).database_url)


async def assert_down(conversations, caplog, *secrets):
    """Nothing that is told or logged has one of ``secrets``."""
    with pytest.raises(StoreError, match="does not answer") as told:
        await conversations.store.list("any")
    assert "cannot be reached" in caplog.text
    for secret in secrets:
        assert secret not in told.value.message
        assert secret not in caplog.text
        assert secret not in repr(conversations.store._database)


async def test_server_may_be_down_at_first_and_in_the_middle_of_a_turn(postgres, tenant, caplog):
    conversations = open_at(postgres.url)
    postgres.stop()
    try:
        await assert_down(conversations, caplog, postgres.password)
    finally:
        postgres.start()
    await take_turn(conversations, tenant, "mine", "q0")
    async with conversations.turn(tenant, "mine", "q1") as turn:
        postgres.stop()
        try:
            with pytest.raises(StoreError):
                await turn.finish(make_result("So."))
        finally:
            postgres.start()
        await turn.finish(make_result("So."))
    page = await conversations.store.show(tenant, "mine")
    assert [turn.question for turn in page.turns] == ["q0", "q1"]
    await conversations.close()


async def test_turn_that_cannot_be_begun_while_the_server_is_down_leaves_nothing(postgres, tenant):
    conversations = open_at(postgres.url)
    await take_turn(conversations, tenant, "mine", "q0")
    postgres.stop()
    try:
        with pytest.raises(StoreError):
            await take_turn(conversations, tenant, "mine", "q1")
    finally:
        postgres.start()
    page = await conversations.store.show(tenant, "mine")
    assert [turn.question for turn in page.turns] == ["q0"]
    await conversations.close()


async def test_restart_of_the_server_that_nobody_noticed_fails_no_call(postgres, tenant):
    conversations = open_at(postgres.url)
    at_once = range(2 * MAX_CONNECTIONS)
    await asyncio.gather(*(take_turn(conversations, tenant, None, f"q{i}") for i in at_once))
    postgres.stop()
    postgres.start()
    pages = await asyncio.gather(*(conversations.store.list(tenant) for _ in at_once))
    assert [len(page.data) for page in pages] == [len(at_once) for _ in at_once]
    await conversations.close()


async def test_nothing_secret_that_a_driver_repeats_is_logged(tmp_path, caplog):
    remote = Database(make_url("postgresql+psycopg://user:secret-word@127.0.0.1:1/name"))
    remote._failure("no entry with secret-word here")
    assert "no entry with *** here" in caplog.text
    await remote.close()
    local = open_at(f"sqlite:///{tmp_path}/c.db").store._database

    def repeat(_):
        raise DBAPIError("SELECT", {}, Exception("it failed\nVALUES: theirs"))

    with pytest.raises(StoreError):
        await local.read(repeat)
    assert "it failed" in caplog.text
    assert "theirs" not in caplog.text
    await local.close()


async def test_password_that_the_server_refuses_is_told_nowhere(postgres, caplog):
    secret = "not-the-password"
    conversations = open_at(postgres.url_with(secret))
    await assert_down(conversations, caplog, secret)
    assert "password authentication failed" in caplog.text
    await conversations.close()


async def test_nobody_listens(caplog):
    conversations = open_at("postgresql://user:secret-word@127.0.0.1:1/name")
    await assert_down(conversations, caplog, "secret-word")
    await conversations.close()


async def test_database_that_is_silent_keeps_nobody_waiting(url, tenant, caplog):
    conversations = open_at(url)
    await take_turn(conversations, tenant, "mine", "q0")
    conversations.store._database._call_timeout_s = AT_ONCE_S
    lock = "LOCK TABLE latentmas_conversations" if "postgresql" in url else "BEGIN EXCLUSIVE"
    engine = engine_of(url)
    with engine.connect() as connection:
        connection.execute(text(lock))
        with pytest.raises(StoreError):
            await conversations.store.rename(tenant, "mine", "Late")
        assert "no answer within 0.3 s" in caplog.text
        connection.rollback()
    engine.dispose()
    conversations.store._database._call_timeout_s = 30.0
    await take_turn(conversations, tenant, "mine", "q1")
    await conversations.close()


@pytest.mark.parametrize("found", ["a folder", "no database", "a file above it"])
async def test_path_that_cannot_be_a_database_is_told(tmp_path, caplog, found):
    path = tmp_path / "c.db"
    if found == "a folder":
        path.mkdir()
    elif found == "no database":
        path.write_text("This is not a database. " * 50)
    else:
        path.write_text("")
        path = path / "c.db"
    conversations = open_at(f"sqlite:///{path}")
    await assert_down(conversations, caplog)
    await conversations.close()


async def test_tables_that_somebody_threw_away_are_made_again(tmp_path):
    conversations = open_at(f"sqlite:///{tmp_path}/c.db")
    await take_turn(conversations, "any", "mine", "q0")
    engine = engine_of(f"sqlite:///{tmp_path}/c.db")
    with engine.begin() as connection:
        tables.metadata.drop_all(connection)
    engine.dispose()
    with pytest.raises(StoreError):
        await take_turn(conversations, "any", "mine", "q0")
    await take_turn(conversations, "any", "mine", "q1")
    assert (await conversations.store.show("any", "mine")).turns[0].question == "q1"
    await conversations.close()


async def test_new_file_is_its_owners_alone(tmp_path):
    path = tmp_path / "new" / "c.db"
    conversations = open_at(f"sqlite:///{path}")
    await conversations.store.list("any")
    assert path.stat().st_mode & 0o777 == 0o600
    await conversations.close()


async def test_file_can_be_read_by_other_programs_meanwhile(tmp_path):
    path = tmp_path / "c.db"
    conversations = open_at(f"sqlite:///{path}")
    async with conversations.turn("any", "mine", "q0") as turn:
        with sqlite3.connect(path) as connection:
            assert connection.execute("SELECT count(*) FROM latentmas_turns").fetchone() == (0,)
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        connection.close()
        await turn.finish(make_result("So."))
    await conversations.close()


async def test_database_of_a_newer_version_is_refused_and_left_alone(url, tenant):
    conversations = open_at(url)
    await take_turn(conversations, tenant, "mine", "q0")
    await conversations.close()
    engine, newer = engine_of(url), open_at(url)
    with engine.begin() as connection:
        connection.execute(update(tables.schema).values(version=2))
    try:
        with pytest.raises(StoreError, match="has schema 2; this version of LatentMAS reads 1"):
            await take_turn(newer, tenant, "mine", "q1")
    finally:
        with engine.begin() as connection:
            connection.execute(update(tables.schema).values(version=1))
        engine.dispose()
    (turn,) = (await newer.store.show(tenant, "mine")).turns
    assert turn.question == "q0"
    await newer.close()


def test_missing_driver_is_told_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"latentmas\[postgres\]"):
        open_at("postgresql://user@host/name")
