"""Says in /openapi.json which calls ask for a key, so that /docs lets one be entered."""

from collections.abc import Collection
from typing import Any

from fastapi import FastAPI

_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def describe_keys(app: FastAPI, public_paths: Collection[str]) -> None:
    """All calls of ``app`` but those of ``public_paths`` need one of the two headers."""
    plain = app.openapi

    def with_keys() -> dict[str, Any]:
        schema = plain()
        schema.setdefault("components", {})["securitySchemes"] = _SCHEMES
        for path, calls in schema["paths"].items():
            for call in calls.values() if path not in public_paths else ():
                call["security"] = [{name: []} for name in _SCHEMES]
        return schema

    app.openapi = with_keys  # type: ignore[method-assign]  # as FastAPI's documentation has it
