"""What a client can get wrong: each is refused with its field, value, limit and remedy."""

import gzip
import json

import pytest

from latentmas_core.config import MAX_LATENT_STEPS
from tests.deployments.http_calls import ask, assert_error, post_json


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
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", 0),
        ("seed", "abc"),
        ("stream", "maybe"),
        ("ignore_eos", "maybe"),
        ("trace", "x-ray"),
        ("trace", None),
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


@pytest.mark.parametrize("path", ["/v1/reason", "/v1/chat/completions", "/v1/load_lora_adapter"])
@pytest.mark.parametrize(
    "content_type",
    [
        "application/x-www-form-urlencoded",
        "text/plain",
        "text/json",
        "multipart/form-data",
        "x",
        "",
    ],
)
async def test_body_that_is_not_sent_as_json_is_told_how_to(client, reasoner, path, content_type):
    headers = {"content-type": content_type} if content_type else {}
    response = await client.post(path, content=b'{"question": "Why?"}', headers=headers)
    message = assert_error(response, 415, code="unsupported_media_type")
    assert "application/json" in message
    assert repr(content_type or "missing") in message
    assert not reasoner.requests


@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON; charset=utf-8", "application/x+json"]
)
async def test_body_may_be_called_json_in_other_ways(client, content_type):
    headers = {"content-type": content_type}
    body = b'{"question": "Why?"}'
    response = await client.post("/v1/reason", content=body, headers=headers)
    assert response.status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip", "nonsense"])
async def test_compressed_body_is_refused_unread(client, reasoner, encoding):
    headers = {"content-type": "application/json", "content-encoding": encoding}
    body = gzip.compress(b'{"question": "Why?"}')
    response = await client.post("/v1/reason", content=body, headers=headers)
    message = assert_error(response, 415, code="unsupported_media_type")
    assert repr(encoding) in message
    assert not reasoner.requests


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("latent_steps", "3"),
        ("latent_steps", True),
        ("temperature", "0.5"),
        ("temperature", False),
        ("ignore_eos", 1),
        ("ignore_eos", "true"),
        ("stream", "yes"),
        ("seed", 10**20),
        ("seed", "1"),
    ],
)
async def test_value_of_another_type_is_not_taken_for_the_right_one(client, field, value):
    response = await ask(client, **{field: value})
    assert_error(response, 422, code="invalid_request", param=field)


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


@pytest.mark.parametrize(
    ("field", "value"), [("seed", 2**64 - 1), ("seed", -7), ("latent_steps", 3.0), ("top_p", 1)]
)
async def test_number_may_be_written_in_any_way(client, reasoner, field, value):
    assert (await ask(client, **{field: value})).status_code == 200
    assert getattr(reasoner.requests[0], field) == value


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


async def test_every_path_says_which_methods_it_has(client):
    schema = (await client.get("/openapi.json")).json()
    num_refused = 0
    for path, calls in schema["paths"].items():
        for method in METHODS:
            if method.lower() in calls:
                continue
            response = await client.request(method, path)
            assert response.status_code == 405, f"{method} {path}"
            assert response.headers["allow"] == ", ".join(call.upper() for call in calls)
            if method != "HEAD":
                assert_error(response, 405, code="method_not_allowed")
            num_refused += 1
    assert num_refused == (len(METHODS) - 1) * len(schema["paths"])


async def test_address_that_is_not_fetched_is_refused_before_anything_waits_for_it(
    client, reasoner
):
    document = {"url": "ftp://ann:secret@host/a.txt"}
    response = await ask(client, documents=[document])
    message = assert_error(response, 422, code="invalid_request", param="documents.0.linked.url")
    assert "only http and https" in message
    assert "secret" not in message
    assert not reasoner.requests


async def test_fields_that_do_not_go_together_are_named_without_the_body(client):
    history = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Yes?"}]
    response = await ask(client, history=history, conversation_id="one")
    message = assert_error(response, 422, code="invalid_request", param=None)
    assert message.startswith("history ")
    assert "conversation_id" in message
    assert "Hello" not in message
