"""Which adapters the application has: loaded on every replica of every group, or on none.

The ingress keeps no more than which adapter each name stands for, and which names were unloaded. A
replica that starts later, or anew, is told with the first call that needs one; an ingress that
starts anew asks the replicas.
"""

import asyncio
import logging
import uuid
from collections.abc import Collection, Coroutine, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar
from weakref import WeakValueDictionary

from deployments.messages import AdapterFailed, AdapterListing, AdapterOrder, LoadedAdapter
from deployments.transport import GroupHandle, ask_all_replicas
from latentmas_core.errors import AdapterError, EngineError, LatentMASError, NotFoundError
from latentmas_core.lora.library import AdapterInfo, AdapterSource

logger = logging.getLogger(__name__)

T = TypeVar("T")

Listings = dict[str, list[AdapterListing]]


class Answers(NamedTuple):
    """What the groups said. ``error``: of one that did not, since a replica of it is lost."""

    listings: Listings
    error: LatentMASError | None = None


class AdapterDirectory:
    """Loads, unloads and lists over all groups; some may have no replica just now."""

    def __init__(self, handles: Mapping[str, GroupHandle]) -> None:
        self._handles = handles
        self._known: dict[str, LoadedAdapter] = {}
        self._unloaded: set[str] = set()
        self._num_changes = 0
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._asking: asyncio.Task[Answers] | None = None

    async def load(self, source: AdapterSource, *, is_operators: bool = False) -> AdapterInfo:
        """On every replica; where one fails, all others give it back and its error is raised.

        ``is_operators``: the operator named its place, not the client.
        """
        return await _to_the_end(self._load(source, is_operators))

    async def unload(self, name: str) -> None:
        """On every replica; NotFoundError if none has it."""
        await _to_the_end(self._unload(name))

    async def listing(self) -> list[dict[str, Any]]:
        """Each adapter once, with its state on each replica of each group that answers.

        A name is there twice where groups have different adapters of that name.
        """
        entries: dict[tuple[str, str], dict[str, Any]] = {}
        for group, replicas in (await self._ask()).listings.items():
            for loaded in (loaded for replica in replicas for loaded in replica.loaded):
                fields = loaded.info.model_dump(mode="json", exclude={"state"})
                key = loaded.info.name, loaded.info.digest
                entry = entries.setdefault(key, {**fields, "states": {}})
                entry["states"].setdefault(group, []).append(loaded.info.state)
        return list(entries.values())

    async def require(self, names: Iterable[str]) -> tuple[LoadedAdapter, ...]:
        """The adapters of these names; NotFoundError for one that is nowhere loaded, LostError
        where one that did not answer may have it."""
        return await self._require(names, param="adapters")

    async def find(self, names: Iterable[str]) -> tuple[LoadedAdapter, ...]:
        """The adapters of these names, as far as any replica that answers knows."""
        wanted = tuple(dict.fromkeys(names))
        await self._learn(wanted)
        return tuple(self._known[name] for name in wanted if name in self._known)

    async def _require(self, names: Iterable[str], *, param: str) -> tuple[LoadedAdapter, ...]:
        wanted = tuple(dict.fromkeys(names))
        error = await self._learn(wanted)
        for name in wanted:
            if name not in self._known:
                raise error or self._unknown(name, param=param)
        return tuple(self._known[name] for name in wanted)

    async def _learn(self, names: Collection[str]) -> LatentMASError | None:
        """Ask about names that are not known; the error of a group that did not answer."""
        if all(name in self._known for name in names):
            return None
        return (await self._ask()).error

    async def _load(self, source: AdapterSource, is_operators: bool) -> AdapterInfo:
        async with self._lock_of(source.name):
            order = AdapterOrder(source, is_operators, uuid.uuid4().hex)
            outcomes = await self._tell_all("load_adapter", order)
            try:
                loaded = _agreed(source, outcomes)
            except LatentMASError:
                await self._tell_all("take_back_adapter", order)
                raise
            self._known[source.name] = loaded
            self._unloaded.discard(source.name)
            self._num_changes += 1
            return loaded.info

    async def _unload(self, name: str) -> None:
        async with self._lock_of(name):
            await self._require([name], param="lora_name")
            del self._known[name]
            self._unloaded.add(name)
            self._num_changes += 1
            outcomes = await self._tell_all("unload_adapter", name)
            lost = [outcome for outcome in outcomes if isinstance(outcome, LatentMASError)]
            if lost:  # whoever of them is there after all is told again when it is listed
                raise lost[0]

    def _lock_of(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    def _unknown(self, name: str, *, param: str) -> NotFoundError:
        known = ", ".join(sorted(self._known)) or "none is loaded"
        return NotFoundError(
            f"adapter {name!r} is not loaded. Known: {known}. Load it first.", param=param
        )

    async def _ask(self) -> Answers:
        """What all replicas have. Those who ask at the same time share one answer."""
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_replicas())
            self._asking.add_done_callback(self._end_asking)
        return await asyncio.shield(self._asking)

    def _end_asking(self, asked: asyncio.Task[Answers]) -> None:
        self._asking = None
        _note_outcome(asked)

    async def _ask_replicas(self) -> Answers:
        while True:
            num_changes = self._num_changes
            listings, error = await self._listings()
            if num_changes == self._num_changes:  # else some may have answered before that
                break
        replicas = [replica for group in listings.values() for replica in group]
        if not replicas:  # what was known stays known until there is one to ask
            return Answers(listings, error)
        unloaded = self._unloaded.union(*(replica.unloaded for replica in replicas))
        returned = {name for replica in replicas for name in _returned(replica, unloaded)}
        self._unloaded |= returned
        listings = {
            group: [_without(replica, unloaded) for replica in group_replicas]
            for group, group_replicas in listings.items()
        }
        # What is known of groups that did not answer stays known.
        kept = {n: one for n, one in self._known.items() if error and n not in returned}
        self._known = kept | {
            loaded.info.name: loaded
            for group in listings.values()
            for replica in group
            for loaded in replica.loaded
        }
        if returned:
            logger.info("adapters %s were unloaded before these replicas began", sorted(returned))
            await self._tell_all("forget_adapters", sorted(returned))
        return Answers(listings, error)

    async def _tell_all(self, method: str, *arguments: Any) -> list[Any]:
        """The answers of all replicas, and the errors of those that are lost."""
        by_group = await self._ask_groups(method, *arguments)
        return [answer for answers in by_group.values() for answer in answers]

    async def _listings(self) -> Answers:
        listings: dict[str, list[AdapterListing]] = {}
        errors: list[LatentMASError] = []
        for group, answers in (await self._ask_groups("adapters")).items():
            errors += [one for one in answers if isinstance(one, LatentMASError)]
            listings[group] = [one for one in answers if isinstance(one, AdapterListing)]
        return Answers(listings, errors[0] if errors else None)

    async def _ask_groups(self, method: str, *arguments: Any) -> dict[str, list[Any]]:
        """By group the answers of its replicas, and the errors of those that are lost."""
        answers = await asyncio.gather(
            *(ask_all_replicas(handle, method, *arguments) for handle in self._handles.values())
        )
        return dict(zip(self._handles, answers, strict=True))


def _agreed(source: AdapterSource, outcomes: list[Any]) -> LoadedAdapter:
    """What all replicas have loaded. Raises the first error, or that they disagree."""
    for outcome in outcomes:
        if isinstance(outcome, LatentMASError):
            raise outcome
        if isinstance(outcome, AdapterFailed):
            raise outcome.error
    if not outcomes:
        raise EngineError(
            f"adapter {source.name!r} cannot be checked: no group has a replica. Ask a question "
            "first, or set min_replicas of a group to 1."
        )
    digests = {outcome.info.digest for outcome in outcomes}
    if len(digests) > 1:
        raise AdapterError(
            f"adapter {source.name!r}: replicas read different files from {source.path!r} (digests "
            f"{', '.join(sorted(digest[:12] for digest in digests))}). Put the same on all nodes.",
            param="path",
        )
    loaded: LoadedAdapter = outcomes[0]
    return loaded


def _returned(replica: AdapterListing, unloaded: Collection[str]) -> set[str]:
    """Names that were unloaded, and that the replica has all the same."""
    names = {loaded.info.name for loaded in replica.loaded}
    return (names & set(unloaded)) - replica.by_group


def _without(replica: AdapterListing, unloaded: Collection[str]) -> AdapterListing:
    gone = _returned(replica, unloaded)
    return replica._replace(
        loaded=tuple(loaded for loaded in replica.loaded if loaded.info.name not in gone)
    )


async def _to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Whoever waits for it may go away; half done, replicas would differ."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_note_outcome)
        raise


def _note_outcome(task: "asyncio.Task[Any]") -> None:
    """Its error may be nobody's; asyncio would log it."""
    if not task.cancelled():
        task.exception()
