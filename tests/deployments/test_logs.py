"""Request ids, the line per request and per stage, and how lines come into Serve's log."""

import asyncio
import json
import logging
from dataclasses import replace

import pytest
from ray._common.formatters import JSONFormatter
from starlette.responses import StreamingResponse

from deployments.api.request_log import CLIENT_LEFT, MAX_ID_CHARS, MAX_PATH_CHARS
from deployments.logs import (
    IntoServeLog,
    Origin,
    begin_request,
    current_origin,
    log_event,
    log_through_serve,
    note,
    set_origin,
)
from deployments.messages import StageCall, StageFailed, StageMade
from deployments.stage_log import logged_stage
from latentmas_core.errors import EngineError
from latentmas_core.events import AgentFinished, AnswerDelta
from latentmas_core.pipelines.plan import Stage
from latentmas_core.request import ReasonRequest
from tests.deployments.fake_reasoner import TRACE, FakeReasoner
from tests.deployments.http_calls import ask, assert_error
from tests.deployments.keys import ALICE, client_of, make_access, make_app

LOGGER = "deployments.api.request_log"
QUESTION = "What is my secret plan?"
MADE = StageMade(None, (), 7, (), "stop", 5)


def lines_of(caplog, event):
    return [record for record in caplog.records if getattr(record, "event", None) == event]


@pytest.fixture
def logged(caplog):
    caplog.set_level(logging.INFO)
    return caplog


async def test_answer_bears_the_id_that_the_client_sent(client, logged):
    response = await client.post(
        "/v1/reason", json={"question": "Why?"}, headers={"x-request-id": "abc-1.2:3"}
    )
    assert response.headers.get_list("x-request-id") == ["abc-1.2:3"]
    (line,) = lines_of(logged, "request")
    assert line.request_id == "abc-1.2:3"


@pytest.mark.parametrize(
    ("sent", "request_id"),
    [
        ("a b", "a%20b"),
        ("x" * (MAX_ID_CHARS + 1), "x" * MAX_ID_CHARS),
        ("a;b", "a%3Bb"),
        ('a"b', "a%22b"),
        ("é", "%C3%A9"),
        ("a%20b", "a%2520b"),
        ("a\x7fb", "a%7Fb"),
        ("{}", "%7B%7D"),
    ],
)
async def test_what_does_not_belong_into_an_id_is_encoded(client, logged, sent, request_id):
    response = await client.get("/v1/stats", headers={"x-request-id": sent.encode()})
    assert response.headers.get_list("x-request-id") == [request_id]
    assert lines_of(logged, "request")[0].request_id == request_id


async def test_who_sends_no_id_gets_a_new_one(client):
    for headers in ({}, {"x-request-id": ""}):
        response = await client.get("/v1/stats", headers=headers)
        (request_id,) = response.headers.get_list("x-request-id")
        assert len(request_id) == 32


async def test_of_two_ids_the_first_counts(client):
    headers = [("x-request-id", "a"), ("x-request-id", "b")]
    response = await client.get("/v1/stats", headers=headers)
    assert response.headers.get_list("x-request-id") == ["a"]


async def test_every_answer_bears_an_id_whatever_became_of_it(reasoner):
    app = make_app(reasoner, make_access(max_body_bytes=100))
    ids = []
    async with client_of(app, ALICE) as client, client_of(app) as nobody:
        for response in (
            await ask(client),
            await ask(client, stream=True),
            await ask(client, mode="wrong"),
            await ask(client, question="x" * 200),
            await client.get("/nowhere"),
            await client.get("/healthz"),
            await nobody.get("/v1/stats"),
        ):
            ids += response.headers.get_list("x-request-id")
        reasoner.error = RuntimeError("broken")
        ids += (await ask(client)).headers.get_list("x-request-id")
    assert len(set(ids)) == 8, ids


async def test_line_of_a_request_says_what_came_of_it_and_not_what_was_asked(reasoner, logged):
    async with client_of(make_app(reasoner, make_access()), ALICE) as client:
        await ask(client, question=QUESTION)
    (line,) = lines_of(logged, "request")
    assert (line.method, line.path, line.status) == ("POST", "/v1/reason", 200)
    assert (line.key_name, line.tenant) == ("alice", "alice-inc")
    assert line.latency_ms >= 0
    assert "status=200" in line.getMessage()
    assert QUESTION not in logged.text
    assert reasoner.requests[0].question == QUESTION


async def test_probes_are_no_news(client, logged):
    await client.get("/healthz")
    await client.get("/readyz")
    assert lines_of(logged, "request") == []


async def test_path_cannot_forge_a_line_or_fill_the_log(client, logged):
    await client.get("/v1/%0AINFO%20forged" + "x" * 5000)
    (line,) = lines_of(logged, "request")
    assert "\n" not in line.getMessage()
    assert len(line.path) < 3 * MAX_PATH_CHARS


async def test_what_nobody_expected_is_500_in_the_one_shape_and_its_traceback_is_logged(
    client, reasoner, logged
):
    reasoner.error = RuntimeError("/secret/path")
    response = await ask(client)
    assert_error(response, 500, code="internal_error", type_="server_error")
    assert "secret" not in response.text
    assert "/secret/path" in logged.text
    assert lines_of(logged, "request")[0].status == 500


async def test_client_that_leaves_is_logged_as_such(logged):
    was_asked = asyncio.Event()

    class Stuck(FakeReasoner):
        async def stream(self, request):
            was_asked.set()
            await asyncio.Event().wait()
            yield

    reasoner = Stuck()
    async with client_of(make_app(reasoner, make_access()), ALICE) as client:
        asking = asyncio.create_task(ask(client))
        await asyncio.wait_for(was_asked.wait(), 10)
        asking.cancel()
        await asyncio.wait([asking])
    (line,) = lines_of(logged, "request")
    assert (line.status, line.is_cut) == (CLIENT_LEFT, True)


async def test_answer_that_breaks_off_is_raised_to_the_server_and_logged(reasoner, logged):
    app = make_app(reasoner, make_access())

    @app.get("/v1/breaks")
    async def breaks():
        async def pieces():
            yield "one"
            raise RuntimeError("in the middle")

        return StreamingResponse(pieces())

    async with client_of(app, ALICE) as client:
        await client.get("/v1/breaks")
    (line,) = lines_of(logged, "request")
    assert (line.status, line.is_cut) == (200, True)
    assert "in the middle" in logged.text


async def test_behind_serve_no_second_id_is_sent_and_its_logs_learn_of_one_that_was_changed(
    reasoner,
):
    renamed = []
    access = replace(make_access(), is_behind_serve=True, renamed=renamed.append)
    async with client_of(make_app(reasoner, access), ALICE) as client:
        response = await client.get("/v1/stats", headers={"x-request-id": "known"})
        assert response.headers.get_list("x-request-id") == []
        assert renamed == []
        response = await client.get("/v1/stats", headers={"x-request-id": "not good"})
        assert response.headers.get_list("x-request-id") == []
        assert renamed == ["not%20good"]


def make_call(**fields):
    return StageCall(
        Stage("judger", "deciders", ()),
        None,
        (),
        ReasonRequest(question=QUESTION),
        origin=Origin("request-1", "reason-1"),
        **fields,
    )


async def told(messages):
    for message in messages:
        if isinstance(message, Exception):
            raise message
        yield message


async def test_stage_is_one_line_with_the_ids_of_its_request_and_run(logged):
    messages = [AgentFinished("judger", TRACE), AnswerDelta("Yes."), MADE]
    passed = [m async for m in logged_stage(make_call(), told(messages))]
    assert passed == messages
    (line,) = lines_of(logged, "stage")
    assert (line.request_id, line.run_id) == ("request-1", "reason-1")
    assert (line.stage, line.group, line.outcome) == ("judger", "deciders", "done")
    assert (line.prompt_tokens, line.completion_tokens) == (5, 2)
    assert (line.bytes_in, line.bytes_out) == (5, 7)
    assert QUESTION not in logged.text
    assert TRACE.text not in logged.text


async def test_stage_that_fails_is_logged_with_the_kind_of_its_error(logged):
    failed = StageFailed(EngineError("full of secrets"))
    assert [m async for m in logged_stage(make_call(), told([failed]))] == [failed]
    with pytest.raises(RuntimeError):
        _ = [m async for m in logged_stage(make_call(), told([RuntimeError("odd")]))]
    first, second = lines_of(logged, "stage")
    assert (first.outcome, first.error) == ("failed", "EngineError")
    assert (second.outcome, second.error) == ("failed", "RuntimeError")
    assert "secrets" not in logged.text


async def test_stage_that_is_left_is_logged_as_cut(logged):
    stage = logged_stage(make_call(), told([AnswerDelta("Y"), MADE]))
    await anext(stage)
    await stage.aclose()
    assert lines_of(logged, "stage")[0].outcome == "cut"


async def test_whatever_is_logged_within_a_stage_bears_its_ids():
    async def inner():
        assert current_origin() == Origin("request-1", "reason-1")
        yield MADE

    assert [m async for m in logged_stage(make_call(), inner())] == [MADE]


class Kept(logging.Handler):
    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)


@pytest.fixture
def serve_log():
    """Serve's logger as a replica has it, with a handler that keeps what comes."""
    logger, kept = logging.getLogger("ray.serve"), Kept()
    level = logger.level
    logger.addHandler(kept)
    logger.setLevel(logging.INFO)
    before = {
        name: logging.getLogger(name).level for name in ("deployments", "latentmas_core", "cluster")
    }
    log_through_serve()
    yield kept.records
    logger.removeHandler(kept)
    logger.setLevel(level)
    for name, level in before.items():
        ours = logging.getLogger(name)
        ours.setLevel(level)
        ours.handlers = [one for one in ours.handlers if not isinstance(one, IntoServeLog)]


def test_our_lines_come_into_serves_log_once_with_the_ids_of_their_task(serve_log):
    log_through_serve()  # a second time, as when a replica starts in the same process
    begin_request("request-1", "trace-1")
    logging.getLogger("latentmas_core.lora.cache").warning("adapter %s did not load", "mine")
    logging.getLogger("deployments.x").debug("below the level of Serve")
    (record,) = serve_log
    assert record.getMessage() == "adapter mine did not load"
    assert (record.request_id, record.trace_id) == ("request-1", "trace-1")
    assert not hasattr(record, "run_id")
    set_origin(Origin())


def test_fields_are_readable_as_text_and_as_json(serve_log):
    set_origin(Origin())
    log_event(logging.getLogger("deployments.x"), "request", status=200, key_name=None, path="/v1")
    (record,) = serve_log
    assert record.getMessage() == "request status=200 path=/v1"
    line = json.loads(JSONFormatter().format(record))
    assert (line["event"], line["status"], line["path"]) == ("request", 200, "/v1")
    assert "key_name" not in line


def test_notes_come_into_the_line_of_their_request_and_nowhere_else():
    notes = begin_request("request-1")
    note(run_id="reason-1")
    assert notes == {"run_id": "reason-1"}
    assert begin_request("request-2") == {}
    assert notes == {"run_id": "reason-1"}
