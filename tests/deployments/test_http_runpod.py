"""``POST /runsync`` over a fake reasoner: RunPod's shape in and out, and what is refused."""

import pytest

from latentmas_core.context.documents.document import InlineDocument
from latentmas_core.errors import ContextLengthError, DeadlineError, EngineError
from latentmas_core.request import Mode
from tests.deployments.fake_reasoner import ANSWER
from tests.deployments.http_calls import assert_error


async def run(client, **job):
    return await client.post("/runsync", json={"input": {"prompt": "Why?"} | job})


async def test_job_is_completed_with_the_result_as_its_output(client):
    response = await run(client)
    assert response.status_code == 200
    body = response.json()
    assert set(body) == {"id", "status", "output", "executionTime"}
    assert (body["status"], body["id"][:5]) == ("COMPLETED", "sync-")
    (output,) = body["output"]
    assert output == (await client.post("/v1/reason", json={"question": "Why?"})).json()


async def test_every_field_reaches_the_reasoner(client, reasoner):
    fields = {"max_tokens": 7, "temperature": 0.5, "mode": "text", "latent_steps": 3, "seed": 11}
    fields |= {"pipeline": "parallel", "system_prompt": "Be brief.", "stop": ["\n"]}
    await run(client, **fields)
    (request,) = reasoner.requests
    assert (request.question, request.mode) == ("Why?", Mode.TEXT)
    assert request.model_dump(mode="json", include=set(fields)) == fields


async def test_documents_and_tools_of_a_job_reach_the_reasoner(client, reasoner):
    pears = {"name": "pears", "text": "Picked in September."}
    await run(client, documents=[pears, "Green."], enable_tools=["calculator"])
    (request,) = reasoner.requests
    assert request.documents == (InlineDocument(**pears), "Green.")
    assert request.enable_tools == ("calculator",)


async def test_streamed_job_has_every_event_in_its_output(client):
    output = (await run(client, stream=True)).json()["output"]
    assert [one["event"] for one in output][::8] == ["stage.started", "answer.done"]
    assert "".join(one["text"] for one in output if one["event"] == "answer.delta") == ANSWER


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("kind", [ContextLengthError, DeadlineError, EngineError])
async def test_job_that_was_begun_and_failed_says_so_in_runpods_shape(
    client, reasoner, kind, is_streamed
):
    reasoner.error = kind("got 7; the limit is 5.")
    reasoner.fails_at = 3
    response = await run(client, stream=is_streamed)
    body = response.json()
    assert (response.status_code, body["status"]) == (200, "FAILED")
    assert body["error"] == "got 7; the limit is 5."
    assert "output" not in body
    assert reasoner.is_closed


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"prompt": "Why?"}, "input"),
        ({"input": "Why?"}, "input"),
        ({"input": {}}, "input.prompt"),
        ({"input": {"prompt": " "}}, "input.prompt"),
        ({"input": {"prompt": "Why?", "max_token": 4}}, "input.max_token"),
        ({"input": {"prompt": "Why?", "max_tokens": "4"}}, "input.max_tokens"),
        ({"input": {"prompt": "Why?", "question": "Who?"}}, "input.question"),
        ({"input": {"prompt": "Why?"}, "webhook": "http://127.0.0.1/"}, "webhook"),
    ],
)
async def test_body_that_cannot_be_meant_is_refused_like_any_other(client, reasoner, body, param):
    response = await client.post("/runsync", json=body)
    assert_error(response, 422, code="invalid_request", param=param)
    assert reasoner.requests == []


async def test_pipeline_that_is_not_offered_is_refused_before_anything_runs(client, reasoner):
    response = await run(client, pipeline="diagonal")
    assert_error(response, 404, code="not_found", param="input.pipeline")
    assert reasoner.requests == []


async def test_fields_that_contradict_each_other_are_refused(client, reasoner):
    call = {"role": "tool", "content": "rain", "tool_call_id": "c1"}
    response = await run(client, history=[call])
    assert_error(response, 422, code="invalid_request", param="input")
    assert reasoner.requests == []
