"""The adapters of one replica: what the config names at the start, and what comes later."""

from typing import Any

from deployments.adapters import AdapterFailed, LoadedAdapter
from deployments.args import AdaptersConfig
from latentmas_core.engine.engine import Engine
from latentmas_core.errors import LatentMASError, NotFoundError
from latentmas_core.lora.library import AdapterInfo, AdapterLibrary, AdapterSource
from latentmas_core.lora.registry import AdapterRegistry


class AdapterHost:
    """Loads into one engine. What a client asks for is bound to the roots, the config is not."""

    def __init__(self, engine: Engine, config: AdaptersConfig) -> None:
        registry = AdapterRegistry(config.registries)
        self._config = config
        self._trusted = AdapterLibrary(engine, registry)
        self._guarded = AdapterLibrary(
            engine, registry, roots=config.roots, allows_hub=config.allow_hub
        )
        self._engine = engine
        self._sources: dict[str, AdapterSource] = {}

    async def start(self) -> None:
        """Load what the config names; the first that fails ends the start with its error."""
        for one in self._config.load:
            if isinstance(one, AdapterSource):
                await self._trusted.load(one)
                self._sources[one.name] = one
            else:
                await self._trusted.load_from_registry(one)
                entry = self._trusted.registry.get(one)
                self._sources[one] = AdapterSource(
                    name=one, path=entry.path, revision=entry.revision, pinned=entry.pinned
                )

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

    async def _load(self, source: AdapterSource) -> Any:
        await self._guarded.load(source)
        self._sources[source.name] = source
