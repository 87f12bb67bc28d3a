"""Requests over HTTP that are wrong in one way each, and what they are answered with."""

import gzip

MAX_BODY_BYTES = 10_000


def question(value):
    return b'{"question": "Why?", "max_tokens": 2, ' + value + b"}"


DIGITS = b"1" + b"0" * 400
JSON = {"content-type": "application/json"}
CHAT = "/v1/chat/completions"
# By name: path, body, headers, status and code.
WRONG = {
    "no JSON": ("/v1/reason", b"{", JSON, 422, "invalid_request"),
    "no JSON for OpenAI": (CHAT, b"{", JSON, 400, "invalid_request"),
    "no body": ("/v1/reason", b"", JSON, 422, "invalid_request"),
    "no object": ("/v1/reason", b"[]", JSON, 422, "invalid_request"),
    "deep": ("/v1/reason", b"[" * 5000, JSON, 422, "invalid_request"),
    "deep for OpenAI": (CHAT, b'{"a":' * 1000, JSON, 400, "invalid_request"),
    "no UTF-8": ("/v1/reason", b'{"question": "\xff"}', JSON, 422, "invalid_request"),
    "surrogate": ("/v1/reason", b'{"question": "\\ud800"}', JSON, 422, "invalid_request"),
    "NaN": ("/v1/reason", question(b'"top_p": NaN'), JSON, 422, "invalid_request"),
    "400 digits": ("/v1/reason", question(b'"top_p": ' + DIGITS), JSON, 422, "invalid_request"),
    "400 tokens": (
        "/v1/reason",
        b'{"question": "Why?", "max_tokens": ' + DIGITS + b"}",
        JSON,
        413,
        "context_length_exceeded",
    ),
    "twice": ("/v1/reason", question(b'"question": "How?"'), JSON, 422, "invalid_request"),
    "unknown field": ("/v1/reason", question(b'"latent_step": 1'), JSON, 422, "invalid_request"),
    "wrong type": ("/v1/reason", question(b'"seed": "1"'), JSON, 422, "invalid_request"),
    "form": (
        "/v1/reason",
        b"question=Why",
        {"content-type": "application/x-www-form-urlencoded"},
        415,
        "unsupported_media_type",
    ),
    "no type": ("/v1/reason", question(b'"seed": 1'), {}, 415, "unsupported_media_type"),
    "gzip": (
        "/v1/reason",
        gzip.compress(question(b'"seed": 1')),
        JSON | {"content-encoding": "gzip"},
        415,
        "unsupported_media_type",
    ),
    "huge": ("/v1/reason", b"x" * (MAX_BODY_BYTES + 1), JSON, 413, "body_too_large"),
    "pipeline": ("/v1/reason", question(b'"pipeline": "x"'), JSON, 404, "not_found"),
    "model": (
        CHAT,
        b'{"model": "x", "messages": [{"role": "user", "content": "Why?"}]}',
        JSON,
        404,
        "model_not_found",
    ),
    "path": ("/v1/nothing", b"{}", JSON, 404, "not_found"),
    "long URL": ("/v1/" + "x" * 60_000, b"{}", JSON, 404, "not_found"),
    "many headers": (
        "/v1/nothing",
        b"{}",
        JSON | {f"x-{i}": "y" * 20 for i in range(2000)},
        404,
        "not_found",
    ),
    "long header": ("/v1/nothing", b"{}", JSON | {"x-long": "y" * 60_000}, 404, "not_found"),
    "right to load": ("/v1/load_lora_adapter", b"{}", JSON, 403, "insufficient_permissions"),
}
