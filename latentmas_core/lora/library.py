"""Brings adapters from where they are written down, a folder or the hub, into an engine."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from pydantic import Field

from latentmas_core.config import FrozenModel, Text
from latentmas_core.errors import AdapterError
from latentmas_core.latent.segment import BASE_ADAPTER
from latentmas_core.lora.base_model import BaseModel
from latentmas_core.lora.cached_adapter import AdapterSpec, AdapterState
from latentmas_core.lora.checkpoint import max_file_bytes
from latentmas_core.lora.merge_options import MergeOptions
from latentmas_core.lora.merging import MergeInput, merge_adapters
from latentmas_core.lora.registry import AdapterRegistry, check_base
from latentmas_core.lora.source import locate_adapter
from latentmas_core.names import Name
from latentmas_core.validation import validated

T = TypeVar("T")


class AdapterSource(FrozenModel):
    """An adapter by name, and where it is."""

    name: Name
    """What requests and agents call it."""
    path: Text
    """A folder, or `owner/name` of the hub."""
    revision: Text | None = None
    """Commit, tag or branch of the hub; null: its default branch."""
    pinned: bool = False
    """Keep it on the device, whatever else is loaded."""


class AdapterInfo(FrozenModel):
    """A loaded adapter, as its users see it."""

    name: str
    """What requests and agents call it."""
    digest: str
    """SHA-256 of its files."""
    state: AdapterState
    """Where it is just now."""
    rank: int = Field(ge=1)
    """Its rank."""
    targets: tuple[str, ...]
    """The layers that it changes."""
    base_model: str
    """The model that it says it was made for."""
    pinned: bool
    """Whether it stays on the device."""


class LibraryEngine(Protocol):
    """What is needed of an engine."""

    model_name: str

    @property
    def adapter_base(self) -> BaseModel: ...
    @property
    def max_lora_rank(self) -> int: ...
    def adapter(self, name: str) -> AdapterSpec: ...
    async def run_beside(self, function: Callable[[], T]) -> T: ...
    async def load_adapter(
        self, name: str, folder: Path, *, is_pinned: bool = False
    ) -> AdapterSpec: ...
    async def unload_adapter(self, name: str) -> None: ...
    async def adapters(self) -> list[tuple[AdapterSpec, AdapterState]]: ...


class AdapterLibrary:
    """``roots``: the only folders that adapters may lie in; None leaves it to the caller."""

    def __init__(
        self,
        engine: LibraryEngine,
        registry: AdapterRegistry | None = None,
        *,
        roots: Sequence[Path] | None = None,
        allows_hub: bool = True,
    ) -> None:
        self.registry = registry or AdapterRegistry()
        self._engine = engine
        self._roots = roots
        self._allows_hub = allows_hub

    async def load(self, source: AdapterSource) -> AdapterSpec:
        """Find, check and make known. Raises AdapterError, or HubError where the hub fails."""
        _check_is_no_base(source.name)
        located = await asyncio.to_thread(
            locate_adapter,
            source.path,
            revision=source.revision,
            roots=self._roots,
            allow_hub=self._allows_hub,
            max_bytes=max_file_bytes(self._engine.adapter_base, self._engine.max_lora_rank),
        )
        return await self._engine.load_adapter(source.name, located.folder, is_pinned=source.pinned)

    async def load_from_registry(self, name: str, *, pinned: bool = False) -> AdapterSpec:
        """Load an entry of the registry; one for another base is refused with both names."""
        return await self.load(self.source_of(name, pinned=pinned))

    def source_of(self, name: str, *, pinned: bool = False) -> AdapterSource:
        """Where an entry of the registry is. Raises NotFoundError, or AdapterError for another
        base."""
        entry = self.registry.get(name)
        check_base(entry, self._engine.model_name)
        return AdapterSource(
            name=entry.name,
            path=entry.path,
            revision=entry.revision,
            pinned=pinned or entry.pinned,
        )

    async def merge(
        self, name: str, adapters: Mapping[str, float], output: Path, options: MergeOptions
    ) -> AdapterSpec:
        """Merge loaded adapters, by their names and weights, into a new folder, and load that.

        Raises ConfigError or AdapterError for a name that it cannot have, before anything is read.
        """
        merged = validated(AdapterSource, {"name": name, "path": str(output)})
        await self._check_is_free(merged.name)
        inputs = [self._merge_input(one, weight) for one, weight in adapters.items()]
        await self._engine.run_beside(
            lambda: merge_adapters(
                inputs,
                output,
                options=options,
                base=self._engine.adapter_base,
                max_rank=self._engine.max_lora_rank,
            )
        )
        return await self.load(merged)

    def _merge_input(self, name: str, weight: float) -> MergeInput:
        spec = self._engine.adapter(name)
        return MergeInput(spec.folder, weight, spec.digest)

    async def _check_is_free(self, name: str) -> None:
        _check_is_no_base(name)
        if any(spec.name == name for spec, _ in await self._engine.adapters()):
            raise AdapterError(
                f"adapter name {name!r} is in use. Unload it first, or choose another name.",
                param="name",
            )

    async def unload(self, name: str) -> None:
        """Forget a name; turns that have its adapter finish first. NotFoundError."""
        await self._engine.unload_adapter(name)

    async def loaded(self) -> list[AdapterInfo]:
        """All that are known, and where each is."""
        return [
            AdapterInfo(
                name=spec.name,
                digest=spec.digest,
                state=state,
                rank=spec.layout.rank,
                targets=tuple(spec.layout.spans),
                base_model=spec.base_model_name,
                pinned=spec.is_pinned,
            )
            for spec, state in await self._engine.adapters()
        ]


def _check_is_no_base(name: str) -> None:
    if name == BASE_ADAPTER:
        raise AdapterError(
            f"adapter name {name!r} means the base model. Choose another name.", param="name"
        )
