"""Which adapters the application has: loaded on every replica of every group, or on none.

The ingress keeps no more than where each adapter came from. A replica that starts later, or anew,
is told with the first call that needs one; an ingress that starts anew asks the replicas.
"""

import asyncio
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from deployments.transport import GroupHandle, ask_all_replicas
from latentmas_core.errors import EngineError, LatentMASError, NotFoundError
from latentmas_core.lora.library import AdapterInfo, AdapterSource


class LoadedAdapter(NamedTuple):
    """What a replica says of one adapter; ``source`` is where it got it from."""

    info: AdapterInfo
    source: AdapterSource


class AdapterFailed(NamedTuple):
    """An error as data, so that no traceback hides it and other replicas' answers still come."""

    error: LatentMASError


class AdapterDirectory:
    """Loads, unloads and lists over all groups; some may ``scale_to_zero`` and have no replica."""

    def __init__(
        self, handles: Mapping[str, GroupHandle], scale_to_zero: Collection[str] = ()
    ) -> None:
        self._handles = handles
        self._scale_to_zero = scale_to_zero
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
            if not answers:
                raise EngineError(
                    f"adapter {source.name!r} cannot be checked: no group has a replica. Ask a "
                    "question first, or set min_replicas of a group to 1."
                )
            loaded: LoadedAdapter = answers[0]
            self._sources[source.name] = loaded.source
            return loaded.info

    async def unload(self, name: str) -> None:
        """On every replica; NotFoundError if none had it."""
        async with self._lock:
            source = self._sources.pop(name, None)
            answers = await self._ask_all("unload_adapter", name)
            failures = [answer for answer in answers if isinstance(answer, AdapterFailed)]
            if failures and len(failures) == len(answers):
                raise failures[0].error
            if not answers and source is None:
                raise NotFoundError(f"adapter {name!r} is not loaded. Load it first.", param="name")

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
        found = await self.find(wanted)
        missing = [name for name in wanted if name not in self._sources]
        if missing:
            known = ", ".join(sorted(self._sources)) or "none is loaded"
            raise NotFoundError(
                f"adapter {missing[0]!r} is not loaded. Known: {known}. Load it first.",
                param="adapters",
            )
        return found

    async def find(self, names: Iterable[str]) -> tuple[AdapterSource, ...]:
        """Where these adapters come from, as far as any replica knows."""
        wanted = tuple(dict.fromkeys(names))
        if any(name not in self._sources for name in wanted):
            async with self._lock:
                await self._ask_for_sources()
        return tuple(self._sources[name] for name in wanted if name in self._sources)

    async def _ask_for_sources(self) -> None:
        replicas = [replica for group in (await self._listings()).values() for replica in group]
        if replicas:  # else what was known stays known until there is one to ask
            self._sources = {
                loaded.info.name: loaded.source for replica in replicas for loaded in replica
            }

    async def _listings(self) -> dict[str, list[list[LoadedAdapter]]]:
        return await self._ask_groups("adapters")

    async def _ask_all(self, method: str, *arguments: Any) -> list[Any]:
        answers = await self._ask_groups(method, *arguments)
        return [answer for replicas in answers.values() for answer in replicas]

    async def _ask_groups(self, method: str, *arguments: Any) -> dict[str, list[Any]]:
        answers = await asyncio.gather(
            *(
                ask_all_replicas(
                    handle, method, *arguments, can_be_none=group in self._scale_to_zero
                )
                for group, handle in self._handles.items()
            )
        )
        return dict(zip(self._handles, answers, strict=True))
