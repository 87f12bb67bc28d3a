"""The authentication table: who gets in where, and that no key or hash is ever shown."""

import logging

import pytest
from fastapi.routing import APIRoute

from deployments.access import (
    AccessConfig,
    Caller,
    Limits,
    current_caller,
    set_caller,
)
from deployments.api.access import ADMIN_PATHS, PUBLIC_PATHS, Access, Gate
from deployments.api.keys import digest_of
from deployments.args import AppArgs
from deployments.budget import TransferBudget
from deployments.reasoner import Reasoner
from latentmas_core.errors import ConfigError, EngineError
from latentmas_core.request import ReasonRequest
from tests.deployments.http_calls import ask, assert_error
from tests.deployments.keys import (
    ADMIN,
    ALICE,
    BOB,
    LOADER,
    SECRETS,
    client_of,
    make_access,
    make_app,
    make_key,
)

LOAD = {"lora_name": "mine", "lora_path": "/adapters/mine"}


@pytest.fixture
def app(reasoner):
    return make_app(reasoner, make_access())


def bearer(value):
    return {"authorization": f"Bearer {value}"}


def calls_of(app):
    """Every method and path that has a route."""
    routes = [route for route in app.routes if isinstance(route, APIRoute)]
    return [(method, route.path) for route in routes for method in route.methods]


async def test_every_route_that_is_not_public_asks_for_a_key(app):
    guarded = [call for call in calls_of(app) if call[1] not in PUBLIC_PATHS]
    assert len(guarded) >= 5, guarded
    async with client_of(app) as client:
        for method, path in guarded:
            response = await client.request(method, path, json={"question": "Why?"})
            message = assert_error(response, 401, code="invalid_api_key")
            assert "is missing" in message
            assert response.headers["www-authenticate"] == "Bearer"


async def test_what_has_no_route_asks_for_a_key_too(app):
    async with client_of(app) as client:
        assert (await client.get("/v1/conversations/1")).status_code == 401
        assert (await client.post("/")).status_code == 401


@pytest.mark.parametrize("path", sorted(PUBLIC_PATHS))
async def test_public_path_needs_no_key_and_no_right_one(app, path):
    async with client_of(app, "wrong") as client:
        assert (await client.get(path)).status_code != 401


WRONG = {
    "unknown": bearer("lm-mallory-0123456789abcdef"),
    "empty": bearer(""),
    "scheme alone": {"authorization": "Bearer"},
    "no scheme": {"authorization": ALICE},
    "another scheme": {"authorization": f"Basic {ALICE}"},
    "in capitals": bearer(ALICE.upper()),
    "cut": bearer(ALICE[:-1]),
    "longer": bearer(ALICE + "x"),
    "its hash": bearer(digest_of(ALICE).hex()),
    "its hash as the environment has it": bearer("sha256:" + digest_of(ALICE).hex()),
    "its name": bearer("alice"),
    "not ASCII": {"authorization": f"Bearer {ALICE}é".encode("latin-1")},
    "very long": bearer("x" * 60_000),
    "other header": {"x-api-key": "lm-mallory-0123456789abcdef"},
    "two keys": bearer(ALICE) | {"x-api-key": BOB},
    "a good and a wrong one": bearer(ALICE) | {"x-api-key": "wrong"},
    "cookie": {"cookie": f"key={ALICE}; authorization=Bearer {ALICE}"},
}


@pytest.mark.parametrize("headers", WRONG.values(), ids=WRONG)
async def test_wrong_key_is_401_and_nothing_is_asked(app, reasoner, headers):
    async with client_of(app) as client:
        body = {"question": "Why?"}
        response = await client.post("/v1/reason", json=body, headers=headers)
    message = assert_error(response, 401, code="invalid_api_key")
    assert ALICE not in message
    assert not reasoner.requests


async def test_key_in_the_query_is_no_key(app):
    async with client_of(app) as client:
        response = await client.get("/v1/stats", params={"api_key": ALICE, "X-API-Key": ALICE})
    assert_error(response, 401, code="invalid_api_key")


@pytest.mark.parametrize(
    "headers",
    [
        bearer(ALICE),
        {"authorization": f"bearer  {ALICE}"},
        {"x-api-key": ALICE},
        bearer(ALICE) | {"x-api-key": ALICE},
    ],
    ids=["bearer", "bearer in small letters", "x-api-key", "the same in both"],
)
async def test_right_key_gets_in_by_either_header(app, reasoner, headers):
    async with client_of(app) as client:
        response = await client.post("/v1/reason", json={"question": "Why?"}, headers=headers)
    assert response.status_code == 200
    assert len(reasoner.requests) == 1


@pytest.mark.parametrize("path", sorted(ADMIN_PATHS))
@pytest.mark.parametrize("ending", ["", "/"])
async def test_administration_without_the_right_is_403(app, reasoner, path, ending):
    reasoner.adapters.sources["mine"] = "loaded"
    async with client_of(app, ALICE) as client:
        response = await client.post(path + ending, json=LOAD, follow_redirects=True)
    # A path that ends in "/" is no route: there is nothing to be had but the right path.
    message = assert_error(response, 403, code="insufficient_permissions", type_="permission_error")
    assert "'admin'" in message
    assert reasoner.adapters.sources == {"mine": "loaded"}


async def test_administration_with_the_right_works(app, reasoner):
    async with client_of(app, ADMIN) as client:
        assert (await client.post("/v1/load_lora_adapter", json=LOAD)).status_code == 200
    assert "mine" in reasoner.adapters.sources


async def test_right_does_not_help_where_the_config_forbids_administration(reasoner):
    async with client_of(make_app(reasoner, make_access(), admin=False), ADMIN) as client:
        response = await client.post("/v1/load_lora_adapter", json=LOAD)
    assert_error(response, 403, code="adapters_admin_off", type_="permission_error")


async def test_key_that_may_only_administrate_may_not_ask(app, reasoner):
    async with client_of(app, LOADER) as client:
        assert_error(
            await ask(client), 403, code="insufficient_permissions", type_="permission_error"
        )
        assert (await client.post("/v1/load_lora_adapter", json=LOAD)).status_code == 200
    assert not reasoner.requests


async def test_description_of_the_calls_says_which_need_a_key(app, reasoner):
    async with client_of(app) as client:
        schema = (await client.get("/openapi.json")).json()
    assert set(schema["components"]["securitySchemes"]) == {"bearer", "header"}
    for path, calls in schema["paths"].items():
        for call in calls.values():
            assert ("security" in call) == (path not in PUBLIC_PATHS), path
    async with client_of(make_app(reasoner, Access())) as client:
        schema = (await client.get("/openapi.json")).json()
    assert "securitySchemes" not in schema.get("components", {})


async def test_wrong_body_tells_nothing_to_whom_has_no_key(app):
    async with client_of(app) as client:
        response = await client.post("/v1/reason", content=b"\xff")
    assert_error(response, 401, code="invalid_api_key")


async def test_without_keys_everyone_gets_in_whatever_key_they_bear(reasoner):
    async with client_of(make_app(reasoner, Access()), "whatever") as client:
        assert (await ask(client)).status_code == 200


async def test_handlers_know_the_tenant(app):
    seen = []

    @app.get("/v1/whoami")
    async def whoami() -> None:
        seen.append((current_caller().key_name, current_caller().tenant))

    for key in (ALICE, BOB):
        async with client_of(app, key) as client:
            await client.get("/v1/whoami")
    assert seen == [("alice", "alice-inc"), ("bob", "bob-inc")]


async def test_prefix_of_the_application_opens_no_other_path(reasoner):
    """Served under /docs, /docs/v1/stats is no public path."""
    app = make_app(reasoner, make_access())
    sent = []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/docs/v1/stats",
        "root_path": "/docs",
        "headers": [],
        "query_string": b"",
    }
    await app(scope, None, send)
    assert sent[0]["status"] == 401


async def test_websocket_is_refused():
    sent = []

    async def send(message):
        sent.append(message)

    async def never(*_):
        raise AssertionError("it got through")

    await Gate(never, access=make_access())({"type": "websocket", "path": "/"}, None, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


async def test_no_key_and_no_hash_is_in_any_log_answer_or_repr(app, reasoner, caplog):
    caplog.set_level(logging.DEBUG)
    shown = []
    reasoner.error = RuntimeError("broken")
    for key in SECRETS:
        async with client_of(app, key) as client:
            for response in (await ask(client), await ask(client, stream=True)):
                shown += [response.text, str(response.headers)]
    for headers in WRONG.values():
        async with client_of(app) as client:
            response = await client.post("/v1/reason", json={"question": "?"}, headers=headers)
            shown += [response.text, str(response.headers)]
    access = make_access()
    shown += [repr(access), repr(access.keys), repr(make_key(ALICE)), caplog.text]
    shown += [str(vars(record)) for record in caplog.records]
    assert "alice" in caplog.text, "nothing was logged"
    for key in SECRETS:
        for secret in (key, digest_of(key).hex(), repr(digest_of(key))):
            assert not any(secret in text for text in shown)


@pytest.mark.parametrize(
    ("limits", "field", "value"),
    [(Limits(max_tokens=5), "max_tokens", 6), (Limits(max_latent_steps=0), "latent_steps", 1)],
)
def test_request_for_more_than_the_key_allows_is_refused(limits, field, value):
    caller = Caller("alice", limits=limits)
    caller.check(ReasonRequest(question="Why?", **{field: value - 1}))
    caller.check(ReasonRequest(question="Why?"))
    with pytest.raises(ConfigError, match=rf"{field} is {value}.*{value - 1} at most") as caught:
        caller.check(ReasonRequest(question="Why?", **{field: value}))
    assert caught.value.param == field


async def test_reasoner_asks_the_callers_limits_whichever_route_a_request_came_by():
    args = AppArgs.model_validate({"groups": [{"name": "all", "agents": ["planner", "judger"]}]})
    reasoner = Reasoner(args, {}, TransferBudget(1))
    set_caller(Caller("alice", limits=Limits(max_tokens=5)))
    request = ReasonRequest(question="Why?", pipeline="sequential", max_tokens=6)
    with pytest.raises(ConfigError, match="max_tokens is 6"):
        await reasoner.check(request)
    with pytest.raises(ConfigError, match="max_tokens is 6"):
        await reasoner.reason(request)
    with pytest.raises(ConfigError, match="max_tokens is 6"):
        await anext(reasoner.stream(request))


def test_own_limits_stand_in_place_of_the_common_ones():
    common = Limits(max_tokens=5, max_latent_steps=7)
    assert common.with_own(Limits(max_tokens=9)) == Limits(max_tokens=9, max_latent_steps=7)
    assert common.with_own(Limits(max_tokens=None)) == Limits(max_latent_steps=7)


@pytest.mark.parametrize("origin", ["http://localhost:3000", "https://app.example.com", "*"])
def test_web_origin_is_taken(origin):
    assert AccessConfig(cors_origins=[origin]).cors_origins == (origin,)


@pytest.mark.parametrize("origin", ["localhost", "http://a/b", "http://", "ftp://a", ""])
def test_what_is_no_web_origin_is_refused(origin):
    with pytest.raises(ValueError, match="cors_origins"):
        AccessConfig(cors_origins=[origin])


PREFLIGHT = {"origin": "https://app.example", "access-control-request-method": "POST"}


async def test_web_pages_may_not_call_unless_configured(app):
    async with client_of(app, ALICE) as client:
        response = await client.get("/v1/stats", headers={"origin": "https://app.example"})
        assert "access-control-allow-origin" not in response.headers
    async with client_of(app) as client:
        response = await client.options("/v1/reason", headers=PREFLIGHT)
        assert response.status_code == 401
        assert "access-control-allow-origin" not in response.headers


async def test_configured_web_page_may_call_and_reads_refusals_too(reasoner):
    app = make_app(reasoner, make_access(cors_origins=["https://app.example"]))
    async with client_of(app) as client:
        response = await client.options(
            "/v1/reason",
            headers=PREFLIGHT | {"access-control-request-headers": "authorization, x-api-key"},
        )
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == "https://app.example"
        response = await client.get("/v1/stats", headers={"origin": "https://app.example"})
        assert response.status_code == 401
        assert response.headers["access-control-allow-origin"] == "https://app.example"
        response = await client.get("/v1/stats", headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in response.headers


async def test_configured_web_page_may_send_what_openais_client_in_a_browser_sends(reasoner):
    """Its own headers tell of machine and retries, and differ from version to version."""
    app = make_app(reasoner, make_access(cors_origins=["https://app.example"]))
    asked = "authorization,content-type,x-stainless-lang,x-stainless-retry-count,traceparent"
    async with client_of(app) as client:
        headers = PREFLIGHT | {"access-control-request-headers": asked}
        response = await client.options("/v1/chat/completions", headers=headers)
    assert response.status_code == 200
    allowed = response.headers["access-control-allow-headers"].lower().replace(" ", "").split(",")
    assert set(asked.split(",")) <= set(allowed)
    assert "access-control-allow-credentials" not in response.headers


async def test_configured_web_page_reads_every_kind_of_refusal(reasoner):
    access = make_access(
        cors_origins=["https://app.example"],
        max_body_bytes=1000,
        limits={BOB: Limits(max_requests_per_minute=1)},
    )
    app = make_app(reasoner, access)
    origin = {"origin": "https://app.example"}
    reasoner.failures = {"Busy?": EngineError("overloaded.")}
    statuses = []
    for key, method, path, options in (
        (ALICE, "GET", "/v1/nothing", {}),
        (ALICE, "DELETE", "/v1/reason", {}),
        (ALICE, "POST", "/v1/reason", {"content": b"x" * 1001}),
        (ALICE, "POST", "/v1/reason", {"content": b"{}"}),
        (ALICE, "POST", "/v1/reason", {"json": {"question": "Why?", "nonsense": 1}}),
        (ALICE, "POST", "/v1/load_lora_adapter", {"json": LOAD}),
        (ALICE, "POST", "/v1/reason", {"json": {"question": "Busy?"}}),
        (BOB, "GET", "/v1/models", {}),
        (BOB, "GET", "/v1/models", {}),
    ):
        async with client_of(app, key) as client:
            response = await client.request(method, path, headers=origin, **options)
        statuses.append(response.status_code)
        assert response.headers["access-control-allow-origin"] == "https://app.example"
        readable = response.headers["access-control-expose-headers"]
        assert {"Retry-After", "X-Request-Id"} <= set(readable.split(", "))
    assert statuses == [404, 405, 413, 415, 422, 403, 503, 200, 429]


async def test_configured_web_page_reads_an_internal_error_too(reasoner):
    reasoner.error = RuntimeError("broken")
    app = make_app(reasoner, make_access(cors_origins=["https://app.example"]))
    async with client_of(app, ALICE) as client:
        headers = {"origin": "https://app.example", "x-request-id": "mine"}
        response = await client.post("/v1/reason", json={"question": "Why?"}, headers=headers)
    assert_error(response, 500, code="internal_error", type_="server_error")
    assert response.headers["access-control-allow-origin"] == "https://app.example"
    assert response.headers["x-request-id"] == "mine"
