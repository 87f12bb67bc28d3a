"""Who may use the service, and how much of it: options, and whom a request comes from.

Knows no HTTP and no keys: those are in api/keys.py.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints

from latentmas_core.config import FrozenModel
from latentmas_core.errors import ConfigError
from latentmas_core.request import ReasonRequest

DEFAULT_TENANT = "default"
MAX_BODY_BYTES = 4 * 2**20
BODY_TIMEOUT_S = 30.0

WebOrigin = Annotated[str, StringConstraints(pattern=r"^(\*|https?://[^/\s]+)$")]


class Right(StrEnum):
    """ASK: everything that answers questions. ADMIN: loading and unloading adapters."""

    ASK = "ask"
    ADMIN = "admin"


class Limits(FrozenModel):
    """What one key may do; null: no limit."""

    max_requests_per_minute: int | None = Field(default=None, ge=1)
    """Requests of a key in a minute, each of a batch counted, in each replica of the ingress; above
    it 429."""
    max_concurrent_requests: int | None = Field(default=None, ge=1)
    """Requests of a key at a time, each of a batch counted, in each replica of the ingress; above
    it 429."""
    max_tokens: int | None = Field(default=None, ge=1)
    """The most that a request may name as `max_tokens`."""
    max_latent_steps: int | None = Field(default=None, ge=0)
    """The most that a request may name as `latent_steps`."""

    def with_own(self, own: "Limits") -> "Limits":
        """These, with those that ``own`` names in their place."""
        return self.model_copy(update=own.model_dump(exclude_unset=True))


NO_LIMITS = Limits()


class AccessConfig(FrozenModel):
    """Keys come from ``keys_file`` and the environment (docs/security.md); without any the service
    is open, unless ``require_keys`` forbids that."""

    keys_file: Path | None = None
    """YAML with the digests of keys, read again when it changes (docs/security.md)."""
    require_keys: bool = False
    """Refuse to start without a key. Without it and without keys the service is open."""
    limits: Limits = NO_LIMITS
    """Of each key that does not name its own; of all callers together where there are no keys."""
    max_body_bytes: int = Field(default=MAX_BODY_BYTES, ge=1)
    """Bytes of a request's body; above it 413. Raise it for large documents."""
    body_timeout_s: float = Field(default=BODY_TIMEOUT_S, gt=0.0, allow_inf_nan=False)
    """Seconds that a body may take to arrive; after it 408."""
    cors_origins: tuple[WebOrigin, ...] = ()
    """Web pages that may call from a browser, as `https://host`, or `*`."""


@dataclass(frozen=True)
class Caller:
    """Whom a request comes from; ``key_name`` is None where there are no keys.

    Conversations and documents belong to a ``tenant``, and only its keys reach them.
    """

    key_name: str | None = None
    tenant: str = DEFAULT_TENANT
    rights: frozenset[Right] = frozenset(Right)
    limits: Limits = NO_LIMITS

    def check(self, request: ReasonRequest) -> None:
        """Raise ConfigError if the request asks for more than the caller may."""
        asked = {"max_tokens": request.max_tokens, "latent_steps": request.latent_steps}
        limits = {
            "max_tokens": self.limits.max_tokens,
            "latent_steps": self.limits.max_latent_steps,
        }
        for field, value in asked.items():
            limit = limits[field]
            if value is not None and limit is not None and value > limit:
                raise ConfigError(
                    f"{field} is {value}; this key may ask for {limit} at most. Ask for less.",
                    param=field,
                )

    def check_batch(self, num_requests: int) -> None:
        """Raise ConfigError if the caller may never ask for so many at once."""
        for field in ("max_concurrent_requests", "max_requests_per_minute"):
            limit = getattr(self.limits, field)
            if limit is not None and num_requests > limit:
                raise ConfigError(
                    f"requests has {num_requests}, and each counts; {field} of this key is "
                    f"{limit}. Send fewer at a time.",
                    param="requests",
                )


ANYONE = Caller()

_caller: ContextVar[Caller] = ContextVar("caller", default=ANYONE)


def current_caller() -> Caller:
    """The caller of the request that the current task works for."""
    return _caller.get()


def set_caller(caller: Caller) -> None:
    """For the rest of the current task, which serves one request."""
    _caller.set(caller)
