"""Reads the body of a request before anything else does: within its size and time, as JSON that all
readers read alike.

What comes after it gets the whole body at once, whatever the client does.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.api.errors import (
    INVALID_REQUEST,
    UNSUPPORTED_MEDIA_TYPE,
    ErrorKind,
    error_response,
    for_call,
)

TOO_LARGE = ErrorKind(413, "invalid_request_error", "body_too_large")
TOO_SLOW = ErrorKind(408, "invalid_request_error", "body_timeout")

# A larger body is looked at on another thread, so that nobody waits for it.
MAX_INLINE_BYTES = 2**16
MAX_SHOWN_CHARS = 80

# What is not sent to its end cannot be followed by another request.
_CLOSE = {"Connection": "close"}
_WITHOUT_BODY = ("GET", "HEAD", "OPTIONS")


class _Refused(Exception):  # noqa: N818  # a refusal, not a failure
    def __init__(self, kind: ErrorKind, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.param = param


class _ClientLeft(Exception):  # noqa: N818  # nobody is there to be told
    pass


class BodyReader:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, *, max_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in _WITHOUT_BODY:
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(Headers(scope=scope), receive)
        except _ClientLeft:
            return
        except _Refused as refused:
            is_invalid = refused.kind is INVALID_REQUEST
            kind = for_call(scope["path"], refused.kind) if is_invalid else refused.kind
            headers = None if is_invalid else _CLOSE
            response = error_response(kind, refused.message, refused.param, headers)
            await response(scope, receive, send)
            return
        await self._app(scope, _replayed(body, receive), send)

    async def _read(self, headers: Headers, receive: Receive) -> bytes:
        encoding = headers.get("content-encoding", "identity")
        if encoding.strip().lower() != "identity":
            raise _Refused(
                UNSUPPORTED_MEDIA_TYPE,
                f"content-encoding {encoding[:80]!r} is not read here. Send the body as it is.",
            )
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._max_bytes:
            raise self._too_large(f"has {declared} bytes")
        try:
            async with asyncio.timeout(self._timeout_s):
                body = await self._receive_all(receive)
        except TimeoutError:
            raise _Refused(
                TOO_SLOW,
                f"the body had not arrived after {self._timeout_s:g} s (access.body_timeout_s). "
                "Send it faster, or send less.",
            ) from None
        if "json" in headers.get("content-type", "").lower():
            if len(body) <= MAX_INLINE_BYTES:
                check_json(body)
            else:
                await asyncio.to_thread(check_json, body)
        return body

    async def _receive_all(self, receive: Receive) -> bytes:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _ClientLeft
            body += message.get("body", b"")
            if len(body) > self._max_bytes:
                raise self._too_large(f"has more than {self._max_bytes} bytes")
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self, found: str) -> _Refused:
        return _Refused(
            TOO_LARGE,
            f"the body {found}; access.max_body_bytes is {self._max_bytes}. Send less.",
        )


def _replayed(body: bytes, receive: Receive) -> Receive:
    """``receive`` with the body, already read, in front of what comes next."""
    is_read = False

    async def replay() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def check_json(body: bytes) -> None:
    """Refuse what Python would read as JSON and others would not: RFC 8259, 4, 6 and 8.1.

    What is no JSON at all is left to whoever reads it.
    """
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _invalid(
            f"the body is no UTF-8: byte {error.start} does not belong there. Send JSON as UTF-8."
        ) from None
    try:
        document = json.loads(text, object_pairs_hook=_object_of)
    except json.JSONDecodeError:
        return
    except ValueError:  # Python's own limit of digits
        raise _invalid("the body has a number of too many digits. Send a smaller one.") from None
    except RecursionError:
        raise _invalid("the body is nested too deeply. Send flatter JSON.") from None
    if "NaN" not in text and "Infinity" not in text:
        return
    place = next(_not_numbers(document), None)
    if place is not None:
        raise _invalid(
            f"{place or 'body'} is no number: JSON knows no NaN and no Infinity. Send a number, or "
            "leave it out.",
            place or None,
        )


def _invalid(message: str, param: str | None = None) -> _Refused:
    return _Refused(INVALID_REQUEST, message, param)


def _object_of(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(fields)
    if len(values) < len(fields):
        twice, _ = Counter(name for name, _ in fields).most_common(1)[0]
        shown = twice if len(twice) <= MAX_SHOWN_CHARS else f"{twice[:MAX_SHOWN_CHARS]}..."
        raise _invalid(f"{shown!r} stands more than once in one object. Send it once.", shown)
    return values


def _not_numbers(document: Any) -> Iterator[str]:
    """Where there is a NaN or an Infinity; not by recursion, which deep documents would exhaust."""
    waiting: list[tuple[str, Any]] = [("", document)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, float) and value - value != 0.0:
            yield place
        elif isinstance(value, dict | list):
            parts = value.items() if isinstance(value, dict) else enumerate(value)
            named = [(f"{place}.{key}" if place else str(key), part) for key, part in parts]
            waiting += reversed(named)
