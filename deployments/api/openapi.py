"""What /openapi.json says beyond the routes: each answer that a call may give, the limits of this
service, and examples. Knows calls by their paths alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI

from deployments.api.errors import is_openai_call

Schema = dict[str, Any]

_ERRORS = {
    400: "Wrong or unsupported fields, or more context than the model has.",
    401: "The API key is missing or unknown.",
    403: "The API key lacks the right, or the config forbids the call.",
    404: "What the path or a field names does not exist here.",
    405: "The path has other methods.",
    408: "The body did not arrive in time, or the answer was not there in time.",
    409: "The conversation is busy, or went on without this turn.",
    413: "The body is larger than access.max_body_bytes, or the model's context too small for it.",
    415: "The body is no JSON by its content type, or it is compressed.",
    422: "Wrong or unknown fields; `param` names the first.",
    429: "The key's limits are reached.",
    500: "An error of the service, which its log explains.",
    502: "The hub did not hand out the adapter.",
    503: "Overloaded, starting, or a replica was lost.",
    504: "The request's time limit has passed.",
}
_COMMON = (404, 405, 408, 429, 500, 503)
_GUARDED = (401, 403)
_WITH_BODY = (413, 415)
_ANSWERS = ("/v1/reason", "/v1/batch", "/v1/chat/completions")
_TURNS = ("/v1/reason",)
_LOADS = ("/v1/load_lora_adapter",)
_CONVERSATIONS = "/v1/conversations"

_HEADERS: Schema = {
    "X-Request-Id": {
        "description": "What the logs call this request.",
        "required": True,
        "schema": {"type": "string", "minLength": 1},
    },
    "Retry-After": {
        "description": "Seconds.",
        "required": True,
        "schema": {"type": "integer", "minimum": 0},
    },
    "WWW-Authenticate": {"required": True, "schema": {"type": "string", "const": "Bearer"}},
    "Allow": {"required": True, "schema": {"type": "string"}},
}
_HEADERS_OF = {
    401: ("WWW-Authenticate",),
    405: ("Allow",),
    429: ("Retry-After",),
    503: ("Retry-After",),
}

_QUESTION = "What is the capital of France?"
_EXAMPLES: dict[str, Schema] = {
    "/v1/reason": {
        "short": {"question": _QUESTION},
        "experts": {"question": _QUESTION, "pipeline": "parallel", "latent_steps": 4},
        "stream": {"question": _QUESTION, "mode": "text", "stream": True},
    },
    "/v1/batch": {"two": {"requests": [_QUESTION, {"question": "Why?", "mode": "single"}]}},
    "/runsync": {
        "short": {"input": {"prompt": _QUESTION, "max_tokens": 64}},
        "stream": {"input": {"prompt": _QUESTION, "pipeline": "parallel", "stream": True}},
    },
    "/v1/chat/completions": {
        "pipeline": {
            "model": "latentmas/hierarchical",
            "messages": [{"role": "user", "content": _QUESTION}],
            "latentmas": {"latent_steps": 4},
        },
        "plain": {
            "model": "latentmas/chat",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": _QUESTION},
            ],
            "stream": True,
        },
    },
    "/v1/load_lora_adapter": {"folder": {"lora_name": "mine", "lora_path": "/adapters/mine"}},
    "/v1/unload_lora_adapter": {"loaded": {"lora_name": "mine"}},
    "/v1/conversations/{conversation_id}": {"renamed": {"title": "Capitals"}},
}

# Models with what is asked for; those of answers have fields of the same names.
_ASKING = ("ReasonBody", "AskRequest", "JobInput", "ChatBody", "LatentOptions")
_TOKENS = ("max_tokens", "max_completion_tokens")


@dataclass(frozen=True)
class ServiceLimits:
    """The most that a request may name, by a key without limits of its own; None: any number."""

    max_tokens: int | None = None
    max_latent_steps: int | None = None

    def of(self, field: str) -> int | None:
        if field in _TOKENS:
            return self.max_tokens
        return self.max_latent_steps if field == "latent_steps" else None


def describe_calls(app: FastAPI, public_paths: frozenset[str], limits: ServiceLimits) -> None:
    """Let ``app`` tell all of this with its description."""
    plain = app.openapi

    def complete() -> Schema:
        if app.openapi_schema is None:
            app.openapi_schema = _completed(plain(), public_paths, limits)
        return app.openapi_schema

    app.openapi = complete  # type: ignore[method-assign]  # as FastAPI's documentation has it


def _completed(schema: Schema, public_paths: frozenset[str], limits: ServiceLimits) -> Schema:
    parts = schema.setdefault("components", {})
    parts["headers"] = _HEADERS
    parts["responses"] = {f"Error{status}": _error(status) for status in _ERRORS}
    for path, method, call in _calls_of(schema):
        statuses = sorted(_statuses(path, method, is_public=path in public_paths))
        answers = {code: call["responses"][code] for code in call["responses"] if code[0] == "2"}
        for answer in answers.values():
            answer["headers"] = {"X-Request-Id": _ref("headers", "X-Request-Id")}
        errors = {str(status): _ref("responses", f"Error{status}") for status in statuses}
        call["responses"] = answers | errors
        if path in _EXAMPLES and "requestBody" in call:
            content = call["requestBody"]["content"]["application/json"]
            content["examples"] = {
                name: {"value": value} for name, value in _EXAMPLES[path].items()
            }
    for name in _ASKING:
        _limit(parts["schemas"][name]["properties"], limits)
    return schema


def _calls_of(schema: Schema) -> Iterator[tuple[str, str, Schema]]:
    for path, calls in schema["paths"].items():
        for method, call in calls.items():
            yield path, method, call


def _statuses(path: str, method: str, *, is_public: bool) -> set[int]:
    statuses = set(_COMMON)
    if not is_public:
        statuses.update(_GUARDED)
    if method in ("post", "patch"):
        statuses.update(_WITH_BODY, [400 if is_openai_call(path) else 422])
    if path.startswith(_CONVERSATIONS):
        statuses.update([422], _WITH_BODY if method == "delete" else ())
    if path in _ANSWERS:
        statuses.add(504)
    if path in _TURNS:
        statuses.add(409)
    if path in _LOADS:
        statuses.add(502)
    return statuses


def _error(status: int) -> Schema:
    names = ("X-Request-Id", *_HEADERS_OF.get(status, ()))
    return {
        "description": _ERRORS[status],
        "headers": {name: _ref("headers", name) for name in names},
        "content": {"application/json": {"schema": _ref("schemas", "ErrorBody")}},
    }


def _limit(properties: Schema, limits: ServiceLimits) -> None:
    """Tell the service's own limit where the schema has none, or a wider one."""
    for field, described in properties.items():
        limit = limits.of(field)
        if limit is None:
            continue
        for branch in described.get("anyOf", [described]):
            if branch.get("type") == "integer":
                branch["maximum"] = min(limit, branch.get("maximum", limit))


def _ref(kind: str, name: str) -> Schema:
    return {"$ref": f"#/components/{kind}/{name}"}
