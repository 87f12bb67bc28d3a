"""The HTTP face over a fake reasoner: answers, the status of each error, server-sent events."""

import pytest

from deployments.api.errors import RETRY_AFTER_S
from deployments.api.streaming import describe
from latentmas_core.errors import (
    ConfigError,
    ContextLengthError,
    DocumentError,
    EngineError,
    LatentMASError,
    ModelError,
    NotFoundError,
    PipelineError,
    SegmentError,
)
from latentmas_core.events import AgentThought
from tests.deployments.fake_reasoner import ANSWER, LENS_STEP, STAGE_TRACE, TRACE
from tests.deployments.http_calls import ask, assert_error
from tests.deployments.sse import parse_events


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
        "trace": "lens",
    }
    await client.post("/v1/reason", json=fields | {"stream": True})
    (request,) = reasoner.requests
    assert request.model_dump(mode="json", include=set(fields)) == fields
    assert "stream" not in type(request).model_fields


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
    assert [message.name for message in before] == ["stage.started", "agent.started"]
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
        "stage.started",
        "agent.started",
        "agent.phase",
        "agent.thought",
        "answer.delta",
        "answer.delta",
        "agent.finished",
        "stage.finished",
        "answer.done",
    ]
    times = [message.content.pop("at_ms") for message in messages]
    assert times == sorted(times)
    stage, started, phase, thought, first, second, finished, stage_done, done = (
        message.content for message in messages
    )
    assert stage == {
        "stage": "refiner+judger",
        "group": "deciders",
        "agents": ["refiner", "judger"],
        "attempt": 1,
    }
    assert phase == {"agent": "judger", "phase": "prefill"}
    assert stage_done == {
        "stage": "refiner+judger",
        "trace": STAGE_TRACE.model_dump(mode="json"),
    }
    assert started == {"agent": "judger", "stage": "refiner+judger"}
    assert thought == {"agent": "judger", "latent_steps": 4}
    assert first["text"] + second["text"] == ANSWER
    assert finished == {"agent": "judger", "trace": TRACE.model_dump(mode="json")}
    assert done == (await ask(client)).json()


def test_thought_with_the_lens_shows_what_it_is_close_to():
    name, content = describe(AgentThought("planner", 1, LENS_STEP))
    assert name == "agent.thought"
    assert content == {
        "agent": "planner",
        "latent_steps": 1,
        "lens": {
            "index": 0,
            "norm": 4.5,
            "tokens": [{"id": 7, "text": " 首", "probability": 0.5}],
        },
    }


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
    assert (await client.get("/v1/stats")).json() == {
        "groups": {"thinkers": [{"num_running": 0}]},
        "transfer": {"num_bytes": 0, "num_parcels": 0, "max_bytes": 100},
        "requests": {"num_ongoing": 1},
    }


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


async def test_document_that_cannot_be_had_is_a_status_in_a_stream_too(client, reasoner):
    reasoner.error = DocumentError("document 'a.pdf' is encrypted.", param="documents")
    asked = {"question": "Hi", "documents": ["text"], "stream": True}
    response = await client.post("/v1/reason", json=asked)
    assert response.status_code == 422
    assert response.json()["error"]["param"] == "documents"


async def test_stream_with_documents_has_all_events_in_their_order(client, reasoner):
    asked = {"question": "Hi", "stream": True}
    plain, with_documents = [
        [one.name for one in parse_events((await client.post("/v1/reason", json=body)).text)]
        for body in (asked, asked | {"documents": ["text"]})
    ]
    assert with_documents == plain
    assert reasoner.is_closed
