"""Turns what pydantic says about options into the product's own error: field, value, limit."""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from latentmas_core.errors import ConfigError

MAX_SHOWN_CHARS = 80
PLAIN_VALUE = str | int | float | bool | None
_CREDENTIALS = re.compile(r"://\S*@")  # in a URL: user and password

Options = TypeVar("Options", bound=BaseModel)


def validated(kind: type[Options], values: Mapping[str, Any]) -> Options:
    """Build ``kind`` from ``values``; raise ConfigError that names the first wrong field."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise ConfigError(_describe(kind, problem), param=_field(problem)) from None


def _describe(kind: type[BaseModel], problem: ErrorDetails) -> str:
    field = _field(problem)
    if problem["type"] == "extra_forbidden":
        return f"unknown field {field!r}. Known fields: {', '.join(kind.model_fields)}."
    if problem["type"] == "missing":
        return f"field {field!r} of {kind.__name__} is missing."
    return described(problem, field if problem["loc"] else None, f"got {shown(problem['input'])}")


def described(problem: ErrorDetails, field: str | None, found: str) -> str:
    """A sentence: the field, what was found there and what is wrong with it. Where fields do not go
    together, which is said in words of ours, they are all that is told: no value of many parts, and
    no field for the whole."""
    message = problem["msg"].removeprefix("Value error, ").rstrip(".")
    if problem["type"] == "value_error" and not isinstance(problem["input"], PLAIN_VALUE):
        return f"{field}: {message}." if field else f"{message}."
    return f"{field or 'body'} {found}: {message}."


def shown(value: object) -> str:
    """``value`` for a message: not too long, and without credentials of a URL."""
    text = _CREDENTIALS.sub("://***@", repr(value))
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."


def _field(problem: ErrorDetails) -> str:
    return ".".join(str(part) for part in problem["loc"]) or "value"
