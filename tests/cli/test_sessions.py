"""Conversations that are kept: flags, ``/sessions`` and ``/clear``, here and on a service."""

import asyncio
import json
import re

import pytest

from latentmas_core import EngineError
from latentmas_core.cli.local import conversations_config
from latentmas_core.context.answerer import DEFAULT_TENANT
from latentmas_core.context.conversations.store import ConversationStore
from tests.cli.conftest import SHORT, read_json, run_cli

QUESTION = "What is the capital of France?"


def kept(path, conversation_id):
    """The questions of a conversation in a database."""

    async def read() -> list[str]:
        store = ConversationStore(conversations_config(path))
        try:
            exported = await store.export(DEFAULT_TENANT, conversation_id)
        finally:
            await store.close()
        return [turn.question for turn in exported.turns]

    return asyncio.run(read())


@pytest.fixture
def database(tmp_path):
    return tmp_path / "talks" / "kept.db"


def test_session_is_kept_and_the_next_question_is_told_of_it(local, database):
    flags = ("--session-id", "france", "--session-path", str(database), *SHORT)
    assert run_cli("ask", QUESTION, *flags).exit_code == 0
    assert run_cli("ask", "And of Italy?", *flags).exit_code == 0
    assert kept(database, "france") == [QUESTION, "And of Italy?"]


def test_what_was_said_before_is_shown_to_the_agents(local, database):
    flags = ("--session-path", str(database), "--session-id", "talk", *SHORT, "--output-json")
    sizes = [
        read_json(run_cli("ask", QUESTION, *flags))["usage"]["prompt_tokens"] for _ in range(2)
    ]
    assert sizes[1] > sizes[0]


def test_documents_are_sent_once_and_found_by_later_questions(local, database, tmp_path):
    (tmp_path / "hours.txt").write_text("The library opens at nine.")
    flags = ("--session-path", str(database), "--session-id", "talk", "--mode", "single", *SHORT)
    lines = "When does it open?\nAnd then?\n/clear\nAnd now?\n"
    rag = ("--rag-docs", str(tmp_path / "hours.txt"))
    result = run_cli("chat", *flags, *rag, stdin=lines)
    assert [len(request.documents) for request in local.requests] == [1, 0, 1]
    assert result.stderr.count("[1] hours.txt, line 1") == 3


def test_documents_of_a_question_that_failed_are_sent_again(service):
    service.reasoner.error, service.reasoner.fails_at = EngineError("it is full."), 0
    flags = ("--endpoint", service.url, "--session-id", "new", "--rag-docs-json", '"nine"')
    run_cli("chat", *flags, stdin="One?\nTwo?\n")
    assert [len(request.documents) for request in service.reasoner.requests] == [1, 1]


def test_session_without_a_path_is_kept_with_the_users_data(local, user_data):
    assert run_cli("ask", QUESTION, *SHORT, "--session-id", "france").exit_code == 0
    assert kept(user_data, "france") == [QUESTION]


def test_nothing_is_kept_without_a_session(local, user_data):
    assert run_cli("ask", QUESTION, *SHORT).exit_code == 0
    assert not user_data.exists()


def test_path_without_an_id_begins_a_conversation_and_tells_its_id(local, database):
    result = run_cli("ask", QUESTION, *SHORT, "--session-path", str(database))
    (conversation_id,) = re.findall(r"kept as (\w+)", result.stderr)
    assert kept(database, conversation_id) == [QUESTION]


def test_session_id_goes_to_the_service(service):
    run_cli("ask", QUESTION, "--endpoint", service.url, "--session-id", "france")
    assert service.reasoner.requests[-1].conversation_id == "france"
    assert service.reasoner.requests[-1].history == ()


@pytest.mark.parametrize("session_id", ["../france", "a/b", "..", "", "a b", "x" * 129])
def test_session_id_with_other_characters_is_refused(place, session_id):
    result = place.ask("ask", QUESTION, "--session-id", session_id)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--session-id" in result.stderr
    assert place.requests == []


def test_session_path_is_refused_with_a_service(service, database):
    flags = ("--endpoint", service.url, "--session-path", str(database))
    result = run_cli("ask", QUESTION, *flags)
    assert result.exit_code == 2
    assert "--session-path" in result.stderr


def test_session_path_that_cannot_be_written_is_a_failure(local, tmp_path):
    (tmp_path / "file").write_text("no folder")
    flags = ("--session-id", "x", "--session-path", str(tmp_path / "file" / "kept.db"))
    result = run_cli("ask", QUESTION, *SHORT, *flags)
    assert result.exit_code == 1
    assert "Traceback" not in result.output


def test_sessions_are_listed_and_gone_on_with(local, database):
    path = ("--session-path", str(database))
    run_cli("ask", QUESTION, *SHORT, *path, "--session-id", "france")
    run_cli("ask", "Why?", *SHORT, *path, "--session-id", "other")
    lines = "/sessions\n/sessions france\nAnd of Italy?\n/sessions ../x\n/sessions\n"
    result = run_cli("chat", *SHORT, *path, stdin=lines)
    assert f"  france: {QUESTION} (1 turns)" in result.stderr
    assert "Going on with france: 2 messages so far." in result.stderr
    assert f"* france: {QUESTION} (2 turns)" in result.stderr
    assert kept(database, "france") == [QUESTION, "And of Italy?"]


def test_sessions_of_a_service_are_listed_and_gone_on_with(service, tmp_path):
    lines = f"/sessions\n/sessions kept\n/save {tmp_path / 'talk.json'}\nThree?\n/sessions\n"
    result = run_cli("chat", "--endpoint", service.url, stdin=lines)
    assert "  kept: One? (2 turns)" in result.stderr
    assert "Going on with kept: 4 messages so far." in result.stderr
    assert "* kept: One? (2 turns)" in result.stderr
    messages = json.loads((tmp_path / "talk.json").read_text())
    assert [one["content"] for one in messages[::2]] == ["One?", "Two?"]
    assert service.reasoner.requests[-1].conversation_id == "kept"


def test_session_that_a_service_does_not_know_begins_with_the_first_question(service):
    result = run_cli("chat", "--endpoint", service.url, stdin="/sessions new\n")
    assert "Going on with new: 0 messages so far." in result.stderr


def test_clear_leaves_the_kept_conversation_and_begins_another(local, database, tmp_path):
    flags = ("--session-path", str(database), "--session-id", "france")
    lines = f"{QUESTION}\n/clear\n/save {tmp_path / 'talk.json'}\nTwo?\n"
    result = run_cli("chat", *SHORT, *flags, stdin=lines)
    (conversation_id,) = re.findall(r"begins, kept as (\w+)", result.stderr)
    assert kept(database, "france") == [QUESTION]
    assert kept(database, conversation_id) == ["Two?"]
    assert (tmp_path / "talk.json").read_text() == "[]"
