"""Turns every error into one JSON shape and the right status; the only place that knows both.

The shape is OpenAI's: {"error": {"message", "type", "param", "code"}}.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from latentmas_core.config import FrozenModel
from latentmas_core.errors import (
    AdapterError,
    ConfigError,
    ConflictError,
    ContextLengthError,
    DeadlineError,
    EngineError,
    HubError,
    LatentMASError,
    ModelError,
    NotFoundError,
    SegmentError,
    StoreError,
)
from latentmas_core.validation import PLAIN_VALUE, described, shown

RETRY_AFTER_S = 5


# Clients of OpenAI's API expect one status for all that is wrong with a request.
_OPENAI_CALLS = ("/v1/chat/", "/v1/models")
_OPENAI_STATUS = {413: 400, 422: 400}


class ModelNotFoundError(NotFoundError):
    """What ``model`` names is no pipeline, adapter or base model here."""


class ErrorDetail(FrozenModel):
    """What went wrong."""

    message: str
    """What is wrong: the field, the value, the limit, the remedy."""
    type: str
    """`invalid_request_error`, `permission_error`, `rate_limit_error` or `server_error`."""
    param: str | None
    """The field that is wrong, where it is one, as a path: `requests.1.pipeline`."""
    code: str
    """One word per cause, for programs."""


class ErrorBody(FrozenModel):
    """The one shape of all errors."""

    error: ErrorDetail
    """What went wrong."""


# What OpenAPI says of every call.
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request cannot be answered as it is."},
    "5XX": {"model": ErrorBody, "description": "The service cannot answer, or not now."},
}


class ErrorKind(NamedTuple):
    """How one class of errors is told to a client."""

    status: int
    type: str
    code: str


INVALID_REQUEST = ErrorKind(422, "invalid_request_error", "invalid_request")
UNSUPPORTED_MEDIA_TYPE = ErrorKind(415, "invalid_request_error", "unsupported_media_type")
INTERNAL = ErrorKind(500, "server_error", "internal_error")
INTERNAL_MESSAGE = "internal error; see the log of the service."

_KINDS: dict[type[LatentMASError], ErrorKind] = {
    ContextLengthError: ErrorKind(413, "invalid_request_error", "context_length_exceeded"),
    ModelNotFoundError: ErrorKind(404, "invalid_request_error", "model_not_found"),
    NotFoundError: ErrorKind(404, "invalid_request_error", "not_found"),
    ConflictError: ErrorKind(409, "invalid_request_error", "conflict"),
    ConfigError: INVALID_REQUEST,
    HubError: ErrorKind(502, "server_error", "hub_unavailable"),
    AdapterError: ErrorKind(422, "invalid_request_error", "invalid_adapter"),
    SegmentError: ErrorKind(422, "invalid_request_error", "memory_mismatch"),
    ModelError: ErrorKind(500, "server_error", "model_error"),
    DeadlineError: ErrorKind(504, "server_error", "deadline_exceeded"),
    EngineError: ErrorKind(503, "server_error", "unavailable"),
    StoreError: ErrorKind(503, "server_error", "store_unavailable"),
}

# What the framework itself refuses.
INVALID_REQUEST_BY_FRAMEWORK = 400
_HTTP_CODES = {404: "not_found", 405: "method_not_allowed"}


def kind_of(error: LatentMASError) -> ErrorKind:
    """By the first class of ours that it is an instance of; INTERNAL if there is none."""
    return next((kind for cls, kind in _KINDS.items() if isinstance(error, cls)), INTERNAL)


def for_call(path: str, kind: ErrorKind) -> ErrorKind:
    """The kind with the status that clients of the call at ``path`` expect."""
    if not is_openai_call(path):
        return kind
    return kind._replace(status=_OPENAI_STATUS.get(kind.status, kind.status))


def is_openai_call(path: str) -> bool:
    """Whether a client of OpenAI calls it, which expects 400 where others get 422."""
    return any(call in path for call in _OPENAI_CALLS)


def error_detail(kind: ErrorKind, message: str, param: str | None) -> ErrorDetail:
    """What the body says, in text that can be encoded."""
    return ErrorDetail(
        message=_encodable(message),
        type=kind.type,
        param=None if param is None else _encodable(param),
        code=kind.code,
    )


def error_body(kind: ErrorKind, message: str, param: str | None) -> dict[str, Any]:
    """OpenAI's shape of an error."""
    return ErrorBody(error=error_detail(kind, message, param)).model_dump()


def error_response(
    kind: ErrorKind,
    message: str,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """With ``Retry-After`` where the service is only busy."""
    retry = {"Retry-After": str(RETRY_AFTER_S)} if kind.status == 503 else {}
    return JSONResponse(error_body(kind, message, param), kind.status, {**retry, **(headers or {})})


def _encodable(text: str) -> str:
    """What clients send may hold halves of characters, and comes back in messages."""
    return text.encode("utf-8", "backslashreplace").decode()


def install_error_handlers(app: FastAPI) -> None:
    """Let ``app`` answer every error that is known in the one shape."""

    @app.exception_handler(LatentMASError)
    async def known(request: Request, error: LatentMASError) -> JSONResponse:
        return error_response(
            for_call(request.url.path, kind_of(error)), error.message, error.param
        )

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        sent_as = request.headers.get("content-type")
        if isinstance(error.body, bytes):  # else it would have been read
            return error_response(
                UNSUPPORTED_MEDIA_TYPE,
                f"content-type is {(sent_as or 'missing')[:100]!r}; calls here read JSON. Send it "
                "as application/json.",
            )
        return error_response(for_call(request.url.path, INVALID_REQUEST), *_first_problem(error))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == INVALID_REQUEST_BY_FRAMEWORK:
            kind = for_call(request.url.path, INVALID_REQUEST)
            return error_response(kind, "the body cannot be read as JSON. Send one JSON object.")
        code = _HTTP_CODES.get(error.status_code, "http_error")
        kind = ErrorKind(error.status_code, "invalid_request_error", code)
        response = error_response(
            kind, f"{request.method} {request.url.path}: {error.detail}. See /docs for the calls."
        )
        response.headers.update(error.headers or {})
        if error.status_code == 405 and (allowed := _methods_of_path(request)):
            response.headers["Allow"] = ", ".join(sorted(allowed))
        return response


def _methods_of_path(request: Request) -> set[str]:
    """Of all its routes: the framework tells those of the first. Folders of files have none here,
    and tell their own."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    matching = (one for one in routes if one.matches(request.scope)[0] is not Match.NONE)
    return {name for route in matching for name in route.methods or ()}


def _first_problem(error: RequestValidationError) -> tuple[str, str | None]:
    """Message and field of the first problem: what is wrong, what was got, what is allowed."""
    problem = error.errors()[0]
    _, *path = map(str, problem["loc"])  # the first tells body, path or query
    field = ".".join(path) or None
    if problem["type"] == "extra_forbidden":
        return f"unknown field {field!r}. See /docs for the fields of this call.", field
    if problem["type"] == "json_invalid":
        return "the body is not valid JSON. Send one JSON object.", None
    if problem["type"] == "model_attributes_type" and field is None:
        return "the body is no JSON object. Send one.", None
    got = problem.get("input")
    found = shown(got) if isinstance(got, PLAIN_VALUE) else type(got).__name__
    return described(problem, field, f"is {found}"), field
