"""Each request gets an id and one line in the log; what nobody expected becomes a plain 500."""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.api.errors import INTERNAL, INTERNAL_MESSAGE, error_response
from deployments.logs import begin_request, log_event

logger = logging.getLogger(__name__)

HEADER = "X-Request-Id"
PROBES = ("/healthz", "/readyz")
CLIENT_LEFT = 499  # as nginx has it: there was nobody left to answer
MAX_PATH_CHARS = 200

# What proxies make: hex, UUIDs, ULIDs, base64, trace ids. Nothing that breaks a line.
_GOOD_ID = re.compile(r"[A-Za-z0-9._:@/+=-]{1,128}")

Renamed = Callable[[str], None]


class RequestLog:
    """ASGI middleware, outside of all others.

    An id that the client sent is kept if it is one; else there is a new one, and ``renamed`` is
    told of it. ``is_behind_serve``: Serve's proxy answers with the id that it handed over, so that
    only another one has to be sent from here.
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
        request_id = self._id_of(sent)
        is_answered = self._is_behind_serve and sent == [request_id]
        answer = _Answer(send, None if is_answered else request_id)
        notes = begin_request(request_id)
        started_at = time.perf_counter()
        try:
            await self._app(scope, receive, answer.send)
        except asyncio.CancelledError:
            answer.is_cut = True
            raise
        except Exception as error:
            path = _shown(scope["path"])
            logger.error("%s %s failed", scope["method"], path, exc_info=error)
            if answer.status is not None:
                answer.is_cut = True
                raise  # the server closes the connection, and the client sees that it is cut
            response = error_response(INTERNAL, INTERNAL_MESSAGE)
            await response(scope, receive, answer.send)
        finally:
            _log(scope, answer, notes, request_id, time.perf_counter() - started_at)

    def _id_of(self, sent: list[str]) -> str:
        if len(sent) == 1 and _GOOD_ID.fullmatch(sent[0]):
            return sent[0]
        request_id = secrets.token_hex(16)
        if self._renamed is not None:
            self._renamed(request_id)
        return request_id


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
        path=_shown(scope["path"]),
        status=answer.status or CLIENT_LEFT,
        is_cut=answer.is_cut or None,
        latency_ms=round(seconds * 1000),
        request_id=request_id,
        **notes,
    )


def _shown(path: str) -> str:
    """A path on one line, and not at length."""
    return quote(path[:MAX_PATH_CHARS], safe="/:@", errors="backslashreplace")
