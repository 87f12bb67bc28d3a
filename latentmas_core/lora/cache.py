"""Which adapters are where: in blocks on the device, in host memory, or on disk alone.

    ABSENT -> LOADING -> READY -> ABSENT      loaded when a turn needs it, evicted when idle
    any    -> DRAINING -> gone                unloaded: turns that have it finish first

Used by the engine's thread alone; reading and copying are done by a loader's threads, which post
the outcome back. An adapter is *idle* while no running turn refers to it; only idle adapters that
nobody pinned are evicted, longest unused first. One that was loaded for a turn that waits is
*claimed*: only the first in the queue may take its place. What the first in the queue needs is
*kept*: nobody takes its place. So nobody waits for ever. Host memory keeps the latest loaded, but
first of all those that turns have: one that is suspended should find its adapter there.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from latentmas_core.errors import AdapterError, LatentMASError, NotFoundError
from latentmas_core.lora.arena import Arena, Berth
from latentmas_core.lora.cached_adapter import (
    AdapterSpec,
    AdapterState,
    AdapterStats,
    CachedAdapter,
    Readiness,
)
from latentmas_core.lora.mix import NO_ADAPTERS, AdapterMix
from latentmas_core.lora.packed import AdapterLayout, PackedAdapter

logger = logging.getLogger(__name__)


class Loader(Protocol):
    """Brings adapters to the device, beside the engine's thread."""

    def start(
        self,
        adapter: CachedAdapter,
        on_end: Callable[[PackedAdapter | LatentMASError], None],
    ) -> None:
        """Fill ``adapter.berth``; ``on_end`` is called on the engine's thread."""
        ...


class AdapterCache:
    """``make_room``: asks for free blocks. ``on_failure``: told of an adapter that cannot load."""

    def __init__(
        self,
        arena: Arena,
        loader: Loader,
        *,
        max_loaded: int,
        max_host: int,
        make_room: Callable[[int], bool],
        on_failure: Callable[[str, LatentMASError], None],
    ) -> None:
        self._arena = arena
        self._loader = loader
        self.max_loaded = max_loaded
        self._max_host = max_host
        self._make_room = make_room
        self._on_failure = on_failure
        self._names: dict[str, AdapterSpec] = {}
        self._adapters: dict[str, CachedAdapter] = {}
        self._on_device: OrderedDict[str, CachedAdapter] = OrderedDict()  # longest unused first
        self._on_host: OrderedDict[str, CachedAdapter] = OrderedDict()
        self._kept = NO_ADAPTERS
        self.num_loads = 0
        self.num_evictions = 0

    # Names. ``find`` may be called from any thread.

    def find(self, name: str) -> AdapterSpec:
        """Raises NotFoundError: a name that is not there is never the base model."""
        spec = self._names.get(name)
        if spec is None:
            known = ", ".join(sorted(self._names)[:20]) or "none is loaded"
            raise NotFoundError(
                f"adapter {name!r} is not loaded. Known: {known}. Load it first.", param="adapters"
            )
        return spec

    def listing(self) -> list[tuple[AdapterSpec, AdapterState]]:
        """All names, and where their adapters are."""
        return [(spec, self._adapters[spec.digest].state) for spec in self._names.values()]

    def register(self, spec: AdapterSpec, packed: PackedAdapter) -> AdapterSpec:
        """Make an adapter known; a pinned one is brought to the device and stays there."""
        self.check_name(spec)
        self._check_fits(spec)
        adapter = self._adapters.setdefault(spec.digest, CachedAdapter(spec, packed))
        self._keep_on_host(adapter, packed)  # a pin is then copied from there
        if spec.is_pinned:
            self._pin(adapter, spec.name)
        else:
            adapter.pinned_by.discard(spec.name)
        adapter.names.add(spec.name)
        adapter.spec = self._names[spec.name] = spec  # whose folder was there just now
        return spec

    def check_name(self, spec: AdapterSpec) -> None:
        """Raises AdapterError if the name is in use for another adapter."""
        known = self._names.get(spec.name)
        if known is not None and known.digest != spec.digest:
            raise AdapterError(
                f"adapter name {spec.name!r} is in use for {known.folder.name!r} "
                f"({known.digest[:12]}). Unload it first, or choose another name.",
                param="name",
            )

    def unregister(self, name: str) -> None:
        """Forget a name; the adapter goes when the last turn that has it has ended."""
        adapter = self._adapters[self.find(name).digest]
        del self._names[name]
        adapter.names.discard(name)
        adapter.pinned_by.discard(name)
        if adapter.names and adapter.spec.name == name:
            adapter.spec = self._names[min(adapter.names)]
        self._drop_if_unused(adapter)

    # What the scheduler asks.

    def hold(self, mix: AdapterMix) -> None:
        """A turn arrived; what it needs stays known until ``drop``. Raises AdapterError."""
        for adapter in self._members(mix):
            adapter.num_holds += 1

    def drop(self, mix: AdapterMix) -> None:
        """That turn ended."""
        for adapter in self._members(mix):
            adapter.num_holds -= 1
            if adapter.num_holds == 0:
                adapter.is_claimed = False
            self._drop_if_unused(adapter)

    def keep(self, mix: AdapterMix) -> None:
        """What the first in the queue needs gives way to nobody, until another is the first."""
        self._kept = mix

    def request(self, mix: AdapterMix, *, is_first: bool) -> Readiness:
        """Whether a turn can run with its adapters; starts to load what is missing."""
        if all(adapter.is_ready for adapter in self._members(mix)):
            return Readiness.READY
        for adapter in self._widest_first(mix):
            if adapter.berth is None and not self._load(adapter, mix, is_first=is_first):
                return Readiness.BLOCKED
        return Readiness.COMING

    def evict_members(self, mix: AdapterMix) -> bool:
        """So that a mix is loaded as a whole, the widest first; False if none of it may leave.

        One that came first may lie where there is no room for another on either side of it.
        """
        leaving = [adapter for adapter in self._members(mix) if self._may_leave(adapter)]
        for adapter in leaving:
            self._evict(adapter)
        return bool(leaving)

    def ready(self) -> set[str]:
        """Digests of those that turns can run with at once."""
        return {digest for digest, adapter in self._on_device.items() if adapter.is_ready}

    def acquire(self, mix: AdapterMix) -> list[Berth]:
        """The adapters of a turn that starts to run, each with a reference."""
        berths = []
        for adapter in self._members(mix):
            assert adapter.is_ready, f"{adapter.spec.name} is {adapter.state}"
            assert adapter.berth is not None, "what is ready has a place"
            adapter.num_refs += 1
            adapter.is_claimed = False
            self._on_device.move_to_end(adapter.spec.digest)
            berths.append(adapter.berth)
        return berths

    def release(self, mix: AdapterMix) -> None:
        """The turn runs no longer: it ended, was preempted or is suspended."""
        for adapter in self._members(mix):
            assert adapter.num_refs > 0, f"{adapter.spec.name} is released twice"
            adapter.num_refs -= 1
            self._on_device.move_to_end(adapter.spec.digest)

    def running(self, *, besides: AdapterMix) -> list[str]:
        """Digests that hold a place only because turns run with them."""
        return [
            digest
            for digest, adapter in self._on_device.items()
            if adapter.num_refs > 0 and not adapter.pinned_by and digest not in besides.digests
        ]

    def is_on_host(self, mix: AdapterMix) -> bool:
        """Whether it would come back to the device without a file being read."""
        return all(adapter.packed is not None for adapter in self._members(mix))

    def is_full(self) -> bool:
        return len(self._on_device) >= self.max_loaded

    @property
    def num_idle_blocks(self) -> int:
        """Blocks that evicting would free."""
        return sum(a.berth.num_blocks for a in self._idle() if a.berth is not None)

    def evict_one(self) -> bool:
        """Free the blocks of the longest unused idle adapter; False if there is none."""
        for adapter in self._idle():
            self._evict(adapter)
            return True
        return False

    # Counts.

    @property
    def num_loading(self) -> int:
        return sum(adapter.is_loading for adapter in self._on_device.values())

    @property
    def num_blocks(self) -> int:
        """Blocks that are taken now."""
        return sum(a.berth.num_blocks for a in self._on_device.values() if a.berth is not None)

    def num_blocks_for(self, spec: AdapterSpec) -> int:
        return self._arena.num_blocks_for(spec.layout)

    def pinned(self) -> list[AdapterSpec]:
        return [adapter.spec for adapter in self._adapters.values() if adapter.pinned_by]

    def reserved(self, mix: AdapterMix, *, pinned: AdapterSpec | None = None) -> list[AdapterSpec]:
        """What is on the device while a turn runs: its own, the pinned ones and ``pinned``.

        Each once. Raises AdapterError if one of its own is not there.
        """
        specs = [*self.pinned(), *(adapter.spec for adapter in self._members(mix))]
        specs += [pinned] if pinned else []
        return list({spec.digest: spec for spec in specs}.values())

    def stats(self) -> AdapterStats:
        return AdapterStats(
            num_registered=len(self._names),
            num_loaded=len(self._on_device) - self.num_loading,
            num_loading=self.num_loading,
            num_on_host=len(self._on_host),
            num_blocks=self.num_blocks,
            num_loads_total=self.num_loads,
            num_evictions_total=self.num_evictions,
        )

    def loaded(self) -> list[str]:
        """Digests on the device, longest unused first."""
        return list(self._on_device)

    def check_integrity(self, running: Iterable[AdapterMix], waiting: Iterable[AdapterMix]) -> None:
        """Raise AssertionError if references and places do not add up."""
        num_running = [digest for mix in running for digest in mix.digests]
        num_waiting = [digest for mix in waiting for digest in mix.digests]
        for digest, adapter in self._adapters.items():
            name = adapter.spec.name
            assert adapter.num_refs == num_running.count(digest), f"{name}: {adapter.num_refs} refs"
            num_alive = adapter.num_refs + num_waiting.count(digest)
            assert adapter.num_holds == num_alive, f"{name}: {adapter.num_holds} != {num_alive}"
            assert (adapter.berth is not None) == (digest in self._on_device), f"{name}: berth"
            assert (adapter.packed is not None) == (digest in self._on_host), f"{name}: host"
            assert adapter.names or adapter.num_holds or adapter.is_loading, f"{name} is left over"
        assert len(self._on_device) <= max(self.max_loaded, 0), "more adapters than allowed"
        assert len(self._on_host) <= self._max_host, "more adapters in host memory than allowed"

    # Moves.

    def _members(self, mix: AdapterMix) -> list[CachedAdapter]:
        missing = [digest for digest in mix.digests if digest not in self._adapters]
        if missing:
            raise AdapterError(
                f"adapter {missing[0][:12]} is not loaded here, or was unloaded. Load it, and send "
                "the request again.",
                param="adapters",
            )
        return [self._adapters[digest] for digest in mix.digests]

    def _load(self, adapter: CachedAdapter, mix: AdapterMix, *, is_first: bool) -> bool:
        berth = self._find_room(adapter.spec.layout, mix, is_first=is_first)
        if berth is None:
            return False
        adapter.berth = berth
        adapter.is_loading = True
        adapter.is_claimed = adapter.num_holds > 0  # one that is only pinned is there for nobody
        self._on_device[adapter.spec.digest] = adapter
        self._loader.start(adapter, lambda outcome: self._end_loading(adapter, outcome))
        return True

    def _end_loading(self, adapter: CachedAdapter, outcome: PackedAdapter | LatentMASError) -> None:
        adapter.is_loading = False
        if isinstance(outcome, LatentMASError):
            logger.warning("adapter %s did not load: %s", adapter.spec.name, outcome.message)
            self._leave_device(adapter)
            self._on_failure(adapter.spec.digest, outcome)
        else:
            self.num_loads += 1
            self._keep_on_host(adapter, outcome)
        self._drop_if_unused(adapter)

    def _find_room(self, layout: AdapterLayout, mix: AdapterMix, *, is_first: bool) -> Berth | None:
        while self.is_full():
            if not self._evict_for(mix, is_first=is_first):
                return None
        while (berth := self._arena.reserve(layout)) is None:
            if self._evict_for(mix, is_first=is_first):
                continue
            if not is_first or not self._make_room(self._arena.num_blocks_for(layout)):
                return None
            return self._arena.reserve(layout)
        return berth

    def _evict_for(self, mix: AdapterMix, *, is_first: bool) -> bool:
        for adapter in self._idle():
            if adapter.spec.digest in mix.digests or (adapter.is_claimed and not is_first):
                continue
            self._evict(adapter)
            return True
        return False

    def _widest_first(self, mix: AdapterMix) -> list[CachedAdapter]:
        return sorted(self._members(mix), key=lambda adapter: -self.num_blocks_for(adapter.spec))

    def _idle(self) -> Iterator[CachedAdapter]:
        for adapter in list(self._on_device.values()):
            if self._may_leave(adapter) and not self._is_kept(adapter):
                yield adapter

    def _may_leave(self, adapter: CachedAdapter) -> bool:
        is_fixed = adapter.is_loading or adapter.pinned_by
        return adapter.berth is not None and adapter.num_refs == 0 and not is_fixed

    def _is_kept(self, adapter: CachedAdapter) -> bool:
        return adapter.num_holds > 0 and adapter.spec.digest in self._kept.digests

    def _evict(self, adapter: CachedAdapter) -> None:
        self._leave_device(adapter)
        self.num_evictions += 1

    def _leave_device(self, adapter: CachedAdapter) -> None:
        assert adapter.berth is not None, f"{adapter.spec.name} has no place to leave"
        assert adapter.num_refs == 0, f"{adapter.spec.name} is in use"
        self._arena.free(adapter.berth)
        adapter.berth = None
        adapter.is_claimed = False
        del self._on_device[adapter.spec.digest]

    def _drop_if_unused(self, adapter: CachedAdapter) -> None:
        if adapter.names or adapter.num_holds or adapter.is_loading:
            return
        if adapter.spec.digest not in self._adapters:
            return
        if adapter.berth is not None:
            self._leave_device(adapter)
        del self._adapters[adapter.spec.digest]
        self._on_host.pop(adapter.spec.digest, None)
        adapter.packed = None

    def _keep_on_host(self, adapter: CachedAdapter, packed: PackedAdapter) -> None:
        digest = adapter.spec.digest
        if digest not in self._adapters:
            return
        adapter.packed = packed
        self._on_host[digest] = adapter
        self._on_host.move_to_end(digest)
        while len(self._on_host) > self._max_host:
            unused = [adapter for adapter in self._on_host.values() if not adapter.num_holds]
            oldest = next(iter(unused or self._on_host.values()))
            del self._on_host[oldest.spec.digest]
            oldest.packed = None

    def _pin(self, adapter: CachedAdapter, name: str) -> None:
        if adapter.berth is None and not self._load(adapter, NO_ADAPTERS, is_first=True):
            self._drop_if_unused(adapter)
            raise AdapterError(
                f"adapter {name!r} cannot be pinned: every place on the device is in use or "
                "pinned. Unload another, or raise max_loaded_adapters or kv_cache_bytes.",
                param="pinned",
            )
        adapter.pinned_by.add(name)

    def _check_fits(self, spec: AdapterSpec) -> None:
        num_blocks = self.num_blocks_for(spec)
        others = [pinned for pinned in self.pinned() if pinned.digest != spec.digest]
        num_pinned = sum(map(self.num_blocks_for, others))
        if num_blocks > self._arena.max_blocks - num_pinned:
            raise AdapterError(
                f"adapter {spec.name!r} of rank {spec.layout.rank} needs {num_blocks} blocks; the "
                f"pool has {self._arena.max_blocks} for adapters, {num_pinned} of them pinned. "
                "Raise kv_cache_bytes, or use a smaller rank.",
                param="path",
            )
