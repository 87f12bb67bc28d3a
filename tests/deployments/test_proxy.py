"""What Serve's proxy says by itself, as clients see it; without Serve."""

import asyncio
import json

import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from deployments.proxy import OneShape, cleaned, middlewares


async def asked(app, path="/v1/reason", headers=()):
    """Status, headers and body that come out around ``app``."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": list(headers)}
    await OneShape(app)(scope, None, send)
    start, *bodies = sent
    return (
        start["status"],
        {name.decode(): value.decode() for name, value in start["headers"]},
        b"".join(message.get("body", b"") for message in bodies),
    )


def says(status, text="internal: actor 0x7f died", **headers):
    return PlainTextResponse(
        text, status, {name.replace("_", "-"): value for name, value in headers.items()}
    )


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (404, "not_found"),
        (408, "request_timeout"),
        (429, "rate_limit_exceeded"),
        (500, "internal_error"),
        (503, "unavailable"),
    ],
)
async def test_plain_refusal_gets_the_one_shape(status, code):
    answered, headers, body = await asked(says(status, x_request_id="r1"))
    error = json.loads(body)["error"]
    assert (answered, error["code"]) == (status, code)
    assert list(error) == ["message", "type", "param", "code"]
    assert "actor" not in error["message"]
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"] == "r1"
    assert int(headers["content-length"]) == len(body)


async def test_when_to_come_back_is_kept():
    _, headers, _ = await asked(says(503, retry_after="7"))
    assert headers["retry-after"] == "7"
    _, headers, _ = await asked(says(503))
    assert int(headers["retry-after"]) > 0


@pytest.mark.parametrize(
    "response",
    [
        JSONResponse({"error": {"code": "not_found"}}, 404),
        PlainTextResponse("fine"),
        PlainTextResponse("Disallowed CORS origin", 400),
    ],
    ids=["error of ours", "good", "preflight"],
)
async def test_answer_of_an_application_is_left_alone(response):
    answered, _, body = await asked(response)
    assert (answered, body) == (response.status_code, response.body)


async def test_what_serve_says_of_itself_is_left_alone():
    assert (await asked(says(503, "starting"), "/-/healthz"))[2] == b"starting"


async def test_request_without_an_answer_gets_one():
    async def lost(scope, receive, send):
        return

    status, headers, body = await asked(lost)
    assert (status, json.loads(body)["error"]["code"]) == (503, "unavailable")
    assert "retry-after" in headers


async def test_failure_of_the_proxy_is_a_plain_500(caplog):
    async def broken(scope, receive, send):
        raise RuntimeError("/secret/path")

    status, _, body = await asked(broken)
    assert (status, json.loads(body)["error"]["code"]) == (500, "internal_error")
    assert b"secret" not in body
    assert "/secret/path" in caplog.text


async def test_answer_that_breaks_off_is_seen_to_break_off():
    async def breaks_off(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await asked(breaks_off)


def test_headers_that_only_serve_may_set_do_not_reach_it():
    kept = [(b"authorization", b"Bearer x"), (b"x-request-id", b"mine"), (b"accept", b"\xff")]
    kept.append((b"x-session-id", b"s1"))
    dropped = [
        (b"x-request-timeout-seconds", b"0"),
        (b"X-Request-Disconnect-Disabled", b"?1"),
        (b"serve_multiplexed_model_id", b"a"),
        (b"serve-multiplexed-model-id", b"\xff"),
        (b"x_session_id", b"\xff"),
        (b"x-request-id", b"\xff"),
    ]
    assert cleaned([*kept, *dropped]) == kept


async def test_application_sees_the_cleaned_headers():
    seen = []

    async def app(scope, receive, send):
        seen.extend(scope["headers"])
        await says(200)(scope, receive, send)

    await asked(app, headers=[(b"x-request-id", b"\xff"), (b"accept", b"*/*")])
    assert seen == [(b"accept", b"*/*")]


async def test_reading_does_not_wait_for_a_crowd_that_asks():
    at_the_service = []

    async def app(scope, receive, send):
        at_the_service.append(scope["method"])
        await says(200)(scope, receive, send)

    async def send(message):
        return

    around = OneShape(app)
    scope = {"type": "http", "path": "/v1/reason", "headers": []}
    methods = ["POST"] * 5 + ["GET", "HEAD"]
    await asyncio.gather(*(around(scope | {"method": m}, None, send) for m in methods))
    assert at_the_service[:3] == ["GET", "HEAD", "POST"]
    assert at_the_service.count("POST") == 5


async def test_what_is_no_http_passes():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope)

    scope = {"type": "websocket", "path": "/"}
    await OneShape(app)(scope, None, None)
    assert seen == [scope]


def test_serve_finds_it_by_its_name():
    assert [middleware.cls for middleware in middlewares()] == [OneShape]
