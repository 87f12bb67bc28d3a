"""What Serve's proxy answers by itself, in the one shape of errors; what clients may not tell it;
and how fast a crowd comes in.

It runs in the proxies, where Ray was started with the environment in ``ENVIRONMENT``. Knows nothing
of applications.
"""

import logging
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.api.errors import INTERNAL, INTERNAL_MESSAGE, ErrorKind, error_response
from deployments.turnstile import Turnstile

logger = logging.getLogger("ray.serve")

ENVIRONMENT = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deployments.proxy:middlewares"}

# What Serve answers about itself: for probes, which look at the status alone.
SERVES_OWN_PATHS = "/-/"
# Probes among them: they neither wait for others nor keep them waiting.
PROBING = frozenset({"GET", "HEAD"})
REQUEST_ID = b"x-request-id"
# Serve would let any client put off its time limits, keep a run going that nobody waits for, or
# name a model that it then looks for in vain.
NOT_FOR_CLIENTS = frozenset(
    {
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
        b"serve-multiplexed-model-id",
    }
)
# Serve decodes these, and fails if it cannot.
DECODED = frozenset({REQUEST_ID, b"x-session-id"})

_LOST = ErrorKind(503, "server_error", "unavailable")
_LOST_MESSAGE = "the service was lost before it answered. Send the request again."
_TOLD = {
    404: (
        ErrorKind(404, "invalid_request_error", "not_found"),
        "no application is served here, or not yet. Retry later, or check the path.",
    ),
    408: (
        ErrorKind(408, "server_error", "request_timeout"),
        "the request took longer than http_options.request_timeout_s. Ask for less.",
    ),
    429: (
        ErrorKind(429, "rate_limit_error", "rate_limit_exceeded"),
        "too many requests are waiting. Retry later.",
    ),
    500: (INTERNAL, INTERNAL_MESSAGE),
    503: (
        ErrorKind(503, "server_error", "unavailable"),
        "too many requests are waiting, or the service is just starting. Retry later.",
    ),
}
_KEPT = (b"retry-after", REQUEST_ID)

RawHeaders = list[tuple[bytes, bytes]]


def middlewares() -> list[Middleware]:
    """What Serve puts around its proxy; it asks by the name in ``ENVIRONMENT``."""
    return [Middleware(OneShape)]


class OneShape:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._turnstile = Turnstile()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = {**scope, "headers": cleaned(scope["headers"])}
        if scope["path"].startswith(SERVES_OWN_PATHS):
            await self._app(scope, receive, send)
            return
        if scope["method"] not in PROBING:
            await self._turnstile.pass_through()
        answer = _Answer(scope, receive, send)
        try:
            await self._app(scope, receive, answer.send)
        except Exception:
            logger.exception("the proxy failed")
            if answer.is_begun:
                raise
            await answer.give(error_response(INTERNAL, INTERNAL_MESSAGE))
            return
        if not answer.is_begun:  # Serve has none for a replica that is lost
            await answer.give(error_response(_LOST, _LOST_MESSAGE))


def cleaned(headers: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
    """Without those that are not a client's to set, and without ids that Serve cannot read."""
    return [(name, value) for name, value in headers if _is_passed_on(name, value)]


def _is_passed_on(name: bytes, value: bytes) -> bool:
    spelt = name.lower().replace(b"_", b"-")
    return spelt not in NOT_FOR_CLIENTS and (spelt not in DECODED or value.isascii())


class _Answer:
    """What goes out: an application's answer as it is, Serve's own in the one shape."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._is_replaced = False
        self.is_begun = False

    async def send(self, message: Message) -> None:
        if self._is_replaced:
            return
        if message["type"] == "http.response.start":
            response = _in_one_shape(message)
            if response is not None:
                self._is_replaced = True
                await self.give(response)
                return
        self.is_begun = True
        await self._send(message)

    async def give(self, response: Response) -> None:
        self.is_begun = True
        await response(self._scope, self._receive, self._send)


def _in_one_shape(start: Message) -> Response | None:
    """Applications of ours never answer in plain text; None for what is theirs."""
    headers = Headers(raw=[(name.lower(), value) for name, value in start.get("headers", ())])
    told = _TOLD.get(start["status"])
    if told is None or not headers.get("content-type", "").startswith("text/plain"):
        return None
    response = error_response(*told)
    for name in _KEPT:
        value = headers.get(name.decode())
        if value is not None:
            response.headers[name.decode()] = value
    return response
