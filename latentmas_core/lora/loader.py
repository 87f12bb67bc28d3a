"""Reads adapters and copies them to the device, on threads of its own: a step waits for neither."""

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from latentmas_core.engine.quiet_threads import QuietThreads
from latentmas_core.errors import AdapterError, LatentMASError
from latentmas_core.lora.arena import fill
from latentmas_core.lora.base_model import BaseModel
from latentmas_core.lora.cached_adapter import AdapterSpec, CachedAdapter
from latentmas_core.lora.checkpoint import read_checkpoint
from latentmas_core.lora.packed import PackedAdapter, pack_adapter

logger = logging.getLogger(__name__)

NUM_THREADS = 2  # so that a large file that is read does not hold up a copy


class AdapterLoader:
    """``post``: runs a command on the engine's thread."""

    def __init__(
        self,
        base: BaseModel,
        *,
        dtype: torch.dtype,
        device: torch.device,
        max_rank: int,
        post: Callable[[Callable[[], None]], None],
    ) -> None:
        self._base = base
        self._dtype = dtype
        self._is_pinned = device.type == "cuda"
        self._max_rank = max_rank
        self._post = post
        self._threads = QuietThreads(NUM_THREADS, name="adapters")

    def read(
        self, name: str, folder: Path, *, is_pinned: bool = False
    ) -> tuple[AdapterSpec, PackedAdapter]:
        """A validated adapter in host memory; blocks. Raises AdapterError."""
        checkpoint = read_checkpoint(folder, self._base, max_rank=self._max_rank)
        packed = pack_adapter(checkpoint, self._base, self._dtype, is_pinned=self._is_pinned)
        spec = AdapterSpec(
            name=name,
            digest=checkpoint.digest,
            folder=folder,
            layout=packed.layout,
            base_model_name=checkpoint.base_model_name,
            is_pinned=is_pinned,
        )
        return spec, packed

    def start(
        self,
        adapter: CachedAdapter,
        on_end: Callable[[PackedAdapter | LatentMASError], None],
    ) -> None:
        """Fill the adapter's berth from host memory, or from disk; then post the outcome."""
        packed = adapter.packed  # it may be dropped from host memory meanwhile
        self._threads.submit(self._load, adapter, packed, on_end)

    def close(self) -> None:
        """Wait for what is being loaded; nothing writes to the device any more."""
        self._threads.close(waits=True)

    def _load(
        self,
        adapter: CachedAdapter,
        packed: PackedAdapter | None,
        on_end: Callable[[PackedAdapter | LatentMASError], None],
    ) -> None:
        outcome: PackedAdapter | LatentMASError
        try:
            outcome = packed or self._read_again(adapter.spec)
            assert adapter.berth is not None, "room is reserved before anything is loaded"
            fill(adapter.berth, outcome)
        except LatentMASError as error:
            outcome = error
        except Exception:
            logger.exception("adapter %s did not load", adapter.spec.name)
            outcome = AdapterError(
                f"adapter {adapter.spec.name!r} could not be loaded. Load it again.",
                param="adapters",
            )
        self._post(lambda: on_end(outcome))

    def _read_again(self, spec: AdapterSpec) -> PackedAdapter:
        again, packed = self.read(spec.name, spec.folder)
        if again.digest != spec.digest:
            raise AdapterError(
                f"adapter {spec.name!r}: its files changed since it was loaded. Unload it and load "
                "it again.",
                param="adapters",
            )
        return packed
