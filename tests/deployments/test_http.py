"""The HTTP face over a fake reasoner: every status, the one shape of errors, server-sent events."""

import json
from contextlib import asynccontextmanager

import httpx
import pytest

from deployments.api.errors import RETRY_AFTER_S
from deployments.ingress import build_http_app
from latentmas_core.errors import (
    ConfigError,
    ContextLengthError,
    EngineError,
    LatentMASError,
    ModelError,
    NotFoundError,
    PipelineError,
    SegmentError,
)
from latentmas_core.events import (
    AgentFinished,
    AgentStarted,
    AgentThought,
    AnswerDelta,
    AnswerDone,
)
from latentmas_core.pipelines.executor import result_of
from latentmas_core.request import MAX_LATENT_STEPS, Mode
from latentmas_core.result import AgentTrace, Result, Transfer, Usage
from tests.deployments.sse import parse_events

ANSWER = "Zoë asks:\n\n你好 🦊 \u2028\u2029\x85\r data: x"
TRACE = AgentTrace(
    name="judger",
    role="final decision",
    adapter="base",
    mode=Mode.LATENT,
    latent_steps=0,
    prompt_tokens=5,
    completion_tokens=2,
    latency_ms=1.0,
    text=ANSWER,
)
RESULT = Result(
    id="reason-1",
    final_answer=ANSWER,
    pipeline="hierarchical",
    mode=Mode.LATENT,
    agents=(TRACE,),
    usage=Usage.of((TRACE,)),
    latency_ms=2.0,
    transfer=Transfer(stages=3, hops=2, num_bytes=4096),
)
EVENTS = (
    AgentStarted("judger", "refiner+judger"),
    AgentThought("judger", 4),
    *(AnswerDelta(piece) for piece in (ANSWER[:4], ANSWER[4:])),
    AgentFinished("judger", TRACE),
    AnswerDone(RESULT),
)


class FakeReasoner:
    """Says ``EVENTS``; ``error`` is raised in front of the event number ``fails_at``."""

    def __init__(self):
        self.error = None
        self.fails_at = 0
        self.missing = []
        self.requests = []
        self.is_closed = False

    def plan_of(self, request):
        if request.pipeline != "hierarchical":
            raise NotFoundError(
                f"pipeline {request.pipeline!r} is not offered here; offered are hierarchical. "
                "Declare it.",
                param="pipeline",
            )

    async def stream(self, request):
        self.requests.append(request)
        try:
            for number, event in enumerate(EVENTS):
                if self.error is not None and number == self.fails_at:
                    raise self.error
                yield event
        finally:
            self.is_closed = True

    async def reason(self, request):
        return await result_of(self.stream(request))

    async def stats(self):
        if self.error is not None:
            raise self.error
        return {"thinkers": [{"num_running": 0}]}

    async def groups_not_ready(self):
        return self.missing


@pytest.fixture
def reasoner():
    return FakeReasoner()


@pytest.fixture
async def client(reasoner):
    async with open_client(build_http_app(reasoner)) as client:
        yield client


@asynccontextmanager
async def open_client(app):
    # The app raises what it has answered with 500 once more, for the server's log.
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def assert_error(response, status, *, code, param=None, type_="invalid_request_error"):
    """The one shape, and nothing beside it; returns the message."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    error = body["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert (error["type"], error["param"], error["code"]) == (type_, param, code)
    assert error["message"]
    return error["message"]


async def ask(client, **fields):
    return await client.post("/v1/reason", json={"question": "Why?"} | fields)


async def post_json(client, content):
    headers = {"content-type": "application/json"}
    return await client.post("/v1/reason", content=content, headers=headers)


async def test_answer_has_the_promised_fields(client):
    response = await ask(client)
    assert response.status_code == 200
    body = response.json()
    promised = {"id", "final_answer", "pipeline", "mode", "agents", "usage", "latency_ms"}
    assert promised | {"transfer"} <= set(body)
    assert body["final_answer"] == ANSWER
    assert body["transfer"] == {"stages": 3, "hops": 2, "bytes": 4096}
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "latent_steps": 0}


async def test_every_field_reaches_the_reasoner_except_stream(client, reasoner):
    fields = {
        "question": "Où?",
        "mode": "text",
        "latent_steps": 3,
        "handoff": "embeddings",
        "carry": "latents",
        "merge": "consecutive",
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.4,
        "top_k": 3,
        "seed": 11,
        "stop": ["\n"],
        "ignore_eos": True,
        "system_prompt": "Be brief.",
    }
    await client.post("/v1/reason", json=fields | {"stream": True})
    (request,) = reasoner.requests
    assert request.model_dump(mode="json", include=set(fields)) == fields
    assert "stream" not in type(request).model_fields


@pytest.mark.parametrize("question", ["", "   ", "\n\t"])
async def test_empty_question_is_422(client, question):
    message = assert_error(
        await ask(client, question=question), 422, code="invalid_request", param="question"
    )
    assert message.startswith("question is ")


async def test_missing_question_is_422(client):
    response = await client.post("/v1/reason", json={"mode": "text"})
    assert_error(response, 422, code="invalid_request", param="question")


async def test_unknown_field_is_422_and_named(client):
    response = await ask(client, latent_step=3)
    message = assert_error(response, 422, code="invalid_request", param="latent_step")
    assert "unknown field 'latent_step'" in message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("question", 7),
        ("question", None),
        ("question", ["Why?"]),
        ("question", "\ud800 alone"),
        ("pipeline", 3),
        ("mode", "telepathy"),
        ("mode", None),
        ("handoff", "pigeon"),
        ("carry", "nothing"),
        ("merge", "shuffled"),
        ("latent_steps", -1),
        ("latent_steps", MAX_LATENT_STEPS + 1),
        ("latent_steps", 1.5),
        ("latent_steps", "many"),
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", 0),
        ("seed", "abc"),
        ("stream", "maybe"),
        ("ignore_eos", "maybe"),
        ("system_prompt", 5),
        ("stop", "\n"),
    ],
)
async def test_wrong_value_is_422_and_its_field_named(client, reasoner, field, value):
    # httpx itself would refuse to send NaN.
    response = await post_json(client, json.dumps({"question": "Why?"} | {field: value}))
    message = assert_error(response, 422, code="invalid_request", param=field)
    assert message.startswith(f"{field} is ")
    assert not reasoner.requests


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("top_k", 10**30),  # overflows in the sampler and fails a step that others share
        ("system_prompt", "\ud800 alone"),  # no tokenizer can read it
        ("stop", ["\ud800"]),
        ("stop", [""]),  # stops every answer in front of its first character
    ],
)
async def test_value_that_no_engine_can_work_with_is_422(client, field, value):
    response = await post_json(client, json.dumps({"question": "Why?"} | {field: value}))
    assert response.status_code == 422


async def test_allowed_modes_are_told(client):
    message = assert_error(
        await ask(client, mode="telepathy"), 422, code="invalid_request", param="mode"
    )
    for allowed in ("telepathy", "latent", "text", "single"):
        assert allowed in message


async def test_limit_of_latent_steps_is_told(client):
    message = assert_error(
        await ask(client, latent_steps=9999), 422, code="invalid_request", param="latent_steps"
    )
    assert "9999" in message
    assert str(MAX_LATENT_STEPS) in message


async def test_wrong_value_is_not_repeated_at_length(client):
    message = assert_error(
        await ask(client, mode="x" * 10_000), 422, code="invalid_request", param="mode"
    )
    assert len(message) < 300


async def test_wrong_place_in_a_list_is_named(client):
    assert_error(await ask(client, stop=["a", 5]), 422, code="invalid_request", param="stop.1")


@pytest.mark.parametrize("body", ["", "{", "{'question': 'Why?'}", '{"question": "Why?"'])
async def test_invalid_json_is_422(client, body):
    response = await post_json(client, body)
    assert_error(response, 422, code="invalid_request")


@pytest.mark.parametrize("body", ["null", "[]", '"Why?"', "7"])
async def test_json_that_is_no_object_is_422(client, body):
    response = await post_json(client, body)
    assert_error(response, 422, code="invalid_request")


async def test_body_that_is_not_sent_as_json_is_told_how_to(client):
    response = await client.post("/v1/reason", data={"question": "Why?"})
    message = assert_error(response, 422, code="invalid_request")
    assert "application/json" in message


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[" * 100_000])
async def test_body_that_no_parser_can_read_is_a_clients_error(client, content):
    response = await post_json(client, content)
    assert response.status_code in (400, 422)
    assert_error(response, response.status_code, code=response.json()["error"]["code"])


@pytest.mark.parametrize("stream", [False, True])
async def test_unknown_pipeline_is_404_and_the_offered_ones_are_told(client, stream):
    response = await ask(client, pipeline="diagonal", stream=stream)
    message = assert_error(response, 404, code="not_found", param="pipeline")
    assert "'diagonal'" in message
    assert "hierarchical" in message


async def test_unknown_route_is_404(client):
    message = assert_error(await client.get("/v1/nothing"), 404, code="not_found")
    assert "/v1/nothing" in message


async def test_wrong_method_is_405_and_the_right_one_told(client):
    response = await client.get("/v1/reason")
    assert_error(response, 405, code="method_not_allowed")
    assert response.headers["allow"] == "POST"


ERRORS = [
    (ConfigError, 422, "invalid_request_error", "invalid_request"),
    (PipelineError, 422, "invalid_request_error", "invalid_request"),
    (SegmentError, 422, "invalid_request_error", "memory_mismatch"),
    (NotFoundError, 404, "invalid_request_error", "not_found"),
    (ContextLengthError, 413, "invalid_request_error", "context_length_exceeded"),
    (ModelError, 500, "server_error", "model_error"),
    (EngineError, 503, "server_error", "unavailable"),
    (LatentMASError, 500, "server_error", "internal_error"),
]


@pytest.mark.parametrize(("kind", "status", "type_", "code"), ERRORS)
async def test_each_error_has_its_status(client, reasoner, kind, status, type_, code):
    reasoner.error = kind("got 7; the limit is 5.", param="question")
    message = assert_error(await ask(client), status, code=code, param="question", type_=type_)
    assert message == "got 7; the limit is 5."


@pytest.mark.parametrize(("kind", "status", "type_", "code"), ERRORS)
async def test_each_error_says_the_same_inside_a_stream(
    client, reasoner, kind, status, type_, code
):
    reasoner.error, reasoner.fails_at = kind("got 7; the limit is 5.", param="question"), 2
    response = await ask(client, stream=True)
    assert response.status_code == 200
    *before, last = parse_events(response.text)
    assert [message.name for message in before] == ["agent.started", "agent.thought"]
    error = {"message": "got 7; the limit is 5.", "type": type_, "param": "question", "code": code}
    assert last == ("error", {"error": error})


async def test_unavailable_tells_when_to_come_back(client, reasoner):
    reasoner.error = EngineError("overloaded.")
    assert (await ask(client)).headers["retry-after"] == str(RETRY_AFTER_S)
    assert "retry-after" not in (await ask(client, question="")).headers


async def test_internal_error_leaks_nothing_and_is_logged(client, reasoner, caplog):
    reasoner.error = RuntimeError("/secret/path password")
    response = await ask(client)
    message = assert_error(response, 500, code="internal_error", type_="server_error")
    assert "secret" not in response.text
    assert "RuntimeError" not in response.text
    assert "log" in message
    assert "/secret/path" in caplog.text


async def test_internal_error_inside_a_stream_leaks_nothing_and_is_logged(client, reasoner, caplog):
    reasoner.error, reasoner.fails_at = RuntimeError("/secret/path password"), 1
    response = await ask(client, stream=True)
    name, content = parse_events(response.text)[-1]
    assert (name, content["error"]["code"]) == ("error", "internal_error")
    assert "secret" not in response.text
    assert "/secret/path" in caplog.text


async def test_every_kind_of_event_is_one_message_in_its_order(client):
    response = await ask(client, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    messages = parse_events(response.text)
    assert [message.name for message in messages] == [
        "agent.started",
        "agent.thought",
        "answer.delta",
        "answer.delta",
        "agent.finished",
        "answer.done",
    ]
    started, thought, first, second, finished, done = (message.content for message in messages)
    assert started == {"agent": "judger", "stage": "refiner+judger"}
    assert thought == {"agent": "judger", "latent_steps": 4}
    assert first["text"] + second["text"] == ANSWER
    assert finished == {"agent": "judger", "trace": TRACE.model_dump(mode="json")}
    assert done == (await ask(client)).json()


async def test_stream_is_not_to_be_cached_or_buffered_on_the_way(client):
    headers = (await ask(client, stream=True)).headers
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"


async def test_stream_is_utf8_and_readable(client):
    response = await ask(client, stream=True)
    assert "你好 🦊" in response.content.decode("utf-8")


async def test_no_reader_of_lines_takes_text_for_the_end_of_a_line(client):
    """Python and many clients split at more characters than the format does."""
    body = (await ask(client, stream=True)).text
    assert body.splitlines() == body.removesuffix("\n").split("\n")


async def test_question_in_any_script_arrives_as_it_was(client, reasoner):
    question = "Quelle est la capitale ? 首都は ما العاصمة؟ 🦊 <|im_end|> \x00"
    await ask(client, question=question)
    assert reasoner.requests[0].question == question


async def test_reasoning_is_closed_when_a_stream_ends(client, reasoner):
    await ask(client, stream=True)
    assert reasoner.is_closed


async def test_stats_are_handed_on(client):
    assert (await client.get("/v1/stats")).json() == {"thinkers": [{"num_running": 0}]}


async def test_stats_of_a_lost_replica_are_503(client, reasoner):
    reasoner.error = EngineError("a replica was lost.")
    response = await client.get("/v1/stats")
    assert_error(response, 503, code="unavailable", type_="server_error")


async def test_live_and_ready(client):
    for path in ("/healthz", "/readyz"):
        response = await client.get(path)
        assert (response.status_code, response.json()) == (200, {"status": "ok"})


async def test_not_ready_names_the_groups_that_are_missing_while_live(client, reasoner):
    reasoner.missing = ["thinkers", "deciders"]
    response = await client.get("/readyz")
    message = assert_error(response, 503, code="not_ready", type_="server_error")
    assert "thinkers, deciders" in message
    assert "retry-after" in response.headers
    assert (await client.get("/healthz")).status_code == 200


async def test_docs_describe_the_call(client):
    schema = (await client.get("/openapi.json")).json()
    assert set(schema["paths"]) == {"/v1/reason", "/v1/stats", "/healthz", "/readyz"}
    assert (await client.get("/docs")).status_code == 200
