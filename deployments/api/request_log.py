"""Each request gets an id and one line in the log."""

import logging
import secrets
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.logs import begin_request, log_event
from deployments.tracing import current_trace_id

logger = logging.getLogger(__name__)

HEADER = "X-Request-Id"
PROBES = ("/healthz", "/readyz")
CLIENT_LEFT = 499  # as nginx has it: there was nobody left to answer
MAX_PATH_CHARS = 200

MAX_ID_CHARS = 128
# What proxies make: hex, UUIDs, ULIDs, base64, trace ids. Nothing that breaks a line.
_IN_IDS = "._:@/+=-"

Renamed = Callable[[str], None]


class RequestLog:
    """ASGI middleware, outside of all others.

    An id that the client sent is kept, with whatever does not belong into an id percent-encoded;
    of one that was changed, or made here, ``renamed`` is told. ``is_behind_serve``: Serve's proxy
    answers with the id that it handed over, whatever that is, so that none is sent from here.
    """

    def __init__(
        self, app: ASGIApp, *, is_behind_serve: bool = False, renamed: Renamed | None = None
    ) -> None:
        self._app = app
        self._is_behind_serve = is_behind_serve
        self._renamed = renamed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope).getlist(HEADER)
        request_id = _readable(sent[0]) if sent and sent[0] else secrets.token_hex(16)
        if self._renamed is not None and sent != [request_id]:
            self._renamed(request_id)
        is_answered = self._is_behind_serve and bool(sent)
        answer = _Answer(send, None if is_answered else request_id)
        notes = begin_request(request_id, current_trace_id())
        started_at = time.perf_counter()
        try:
            await self._app(scope, receive, answer.send)
        except BaseException:
            answer.is_cut = True
            raise
        finally:
            _log(scope, answer, notes, request_id, time.perf_counter() - started_at)


class _Answer:
    """What goes out: its status, whether all of it went, and the id on it."""

    def __init__(self, send: Send, request_id: str | None) -> None:
        self._send = send
        self._request_id = request_id
        self.status: int | None = None
        self.is_cut = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self._request_id is not None:
                MutableHeaders(scope=message)[HEADER] = self._request_id
        await self._send(message)


def _log(
    scope: Scope, answer: _Answer, notes: dict[str, Any], request_id: str, seconds: float
) -> None:
    log_event(
        logger,
        "request",
        level=logging.DEBUG if scope["path"] in PROBES else logging.INFO,
        method=scope["method"],
        path=shown(scope["path"]),
        status=answer.status or CLIENT_LEFT,
        is_cut=answer.is_cut or None,
        latency_ms=round(seconds * 1000),
        request_id=request_id,
        **notes,
    )


def _readable(request_id: str) -> str:
    """As logs have it."""
    return quote(request_id.encode("latin-1"), safe=_IN_IDS)[:MAX_ID_CHARS]


def shown(path: str) -> str:
    """A path on one line, and not at length."""
    return quote(path[:MAX_PATH_CHARS], safe="/:@", errors="backslashreplace")
