"""Bodies that are too large, too slow, cut off, or no JSON as others know it."""

import asyncio
import json

import pytest

from deployments.api.body import MAX_INLINE_BYTES
from tests.deployments.fake_reasoner import FakeReasoner
from tests.deployments.http_calls import ask, assert_error, post_json
from tests.deployments.keys import ALICE, client_of, make_access, make_app

LIMIT = 1000


@pytest.fixture
async def limited(reasoner):
    """A client of a service with a small limit and little patience."""
    access = make_access(max_body_bytes=LIMIT, body_timeout_s=0.05)
    async with client_of(make_app(reasoner, access), ALICE) as client:
        yield client


def padded(num_bytes):
    """A good body of just so many bytes."""
    empty = json.dumps({"question": ""})
    return json.dumps({"question": "x" * (num_bytes - len(empty))}).encode()


async def chunks(*parts):
    for part in parts:
        yield part


async def test_body_may_be_as_large_as_the_limit_and_no_larger(limited, reasoner):
    assert (await post_json(limited, padded(LIMIT))).status_code == 200
    response = await post_json(limited, padded(LIMIT + 1))
    message = assert_error(response, 413, code="body_too_large")
    assert "has 1001 bytes" in message
    assert "max_body_bytes is 1000" in message
    assert response.headers["connection"] == "close"
    assert len(reasoner.requests) == 1


async def test_body_in_chunks_is_cut_at_the_limit(limited, reasoner):
    read = []

    async def endless():
        while True:
            read.append(1)
            yield b"x" * 100

    response = await post_json(limited, endless())
    assert_error(response, 413, code="body_too_large")
    assert len(read) <= 12
    body = padded(LIMIT)
    response = await post_json(limited, chunks(body[:10], b"", body[10:]))
    assert response.status_code == 200
    assert len(reasoner.requests) == 1


async def test_declared_length_that_is_a_lie_does_not_help(limited):
    headers = {"content-length": "10", "content-type": "application/json"}
    response = await limited.post("/v1/reason", content=padded(LIMIT + 1), headers=headers)
    assert_error(response, 413, code="body_too_large")


async def test_body_that_never_ends_is_408_and_holds_nobody_up(limited, reasoner):
    async def stuck():
        yield b'{"question": '
        await asyncio.Event().wait()

    slow = asyncio.create_task(post_json(limited, stuck()))
    assert (await ask(limited)).status_code == 200
    response = await slow
    message = assert_error(response, 408, code="body_timeout")
    assert "0.05 s" in message
    assert response.headers["connection"] == "close"
    assert len(reasoner.requests) == 1


async def test_client_that_leaves_within_its_body_gets_no_answer(reasoner):
    app = make_app(reasoner, make_access())
    messages = [{"type": "http.request", "body": b"{", "more_body": True}]
    sent = []

    async def receive():
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/reason",
        "headers": [(b"x-api-key", ALICE.encode())],
        "query_string": b"",
    }
    await app(scope, receive, send)
    assert sent == []
    assert reasoner.requests == []


@pytest.mark.parametrize(
    "content",
    [
        b'{"question": "\xff"}',
        b"\xff\xfe\x00",
        '{"question": "é"}'.encode("latin-1"),
        b'"\xed\xa0"',
    ],
)
async def test_body_that_is_no_utf8_is_refused_by_its_byte(client, reasoner, content):
    message = assert_error(await post_json(client, content), 422, code="invalid_request")
    assert "no UTF-8: byte " in message
    assert not reasoner.requests


@pytest.mark.parametrize(
    ("content", "param"),
    [
        (b'{"question": "Why?", "temperature": NaN}', "temperature"),
        (b'{"question": "Why?", "top_p": Infinity}', "top_p"),
        (
            b'{"question": "Why?", "adapters": {"judger": {"a": 1, "b": -Infinity}}}',
            "adapters.judger.b",
        ),
        (b'{"question": "Why?", "stop": ["x", NaN]}', "stop.1"),
        (b"NaN", None),
    ],
)
async def test_what_json_does_not_call_a_number_is_refused_by_its_place(client, content, param):
    response = await post_json(client, content)
    message = assert_error(response, 422, code="invalid_request", param=param)
    assert "NaN" in message


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b'{"question": "Why?", "question": "How?"}', "question"),
        (b'{"question": "Why?", "adapters": {"judger": "a", "judger": "b"}}', "judger"),
        (b'{"question": "Why?", "\\u0071uestion": "How?"}', "question"),
    ],
)
async def test_field_that_stands_twice_is_refused_by_name(client, reasoner, content, name):
    response = await post_json(client, content)
    message = assert_error(response, 422, code="invalid_request", param=name)
    assert "more than once" in message
    assert not reasoner.requests


async def test_large_body_is_looked_at_as_closely(client):
    long = b'{"question": "' + b"x" * MAX_INLINE_BYTES + b'", "temperature": NaN}'
    response = await post_json(client, long)
    assert_error(response, 422, code="invalid_request", param="temperature")


@pytest.mark.parametrize("depth", range(850, 1000, 10))
async def test_body_of_any_depth_is_a_clients_error(client, depth):
    for begin, end in ((b"[", b"]"), (b'{"a":', b"}")):
        nested = begin * depth + b"NaN" + end * depth
        response = await post_json(client, b'{"question": "Why?", "deep": ' + nested + b"}")
        assert_error(response, 422, code="invalid_request", param=response.json()["error"]["param"])


async def test_words_that_look_like_no_numbers_may_be_asked_about(client, reasoner):
    question = "Is NaN == NaN, and what is -Infinity?"
    assert (await ask(client, question=question)).status_code == 200
    assert reasoner.requests[0].question == question


async def test_byte_order_mark_is_taken(client):
    response = await post_json(client, b'\xef\xbb\xbf{"question": "Why?"}')
    assert response.status_code == 200


@pytest.mark.parametrize(
    "content",
    [
        b'{"question": "Why?", "\\ud800": 1}',
        b'{"question": "Why?", "pipeline": "\\udfff"}',
        b'{"question": "Why?", "adapters": {"\\ud800": "a"}}',
        b'{"question": "Why?", "top_k": 1' + b"0" * 5000 + b"}",
        b'{"question": "Why?", "temperature": 1e999}',
        b"[" * 100_000 + b"NaN",
        b'{"a":' * 100_000,
    ],
    ids=["field", "value", "key", "long number", "infinite", "deep list", "deep object"],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_odd_json_is_a_clients_error_in_the_one_shape(client, content, stream):
    if stream:
        content = content.replace(b"}", b', "stream": true}')
    response = await post_json(client, content)
    assert response.status_code in (400, 404, 422), response.text
    error = response.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert len(error["message"]) < 500


async def test_reading_calls_have_no_body_to_wait_for(limited):
    response = await limited.request("GET", "/v1/stats", content=chunks(b"x" * 2000))
    assert response.status_code == 200


async def test_limit_of_the_shipped_config_holds_a_long_question():
    async with client_of(make_app(FakeReasoner(), make_access()), ALICE) as client:
        assert (await ask(client, question="word " * 200_000)).status_code == 200
