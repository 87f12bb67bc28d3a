"""Adapters over HTTP: which there are, and loading and unloading with vLLM's bodies."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from fastapi import FastAPI

from deployments.api.errors import ErrorKind, error_response
from deployments.args import AdaptersConfig
from latentmas_core.config import FrozenModel, JsonBool, Text
from latentmas_core.errors import AdapterError, ConfigError, LatentMASError
from latentmas_core.lora.library import AdapterInfo, AdapterSource
from latentmas_core.lora.registry import AdapterRegistry, check_base
from latentmas_core.names import Name

logger = logging.getLogger(__name__)

FORBIDDEN = ErrorKind(403, "permission_error", "adapters_admin_off")


class LoadBody(FrozenModel):
    """``POST /v1/load_lora_adapter``."""

    lora_name: Name
    """What requests will call it; without a path a name of the registry."""
    lora_path: Text | None = None
    """A folder under the config's `adapters.roots`, or `owner/name` of the hub where
    `adapters.allow_hub` lets it."""
    revision: Text | None = None
    """Commit, tag or branch of the hub."""
    pinned: JsonBool = False
    """Keep it on the device."""


class UnloadBody(FrozenModel):
    """``POST /v1/unload_lora_adapter``."""

    lora_name: Name
    """The name of a loaded adapter."""


class Directory(Protocol):
    """What the routes need of the application's adapters."""

    async def load(self, source: AdapterSource, *, is_operators: bool) -> AdapterInfo: ...
    async def unload(self, name: str) -> None: ...
    async def listing(self) -> list[dict[str, Any]]: ...


class AdapterAdmin:
    """What the config allows, and the registry that names are looked up in."""

    def __init__(self, config: AdaptersConfig, model_name: str) -> None:
        self.is_allowed = config.admin
        self._registry = AdapterRegistry(config.registries)
        self._model_name = model_name

    def source_of(self, body: LoadBody) -> AdapterSource:
        """Raises NotFoundError or AdapterError for a name of the registry that cannot be had."""
        if body.lora_path is not None:
            return AdapterSource(
                name=body.lora_name,
                path=body.lora_path,
                revision=body.revision,
                pinned=body.pinned,
            )
        if body.revision is not None:
            raise AdapterError(
                f"revision is {body.revision!r} without a lora_path. Give the path too, or leave "
                "it out: the registry names its own.",
                param="revision",
            )
        entry = self._registry.get(body.lora_name)
        check_base(entry, self._model_name)
        return AdapterSource(
            name=entry.name,
            path=entry.path,
            revision=entry.revision,
            pinned=body.pinned or entry.pinned,
        )

    def reload(self) -> None:
        """Read the registry files again. Where one is broken the table stays as it was: that is
        for the operator to know, not for clients."""
        try:
            self._registry.reload()
        except ConfigError as error:
            logger.error("the last table of adapters stays: %s", error.message)

    def known(self) -> list[dict[str, Any]]:
        """The registry, and which entries fit the base model that is served."""
        fits = self._registry.compatible_with(self._model_name)
        return [
            entry.model_dump(exclude={"pinned"}) | {"compatible": fits[entry.name]}
            for entry in self._registry
        ]


def add_adapter_routes(app: FastAPI, directory: Directory, admin: AdapterAdmin) -> None:
    """The three calls; those that change something only where the config allows it."""

    @app.get("/v1/adapters")
    async def adapters() -> dict[str, Any]:
        """The loaded adapters with their state on each replica, and the registry."""
        await asyncio.to_thread(admin.reload)
        return {"data": await directory.listing(), "registry": admin.known()}

    @app.post("/v1/load_lora_adapter", response_model=None)
    async def load(body: LoadBody) -> Any:
        """Load an adapter on every replica."""
        if not admin.is_allowed:
            return _forbidden()
        is_named_by_operator = body.lora_path is None
        if is_named_by_operator:
            await asyncio.to_thread(admin.reload)
        with _in_body_fields(path="lora_name" if is_named_by_operator else "lora_path"):
            return await directory.load(admin.source_of(body), is_operators=is_named_by_operator)

    @app.post("/v1/unload_lora_adapter", response_model=None)
    async def unload(body: UnloadBody) -> Any:
        """Unload it everywhere; stages under way that use it finish first."""
        if not admin.is_allowed:
            return _forbidden()
        with _in_body_fields():
            await directory.unload(body.lora_name)
        return {"name": body.lora_name, "unloaded": True}


@contextmanager
def _in_body_fields(**fields: str) -> Iterator[None]:
    """Errors name the field of the body that is wrong; ``fields`` beside those of its name."""
    try:
        yield
    except LatentMASError as error:
        known = {"name": "lora_name", "adapters": "lora_name", **fields}
        error.param = known.get(error.param or "", error.param)
        raise


def _forbidden() -> Any:
    return error_response(
        FORBIDDEN,
        "adapters may not be changed over HTTP: adapters.admin is false. Set it in the config.",
    )
