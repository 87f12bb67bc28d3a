"""Many questions in one call: together, in order, each with its own answer or error."""

import asyncio

import pytest

from deployments.api.batch import MAX_BATCH
from latentmas_core.errors import ContextLengthError, EngineError
from tests.deployments.fake_reasoner import ANSWER, RESULT
from tests.deployments.http_calls import assert_error

TIMEOUT_S = 10.0


async def ask_all(client, *requests):
    return await client.post("/v1/batch", json={"requests": list(requests)})


async def test_questions_and_whole_requests_are_answered_in_their_order(client, reasoner):
    response = await ask_all(client, "First?", {"question": "Second?", "mode": "text", "seed": 7})
    assert response.status_code == 200
    body = response.json()
    assert [item["error"] for item in body["results"]] == [None, None]
    expected = RESULT.model_dump(mode="json", by_alias=True)
    assert [item["result"] for item in body["results"]] == [expected, expected]
    assert body["latency_ms"] > 0
    first, second = reasoner.requests
    assert (first.question, first.mode, first.seed) == ("First?", "latent", None)
    assert (second.question, second.mode, second.seed) == ("Second?", "text", 7)


async def test_all_are_asked_at_the_same_time(client, reasoner):
    meeting = asyncio.Barrier(3)  # two questions would wait for ever
    answer = reasoner.reason

    async def meet(request):
        await meeting.wait()
        return await answer(request)

    reasoner.reason = meet
    async with asyncio.timeout(TIMEOUT_S):
        assert (await ask_all(client, "1?", "2?", "3?")).status_code == 200


async def test_one_that_fails_leaves_the_others_their_answers(client, reasoner):
    reasoner.failures = {
        "Long?": ContextLengthError("got 9; the limit is 5.", param="question"),
        "Late?": EngineError("overloaded."),
    }
    response = await ask_all(client, "Long?", "Why?", "Late?")
    assert response.status_code == 200
    long, why, late = response.json()["results"]
    assert why["result"]["final_answer"] == ANSWER
    assert why["error"] is None
    assert (long["result"], late["result"]) == (None, None)
    assert long["error"] == {
        "message": "got 9; the limit is 5.",
        "type": "invalid_request_error",
        "param": "question",
        "code": "context_length_exceeded",
    }
    assert late["error"]["code"] == "unavailable"


async def test_unexpected_error_of_one_leaks_nothing_and_is_logged(client, reasoner, caplog):
    reasoner.failures = {"Bad?": RuntimeError("/secret/path password")}
    response = await ask_all(client, "Bad?", "Why?")
    bad, why = response.json()["results"]
    assert bad["error"]["code"] == "internal_error"
    assert why["result"]["final_answer"] == ANSWER
    assert "secret" not in response.text
    assert "/secret/path" in caplog.text


async def test_if_one_cannot_be_meant_none_is_begun(client, reasoner):
    response = await ask_all(client, "Why?", {"question": "Why?", "pipeline": "diagonal"})
    message = assert_error(response, 404, code="not_found", param="requests.1.pipeline")
    assert "requests.1" in message
    assert "'diagonal'" in message
    assert reasoner.requests == []


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"question": "Why?", "mode": "telepathy"}, "requests.1.mode"),
        ({"question": "Why?", "latent_step": 3}, "requests.1.latent_step"),
        ({"question": "Why?", "stream": True}, "requests.1.stream"),
        ({"mode": "text"}, "requests.1.question"),
        ("", "requests.1.question"),
        (7, "requests.1"),
        (None, "requests.1"),
    ],
)
async def test_wrong_item_is_named_by_its_place_and_none_is_begun(client, reasoner, item, param):
    response = await ask_all(client, "Why?", item)
    assert_error(response, 422, code="invalid_request", param=param)
    assert reasoner.requests == []


@pytest.mark.parametrize("num_requests", [0, MAX_BATCH + 1])
async def test_too_few_and_too_many_are_refused_with_the_limit(client, reasoner, num_requests):
    response = await ask_all(client, *["Why?"] * num_requests)
    message = assert_error(response, 422, code="invalid_request", param="requests")
    assert str(MAX_BATCH if num_requests else 1) in message
    assert reasoner.requests == []


async def test_as_many_as_the_limit_allows_are_answered(client):
    response = await ask_all(client, *["Why?"] * MAX_BATCH)
    assert len(response.json()["results"]) == MAX_BATCH


async def test_body_may_hold_questions_and_requests_by_its_description(client):
    schema = (await client.get("/openapi.json")).json()
    requests = schema["components"]["schemas"]["BatchBody"]["properties"]["requests"]
    assert requests["maxItems"] == MAX_BATCH
    assert requests["items"]["anyOf"] == [
        {"type": "string", "minLength": 1, "pattern": "\\S"},
        {"$ref": "#/components/schemas/AskRequest"},
    ]
