"""What ``model`` may name: a pipeline, a loaded adapter, or the base model."""

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from deployments.api.errors import ModelNotFoundError
from deployments.api.openai.schema import Model
from deployments.args import AppArgs
from latentmas_core.agents.assistant import ASSISTANT
from latentmas_core.errors import NotFoundError
from latentmas_core.pipelines.builtin import CHAT
from latentmas_core.routing.domains import AUTO

PREFIX = "latentmas/"

_IS_LOCAL = re.compile(r"[/.~]|[A-Za-z]:[\\/]")
_ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class LoadedAdapters(Protocol):
    """What is needed of the application's adapters."""

    async def require(self, names: Iterable[str]) -> Any: ...
    async def listing(self) -> list[dict[str, Any]]: ...


@dataclass(frozen=True)
class Target:
    """What is to run. ``is_plain``: the messages go to the model as they are."""

    pipeline: str
    adapter: str | None = None
    is_plain: bool = False


class ChatModels:
    """The names of one application; which adapters there are is asked each time."""

    def __init__(self, pipelines: Iterable[str], model_name: str) -> None:
        self._pipelines = tuple(pipelines)
        self._base = _shown(model_name)
        self._bases = {model_name, self._base, re.split(r"[/:]", self._base)[-1]}
        self._created = int(time.time())

    @classmethod
    def of(cls, args: AppArgs) -> "ChatModels":
        group = next(g for g in args.groups if g.name == args.group_of[ASSISTANT])
        return cls((AUTO, *args.offered_pipelines), args.engine_of(group).model_name)

    async def find(self, name: str, adapters: LoadedAdapters) -> Target:
        """ModelNotFoundError names what there is."""
        if name.startswith(PREFIX) and name.removeprefix(PREFIX) in self._pipelines:
            pipeline = name.removeprefix(PREFIX)
            return Target(pipeline, is_plain=pipeline == CHAT)
        if name in self._bases:
            return Target(CHAT, is_plain=True)
        if not _ADAPTER_NAME.fullmatch(name):
            raise self._unknown(name)
        try:
            await adapters.require([name])
        except NotFoundError:
            raise self._unknown(name) from None
        return Target(CHAT, adapter=name, is_plain=True)

    async def listing(self, adapters: LoadedAdapters) -> list[Model]:
        """Pipelines, the base, then the adapters."""
        names = dict.fromkeys(str(one["name"]) for one in await adapters.listing())
        return [
            *(self._model(f"{PREFIX}{pipeline}", root=self._base) for pipeline in self._pipelines),
            self._model(self._base, root=self._base),
            *(self._model(name, root=name, parent=self._base) for name in names),
        ]

    async def get(self, name: str, adapters: LoadedAdapters) -> Model:
        """One of them, by any name that it may be asked for. ModelNotFoundError."""
        target = await self.find(name, adapters)
        if target.adapter is not None:
            return self._model(name, root=name, parent=self._base)
        return self._model(self._base if name in self._bases else name, root=self._base)

    def _model(self, name: str, *, root: str, parent: str | None = None) -> Model:
        return Model(id=name, created=self._created, root=root, parent=parent)

    def _unknown(self, name: str) -> ModelNotFoundError:
        pipelines = ", ".join(f"{PREFIX}{pipeline}" for pipeline in self._pipelines)
        return ModelNotFoundError(
            f"model {name!r} does not exist here; there are {pipelines}, {self._base}, and the "
            "adapters that are loaded. See /v1/models.",
            param="model",
        )


def _shown(model_name: str) -> str:
    """A hub's name as it is; of a folder the last part: where it lies is the operator's affair."""
    if not _IS_LOCAL.match(model_name):
        return model_name
    return re.split(r"[\\/]", model_name.rstrip("\\/"))[-1] or model_name
