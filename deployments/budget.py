"""How much memory of agents may lie in the object store at a time, counted by whoever owns it.

The object store is no hard limit: what does not fit is spilled to disk, and everything slows down.
So a run that will hand memory over waits until there is room. Knows no Ray.
"""

import asyncio
from collections import Counter

from deployments.messages import RemoteMemory
from latentmas_core.errors import EngineError


class TransferBudget:
    """Counts each parcel once, however many memories contain it.

    What is over the budget already goes on: only new runs wait, so nobody waits for each other.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._num_holders: Counter[tuple[str, ...]] = Counter()
        self._sizes: dict[tuple[str, ...], int] = {}
        self._has_room = asyncio.Event()
        self._has_room.set()

    @property
    def num_bytes(self) -> int:
        """Bytes of all parcels that are held."""
        return sum(self._sizes.values())

    @property
    def num_parcels(self) -> int:
        return len(self._sizes)

    async def wait_for_room(self, *, timeout_s: float) -> None:
        """Return once less than the budget is held; EngineError if that takes too long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._has_room.wait()
        except TimeoutError:
            raise EngineError(
                f"{self.num_bytes} bytes of memory are on their way between agents; "
                f"max_transfer_bytes is {self.max_bytes}, and there was no room for another run "
                f"within {timeout_s:g} s. Retry later, or raise it."
            ) from None

    def hold(self, memory: RemoteMemory) -> None:
        """The parcels of a memory stay in the store until ``drop``."""
        for parcel in memory.parcels:
            self._num_holders[parcel.segment_ids] += 1
            self._sizes[parcel.segment_ids] = parcel.num_bytes
        self._look_for_room()

    def drop(self, memory: RemoteMemory) -> None:
        for parcel in memory.parcels:
            key = parcel.segment_ids
            assert self._num_holders[key] > 0, f"parcel {key} is dropped twice"
            self._num_holders[key] -= 1
            if self._num_holders[key] == 0:
                del self._num_holders[key], self._sizes[key]
        self._look_for_room()

    def _look_for_room(self) -> None:
        if self.num_bytes < self.max_bytes:
            self._has_room.set()
        else:
            self._has_room.clear()
