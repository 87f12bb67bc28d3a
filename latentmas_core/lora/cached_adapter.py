"""What the cache knows of one adapter: what it is, where it is, and who needs it."""

from dataclasses import dataclass, field
from enum import StrEnum, auto
from pathlib import Path

from latentmas_core.lora.arena import Berth
from latentmas_core.lora.packed import AdapterLayout, PackedAdapter


class AdapterState(StrEnum):
    """DRAINING: unloaded, and still there for the turns that have it."""

    ABSENT = auto()
    LOADING = auto()
    READY = auto()
    DRAINING = auto()


class Readiness(StrEnum):
    """READY: can run now. COMING: all that is missing is being loaded. BLOCKED: no room for it."""

    READY = auto()
    COMING = auto()
    BLOCKED = auto()


@dataclass(frozen=True)
class AdapterSpec:
    """A valid adapter, known by name. ``folder`` is where it can be read again."""

    name: str
    digest: str
    folder: Path
    layout: AdapterLayout
    base_model_name: str
    is_pinned: bool = False


@dataclass(eq=False)
class CachedAdapter:
    """One digest. num_holds: turns that wait or run with it; num_refs: those that run."""

    spec: AdapterSpec
    packed: PackedAdapter | None
    berth: Berth | None = None
    is_loading: bool = False
    is_claimed: bool = False
    num_holds: int = 0
    num_refs: int = 0
    names: set[str] = field(default_factory=set)
    pinned_by: set[str] = field(default_factory=set)

    @property
    def is_ready(self) -> bool:
        return self.berth is not None and not self.is_loading

    @property
    def state(self) -> AdapterState:
        if not self.names:
            return AdapterState.DRAINING
        if self.is_loading:
            return AdapterState.LOADING
        return AdapterState.READY if self.is_ready else AdapterState.ABSENT


@dataclass(frozen=True)
class AdapterStats:
    """Counts by tier; ``num_blocks`` of the engine's pool are taken by adapters."""

    num_registered: int = 0
    num_loaded: int = 0
    num_loading: int = 0
    num_on_host: int = 0
    num_blocks: int = 0
    num_loads_total: int = 0
    num_evictions_total: int = 0
