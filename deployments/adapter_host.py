"""The adapters of one replica: what the config names at the start, and what comes later."""

import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from deployments.args import AdaptersConfig
from deployments.messages import AdapterFailed, AdapterListing, AdapterOrder, LoadedAdapter
from latentmas_core.errors import AdapterError, LatentMASError, NotFoundError
from latentmas_core.lora.library import AdapterInfo, AdapterLibrary, AdapterSource
from latentmas_core.lora.registry import AdapterRegistry

if TYPE_CHECKING:
    from latentmas_core.engine.engine import Engine

logger = logging.getLogger(__name__)


class _Origin(NamedTuple):
    """Where a loaded adapter came from, and whether the operator named that place."""

    source: AdapterSource
    is_operators: bool


class _Order(NamedTuple):
    """The last order to load a name. ``before``: what the name was until then, if anything."""

    order_id: str
    origin: _Origin
    before: _Origin | None


class _Standing(NamedTuple):
    """What a name was before a config of the group named it."""

    origin: _Origin | None
    is_unloaded: bool
    is_by_group: bool


class AdapterHost:
    """Loads into one engine. What a client asks for is bound to the roots, the config is not.

    ``resident``: names of adapters that stay on the device once they are loaded.
    """

    def __init__(
        self, engine: "Engine", config: AdaptersConfig, *, resident: Iterable[str] = ()
    ) -> None:
        registry = AdapterRegistry(config.registries)
        self._config = config
        self._resident = frozenset(resident)
        self._trusted = AdapterLibrary(engine, registry)
        self._guarded = AdapterLibrary(
            engine, registry, roots=config.roots, allows_hub=config.allow_hub
        )
        self._origins: dict[str, _Origin] = {}
        self._by_args: dict[str, _Origin] = {}
        self._orders: dict[str, _Order] = {}
        self._unloaded: set[str] = set()
        self._by_group: set[str] = set()

    async def start(self) -> None:
        """Load what the args name; the first that fails ends the start with its error."""
        for one in self._config.load:
            source = self._configured(one)
            self._by_args[source.name] = await self._load(source, is_operators=True)

    @asynccontextmanager
    async def configured(self, adapters: Iterable[AdapterSource | str]) -> AsyncIterator[None]:
        """Load what the group's own config names, from wherever it is; a name alone is of the
        registry. It says so anew, whatever was unloaded before.

        The block may still refuse the config: if it raises, or one does not load, all is as it was.
        Behind the block, what the last config named and this one does not goes.
        """
        before: dict[str, _Standing] = {}
        loaded: dict[str, _Origin] = {}
        try:
            for one in adapters:
                source = self._configured(one)
                before.setdefault(source.name, self._standing(source.name))
                loaded[source.name] = await self._load(source, is_operators=True)
                self._unloaded.discard(source.name)
                self._by_group.add(source.name)
            yield
        except BaseException:
            for name, origin in loaded.items():
                await self._put_back(name, origin, before[name])
            raise
        for name in self._by_group.difference(loaded):
            await self._leave(name)

    async def ensure(self, adapters: Iterable[LoadedAdapter]) -> None:
        """Load what other replicas have and this one has not.

        Raises NotFoundError for what was unloaded meanwhile, AdapterError where a name is another
        adapter here.
        """
        for wanted in adapters:
            self._check_not_unloaded(wanted.info.name)
            is_new = wanted.info.name not in self._origins
            if is_new:
                await self._load(wanted.source, is_operators=wanted.is_operators)
            try:
                self._check_not_unloaded(wanted.info.name)
                self._check_same(wanted.info, (await self._loaded_as(wanted.info.name)).info)
            except LatentMASError:
                if is_new:
                    await self._drop(wanted.info.name)
                raise

    async def load(self, order: AdapterOrder) -> LoadedAdapter | AdapterFailed:
        """Failures are told, not raised: they cross a handle."""
        name = order.source.name
        before = self._origins.get(name)
        try:
            origin = await self._load(order.source, is_operators=order.is_operators)
        except LatentMASError as error:
            return AdapterFailed(error)
        except Exception:
            logger.exception("adapter %s did not load", name)
            return AdapterFailed(
                AdapterError(
                    f"adapter {name!r} could not be loaded; the log of the replica says why.",
                    param="path",
                )
            )
        self._unloaded.discard(name)
        self._orders[name] = _Order(order.order_id, origin, before)
        return await self._loaded_as(name)

    async def take_back(self, order: AdapterOrder) -> None:
        """Undo a load of all replicas that failed on another one."""
        name = order.source.name
        carried_out = self._orders.get(name)
        if carried_out is None or carried_out.order_id != order.order_id:
            return
        del self._orders[name]
        await self._return_to(carried_out.before, name)

    async def unload(self, name: str) -> None:
        """Also where it is not loaded: a call that began before must not bring it back."""
        self._unloaded.add(name)
        self._by_group.discard(name)
        self._by_args.pop(name, None)
        self._orders.pop(name, None)
        if name in self._origins:
            await self._drop(name)

    async def forget(self, names: Iterable[str]) -> None:
        """Unload what was unloaded everywhere before this replica began."""
        for name in names:
            if name not in self._by_group:
                await self.unload(name)

    async def to_recall(self) -> dict[str, LoadedAdapter]:
        """What other groups need to compute again what was computed here, by digest. They need not
        pin it."""
        return {
            one.info.digest: one._replace(source=one.source.model_copy(update={"pinned": False}))
            for one in (await self.listing()).loaded
        }

    async def listing(self) -> AdapterListing:
        """What is loaded here, and by whom; what was unloaded."""
        return AdapterListing(
            tuple(
                LoadedAdapter(info, *self._origins[info.name])
                for info in await self._guarded.loaded()
                if info.name in self._origins
            ),
            frozenset(self._unloaded),
            frozenset(self._by_group),
        )

    def check_loaded(self, agent: str, names: Iterable[str]) -> None:
        """Raise NotFoundError for an adapter of an agent that is not loaded here."""
        for name in names:
            if name not in self._origins:
                raise NotFoundError(
                    f"agent {agent!r} uses adapter {name!r}, which is not loaded here. Name it "
                    "under adapters.load.",
                    param=f"agents.{agent}.adapter",
                )

    def _check_not_unloaded(self, name: str) -> None:
        if name in self._unloaded:
            raise NotFoundError(
                f"adapter {name!r} was unloaded while the request was under way. Load it, and send "
                "the request again.",
                param="adapters",
            )

    def _check_same(self, wanted: AdapterInfo, found: AdapterInfo) -> None:
        if found.digest != wanted.digest:
            raise AdapterError(
                f"adapter {wanted.name!r} is {found.digest[:12]} here and was {wanted.digest[:12]} "
                "when the request began: its files changed, or another got its name. Send the "
                "request again.",
                param="adapters",
            )

    def _configured(self, one: AdapterSource | str) -> AdapterSource:
        source = one if isinstance(one, AdapterSource) else self._trusted.source_of(one)
        if source.name in self._resident:
            return source.model_copy(update={"pinned": True})
        return source

    def _standing(self, name: str) -> _Standing:
        return _Standing(self._origins.get(name), name in self._unloaded, name in self._by_group)

    async def _put_back(self, name: str, tried: _Origin, before: _Standing) -> None:
        """Undo what a config that is refused has loaded, unless others have changed it since."""
        if self._origins.get(name) is not tried:
            return
        if before.is_unloaded:
            self._unloaded.add(name)
        if not before.is_by_group:
            self._by_group.discard(name)
        await self._return_to(before.origin, name)

    async def _leave(self, name: str) -> None:
        """The group's config does not name it any more: it is what it is without that."""
        self._by_group.discard(name)
        order = self._orders.get(name)
        await self._return_to(order.origin if order else self._by_args.get(name), name)

    async def _return_to(self, origin: _Origin | None, name: str) -> None:
        if origin is None:
            await self._drop(name)
            return
        try:
            await self._load(origin.source, is_operators=origin.is_operators)  # pinned as it was
        except LatentMASError as error:
            logger.warning("adapter %s stays as it was loaded last: %s", name, error.message)

    async def _load(self, source: AdapterSource, *, is_operators: bool) -> _Origin:
        library = self._trusted if is_operators else self._guarded
        await library.load(source)
        origin = self._origins[source.name] = _Origin(source, is_operators)
        return origin

    async def _drop(self, name: str) -> None:
        self._origins.pop(name, None)
        try:
            await self._guarded.unload(name)
        except NotFoundError:
            logger.info("adapter %s was gone already", name)

    async def _loaded_as(self, name: str) -> LoadedAdapter:
        infos: list[AdapterInfo] = await self._guarded.loaded()
        found = [info for info in infos if info.name == name]
        if not found:
            raise NotFoundError(f"adapter {name!r} was just unloaded. Load it.", param="adapters")
        return LoadedAdapter(found[0], *self._origins[name])
