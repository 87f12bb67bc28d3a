"""Which adapters the application has: loaded on every replica of every group, or on none.

The ingress keeps no more than where each adapter came from. A replica that starts later, or anew,
is told with the first call that needs one; an ingress that starts anew asks the replicas.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from deployments.transport import GroupHandle, ask_all_replicas
from latentmas_core.errors import LatentMASError, NotFoundError
from latentmas_core.lora.library import AdapterInfo, AdapterSource


class LoadedAdapter(NamedTuple):
    """What a replica says of one adapter; ``source`` is where it got it from."""

    info: AdapterInfo
    source: AdapterSource


class AdapterFailed(NamedTuple):
    """An error as data, so that no traceback hides it and other replicas' answers still come."""

    error: LatentMASError


class AdapterDirectory:
    """Loads, unloads and lists over all groups."""

    def __init__(self, handles: Mapping[str, GroupHandle]) -> None:
        self._handles = handles
        self._sources: dict[str, AdapterSource] = {}
        self._lock = asyncio.Lock()

    async def load(self, source: AdapterSource) -> AdapterInfo:
        """On every replica; where one fails, all others give it back and its error is raised."""
        async with self._lock:
            await self._ask_for_sources()
            had_it = source.name in self._sources
            answers = await self._ask_all("load_adapter", source)
            failures = [a.error for a in answers if isinstance(a, AdapterFailed)]
            if failures:
                if not had_it:
                    await self._ask_all("unload_adapter", source.name)
                raise failures[0]
            loaded: LoadedAdapter = answers[0]
            self._sources[source.name] = loaded.source
            return loaded.info

    async def unload(self, name: str) -> None:
        """On every replica; NotFoundError if none had it."""
        async with self._lock:
            self._sources.pop(name, None)
            answers = await self._ask_all("unload_adapter", name)
            if all(isinstance(answer, AdapterFailed) for answer in answers):
                raise answers[0].error

    async def listing(self) -> list[dict[str, Any]]:
        """Each adapter once, with its state on each replica of each group."""
        entries: dict[str, dict[str, Any]] = {}
        for group, replicas in (await self._listings()).items():
            for replica in replicas:
                for loaded in replica:
                    fields = loaded.info.model_dump(mode="json", exclude={"state"})
                    entry = entries.setdefault(loaded.info.name, {**fields, "states": {}})
                    entry["states"].setdefault(group, []).append(loaded.info.state)
        return list(entries.values())

    async def require(self, names: Iterable[str]) -> tuple[AdapterSource, ...]:
        """Where these adapters come from; NotFoundError for one that is nowhere loaded."""
        wanted = tuple(dict.fromkeys(names))
        if any(name not in self._sources for name in wanted):
            async with self._lock:
                await self._ask_for_sources()
        for name in wanted:
            if name not in self._sources:
                known = ", ".join(sorted(self._sources)) or "none is loaded"
                raise NotFoundError(
                    f"adapter {name!r} is not loaded. Known: {known}. Load it first.",
                    param="adapters",
                )
        return tuple(self._sources[name] for name in wanted)

    async def _ask_for_sources(self) -> None:
        self._sources = {
            loaded.info.name: loaded.source
            for replicas in (await self._listings()).values()
            for replica in replicas
            for loaded in replica
        }

    async def _listings(self) -> dict[str, list[list[LoadedAdapter]]]:
        answers = await asyncio.gather(
            *(ask_all_replicas(handle, "adapters") for handle in self._handles.values())
        )
        return dict(zip(self._handles, answers, strict=True))

    async def _ask_all(self, method: str, *arguments: Any) -> list[Any]:
        answers = await asyncio.gather(
            *(ask_all_replicas(handle, method, *arguments) for handle in self._handles.values())
        )
        return [answer for replicas in answers for answer in replicas]
