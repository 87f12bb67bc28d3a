"""API keys: reading them, and finding the one that was presented. Only their hashes are kept.

No message and no repr of anything here shows a key or a hash.
"""

import hashlib
import hmac
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, Field, StringConstraints, TypeAdapter, ValidationError

from deployments.access import NO_LIMITS, AccessConfig, Limits, Right
from latentmas_core.config import FrozenModel
from latentmas_core.errors import ConfigError
from latentmas_core.names import Name

logger = logging.getLogger(__name__)

ASK_VARIABLE = "LATENTMAS_API_KEYS"
ADMIN_VARIABLE = "LATENTMAS_ADMIN_KEYS"
KEY_PREFIX = "lm-"
MIN_KEY_CHARS = 16
CHECK_PERIOD_S = 1.0

_HASH_MARK = "sha256:"
_RIGHTS = {
    ASK_VARIABLE: frozenset({Right.ASK}),
    ADMIN_VARIABLE: frozenset({Right.ASK, Right.ADMIN}),
}
_NAME: TypeAdapter[str] = TypeAdapter(Name)

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$")]


@dataclass(frozen=True)
class ApiKey:
    """One key: what it is called, what it may do, and the SHA-256 of what clients send."""

    name: str
    tenant: str
    rights: frozenset[Right]
    limits: Limits
    digest: bytes = field(repr=False)


class KeyEntry(FrozenModel):
    """One key as the file has it; ``tenant`` is its name unless it says another."""

    name: Name
    sha256: Sha256 = Field(repr=False)
    tenant: Name | None = None
    rights: Annotated[tuple[Right, ...], Field(min_length=1)] = (Right.ASK,)
    limits: Limits = NO_LIMITS

    def as_key(self) -> ApiKey:
        return ApiKey(
            name=self.name,
            tenant=self.tenant or self.name,
            rights=frozenset(self.rights),
            limits=self.limits,
            digest=bytes.fromhex(self.sha256),
        )


class KeysDocument(FrozenModel):
    """The whole file."""

    keys: Annotated[tuple[KeyEntry, ...], Field(min_length=1)]


def new_key() -> str:
    """A key of 256 random bits: so many that its hash needs no salt."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def digest_of(key: str) -> bytes:
    """The SHA-256 of a key, which is all that is kept of it."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """The keys of a YAML or JSON file. ConfigError says where it is wrong, never what is there."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no UTF-8 text"
        raise _wrong_file(path, f"cannot be read: {reason}. Correct the path") from None
    try:
        loaded = yaml.safe_load(text)
        # A list alone will do: `latentmas keys new NAME >> FILE` makes one.
        document = KeysDocument.model_validate(
            {"keys": loaded} if isinstance(loaded, list) else loaded
        )
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark else ""
        raise _wrong_file(path, f"is no YAML{place}. Correct it") from None
    except ValidationError as error:
        raise _wrong_file(path, _first_problem(error)) from None
    return _distinct(entry.as_key() for entry in document.keys)


def take_keys(environ: MutableMapping[str, str]) -> tuple[ApiKey, ...]:
    """The keys of the environment, which are taken out of it."""
    keys: list[ApiKey] = []
    for variable in _RIGHTS:
        entries = environ.pop(variable, "").replace(",", " ").split()
        keys += [
            _key_of(entry, variable=variable, number=number)
            for number, entry in enumerate(entries, start=1)
        ]
    return _distinct(keys)


def _key_of(entry: str, *, variable: str, number: int) -> ApiKey:
    """``name:key``, ``name:sha256:hash`` or a key alone."""
    name, colon, secret = entry.partition(":")
    if not colon:
        kind = "admin" if Right.ADMIN in _RIGHTS[variable] else "key"
        name, secret = f"{kind}-{number}", entry
    try:
        name = _NAME.validate_python(name)
        digest = _digest_in(secret)
    except ValueError:
        raise ConfigError(
            f"entry {number} of {variable} is none of name:key, name:sha256:hash and key; a name "
            f"has letters, digits and ._- and a key {MIN_KEY_CHARS} characters at least. Correct "
            "it, or make one: latentmas keys new NAME.",
            param=variable,
        ) from None
    return ApiKey(name, name, _RIGHTS[variable], NO_LIMITS, digest)


def _digest_in(secret: str) -> bytes:
    if secret.startswith(_HASH_MARK):
        digest = bytes.fromhex(secret.removeprefix(_HASH_MARK))
        if len(digest) != hashlib.sha256().digest_size:
            raise ValueError("no SHA-256")
        return digest
    if len(secret) < MIN_KEY_CHARS:
        raise ValueError("too short")
    return digest_of(secret)


def _distinct(keys: Iterable[ApiKey]) -> tuple[ApiKey, ...]:
    """The same keys; ConfigError if two have one name or are one key."""
    seen: list[ApiKey] = []
    for key in keys:
        for other in seen:
            if key.name == other.name:
                raise ConfigError(f"two keys are called {key.name!r}. Rename one.")
            if key.digest == other.digest:
                raise ConfigError(f"{other.name!r} and {key.name!r} are one key. Take one out.")
        seen.append(key)
    return tuple(seen)


def _wrong_file(path: Path, problem: str) -> ConfigError:
    return ConfigError(f"keys_file {str(path)!r} {problem}.", param="access.keys_file")


def _first_problem(error: ValidationError) -> str:
    """Where, and what is allowed there. What the file holds may be a key in a wrong place, so
    neither a value nor an unknown field is repeated."""
    problem = error.errors(include_url=False, include_input=False)[0]
    if problem["type"] == "extra_forbidden":
        *place, _ = problem["loc"]
        fields = ", ".join(_model_at(place).model_fields)
        return f"has an unknown field{_within(place)}. Known are {fields}"
    return f"is wrong{_within(problem['loc'])}: {problem['msg']}"


def _model_at(place: list[Any]) -> type[BaseModel]:
    match place:
        case []:
            return KeysDocument
        case [*_, "limits"]:
            return Limits
        case _:
            return KeyEntry


def _within(place: Iterable[Any]) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in place]
    return f" at {''.join(parts).removeprefix('.')}" if parts else ""


class KeyRing:
    """All keys of a service. The file is read again when it changes: new keys hold, and those that
    are gone do not, without a restart. A file that became wrong changes nothing.
    """

    def __init__(
        self,
        path: Path | None = None,
        fixed: tuple[ApiKey, ...] = (),
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._fixed = fixed
        self._clock = clock
        self._checked_at = clock()
        self._version = self._version_of_file()
        self._keys = self._read()

    @property
    def is_empty(self) -> bool:
        """Whether nobody needs a key. What began with keys never comes to be open."""
        return not self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, key: str) -> ApiKey | None:
        """The key that was presented. All are compared, each in constant time."""
        self._read_if_changed()
        digest = digest_of(key)
        found: ApiKey | None = None
        for known in self._keys:
            if hmac.compare_digest(known.digest, digest):
                found = known
        return found

    def _read(self) -> tuple[ApiKey, ...]:
        of_file = read_keys(self._path) if self._path else ()
        return _distinct((*of_file, *self._fixed))

    def _read_if_changed(self) -> None:
        now = self._clock()
        if self._path is None or now - self._checked_at < CHECK_PERIOD_S:
            return
        self._checked_at = now
        version = self._version_of_file()
        if version == self._version:
            return
        self._version = version
        try:
            self._keys = self._read()
            logger.info("the keys were read again: %d", len(self._keys))
        except ConfigError as error:
            logger.error("the keys stay as they were: %s", error.message)

    def _version_of_file(self) -> tuple[int, int, int] | None:
        if self._path is None:
            return None
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return (status.st_ino, status.st_mtime_ns, status.st_size)


def open_keys(config: AccessConfig, environ: MutableMapping[str, str]) -> KeyRing:
    """The keys that the config and the environment name; ConfigError where there have to be some
    and are none."""
    keys = KeyRing(config.keys_file, take_keys(environ))
    if not keys.is_empty:
        logger.info("%d API keys", len(keys))
    elif config.require_keys:
        raise ConfigError(
            f"access.require_keys is true and there are no keys. Set access.keys_file or "
            f"{ASK_VARIABLE}; latentmas keys new NAME makes one.",
            param="access.require_keys",
        )
    else:
        logger.warning("no API keys: whoever reaches this port may use the service")
    return keys


def entry_of(name: str, key: str, rights: Iterable[Right], tenant: str | None) -> Mapping[str, Any]:
    """What stands in the file for a key."""
    entry = KeyEntry(name=name, sha256=digest_of(key).hex(), tenant=tenant, rights=tuple(rights))
    return entry.model_dump(mode="json", exclude_none=True, exclude={"limits"})
