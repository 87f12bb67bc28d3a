"""Lets requests in: with a key that has the right, within its limits; and puts all that stands in
front of the routes in its order.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.access import AccessConfig, Caller, Right, set_caller
from deployments.api.body import BodyReader
from deployments.api.errors import ErrorKind, error_response
from deployments.api.failures import PlainFailures
from deployments.api.key_docs import describe_keys
from deployments.api.keys import KeyRing
from deployments.api.limits import CallerLimits, OverLimit
from deployments.api.request_log import HEADER as REQUEST_ID_HEADER
from deployments.api.request_log import RequestLog
from deployments.logs import note
from deployments.playground.routes import PAGE_PATHS

UNAUTHORIZED = ErrorKind(401, "invalid_request_error", "invalid_api_key")
NO_RIGHT = ErrorKind(403, "permission_error", "insufficient_permissions")
RATE_LIMITED = ErrorKind(429, "rate_limit_error", "rate_limit_exceeded")

KEY_HEADER = "X-API-Key"

# What tells nothing of any tenant: probes, the pages, and what /docs says of the calls anyway.
PUBLIC_PATHS = PAGE_PATHS | {"/healthz", "/readyz", "/openapi.json"}
ADMIN_PATHS = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
_READING = ("GET", "HEAD")


@dataclass(frozen=True)
class Access:
    """All that one HTTP face needs to know of its callers.

    ``is_behind_serve`` and ``renamed``: as ``RequestLog`` has them.
    """

    config: AccessConfig = field(default_factory=AccessConfig)
    keys: KeyRing = field(default_factory=KeyRing)
    limits: CallerLimits = field(default_factory=CallerLimits)
    is_behind_serve: bool = False
    renamed: Callable[[str], None] | None = None


def install_access(app: FastAPI, access: Access) -> None:
    """Put everything in front of ``app``'s routes; the last one added is the outermost."""
    config = access.config
    if not access.keys.is_empty:
        describe_keys(app, PUBLIC_PATHS)
    app.add_middleware(BodyReader, max_bytes=config.max_body_bytes, timeout_s=config.body_timeout_s)
    app.add_middleware(Gate, access=access)
    app.add_middleware(PlainFailures)
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.cors_origins,
            allow_methods=("GET", "POST", "PUT", "PATCH", "DELETE"),
            # Clients in browsers have headers of their own; there are no cookies to go with them.
            allow_headers=("*",),
            expose_headers=("Retry-After", REQUEST_ID_HEADER),
        )
    app.add_middleware(RequestLog, is_behind_serve=access.is_behind_serve, renamed=access.renamed)


class _NoKey(Exception):  # noqa: N818  # a refusal, not a failure
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Gate:
    """ASGI middleware: who calls, whether they may, and whether not too often.

    Whatever is not public asks for a key, routes that nobody thought of when this was written too.
    """

    def __init__(self, app: ASGIApp, *, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http" or _is_public(scope):
            await self._app(scope, receive, send)
            return
        try:
            caller = self._caller_of(Headers(scope=scope))
        except _NoKey as error:
            headers = {"WWW-Authenticate": "Bearer"}
            response = error_response(UNAUTHORIZED, error.message, headers=headers)
            await response(scope, receive, send)
            return
        note(key_name=caller.key_name, tenant=caller.tenant)
        needed = _needed_right(scope)
        if needed is not None and needed not in caller.rights:
            message = f"this key lacks the right {needed.value!r}. Use one that has it."
            await error_response(NO_RIGHT, message)(scope, receive, send)
            return
        set_caller(caller)
        try:
            with self._access.limits.admitted(caller):
                await self._app(scope, receive, send)
        except OverLimit as over:
            headers = {"Retry-After": str(math.ceil(over.retry_after_s))}
            response = error_response(RATE_LIMITED, over.message, headers=headers)
            await response(scope, receive, send)

    def _caller_of(self, headers: Headers) -> Caller:
        keys, limits = self._access.keys, self._access.config.limits
        if keys.is_empty:
            return Caller(limits=limits)
        key = keys.find(_presented(headers))
        if key is None:
            raise _NoKey("this API key is not known here. Check it, or ask for another.")
        return Caller(key.name, key.tenant, key.rights, limits.with_own(key.limits))


def _presented(headers: Headers) -> str:
    """The one key that a request bears, in either header."""
    keys = set(headers.getlist(KEY_HEADER))
    for value in headers.getlist("Authorization"):
        scheme, _, credentials = value.partition(" ")
        if scheme.lower() != "bearer":
            raise _NoKey("the Authorization header has no bearer key. Send: Bearer KEY.")
        keys.add(credentials.strip())
    if not keys:
        raise _NoKey(
            f"an API key is missing. Send Authorization: Bearer KEY, or {KEY_HEADER}: KEY."
        )
    if len(keys) > 1:
        raise _NoKey("the request bears more than one API key. Send one.")
    return keys.pop()


def _is_public(scope: Scope) -> bool:
    return scope["method"] in _READING and _path(scope) in PUBLIC_PATHS


def _needed_right(scope: Scope) -> Right | None:
    """None: any key may read what there is; what belongs to a tenant its routes look after."""
    if _path(scope) in ADMIN_PATHS:
        return Right.ADMIN
    return None if scope["method"] in _READING else Right.ASK


def _path(scope: Scope) -> str:
    """As the routes see it: without the prefix that the application is served under."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")) or "/"
