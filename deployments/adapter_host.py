"""The adapters of one replica: what the config names at the start, and what comes later."""

from collections.abc import Iterable
from typing import Any

from deployments.adapters import AdapterFailed, LoadedAdapter
from deployments.args import AdaptersConfig
from latentmas_core.engine.engine import Engine
from latentmas_core.errors import LatentMASError, NotFoundError
from latentmas_core.lora.library import AdapterInfo, AdapterLibrary, AdapterSource
from latentmas_core.lora.registry import AdapterRegistry


class AdapterHost:
    """Loads into one engine. What a client asks for is bound to the roots, the config is not.

    ``resident``: names of adapters that stay on the device once they are loaded.
    """

    def __init__(
        self, engine: Engine, config: AdaptersConfig, *, resident: Iterable[str] = ()
    ) -> None:
        registry = AdapterRegistry(config.registries)
        self._config = config
        self._resident = frozenset(resident)
        self._trusted = AdapterLibrary(engine, registry)
        self._guarded = AdapterLibrary(
            engine, registry, roots=config.roots, allows_hub=config.allow_hub
        )
        self._engine = engine
        self._sources: dict[str, AdapterSource] = {}

    async def start(self) -> None:
        """Load what the config names; the first that fails ends the start with its error."""
        await self.load_configured(self._config.load)

    async def load_configured(self, adapters: Iterable[AdapterSource | str]) -> None:
        """Load what the operator names, from wherever it is; a name alone is of the registry."""
        for one in adapters:
            source = one if isinstance(one, AdapterSource) else self._trusted.source_of(one)
            if source.name in self._resident:
                source = source.model_copy(update={"pinned": True})
            await self._trusted.load(source)
            self._sources[source.name] = source

    async def ensure(self, sources: tuple[AdapterSource, ...]) -> None:
        """Load what other replicas have and this one has not."""
        for source in sources:
            if source.name not in self._sources:
                await self._load(source)

    async def load(self, source: AdapterSource) -> LoadedAdapter | AdapterFailed:
        try:
            await self._load(source)
        except LatentMASError as error:
            return AdapterFailed(error)
        (info,) = [info for info in await self._guarded.loaded() if info.name == source.name]
        return LoadedAdapter(info, source)

    async def unload(self, name: str) -> str | AdapterFailed:
        try:
            await self._guarded.unload(name)
        except NotFoundError as error:
            return AdapterFailed(error)
        self._sources.pop(name, None)
        return name

    async def loaded(self) -> list[LoadedAdapter]:
        infos: list[AdapterInfo] = await self._guarded.loaded()
        return [
            LoadedAdapter(info, self._sources[info.name])
            for info in infos
            if info.name in self._sources
        ]

    def check_loaded(self, agent: str, names: Iterable[str]) -> None:
        """Raise NotFoundError for an adapter of an agent that is not loaded here."""
        for name in names:
            if name not in self._sources:
                raise NotFoundError(
                    f"agent {agent!r} uses adapter {name!r}, which is not loaded here. Name it "
                    "under adapters.load.",
                    param=f"agents.{agent}.adapter",
                )

    async def _load(self, source: AdapterSource) -> Any:
        await self._guarded.load(source)
        self._sources[source.name] = source
