"""How much memory of agents may lie in the object store at a time, counted by whoever owns it.

The object store is no hard limit: what does not fit is spilled to disk, and everything slows down.
So a run that will hand memory over waits until there is room. Knows no Ray.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from deployments.messages import RemoteMemory
from latentmas_core.errors import EngineError

# Before any run has shown what it takes: so many are let in at once.
FIRST_GUESS = 1 / 64
# What a run takes is told from those before it; the last one counts for so much.
SMOOTHING = 0.2


class RunAccount:
    """The parcels of one run, each counted once, however many of its memories contain it."""

    def __init__(self) -> None:
        self._num_holders: Counter[tuple[str, ...]] = Counter()
        self._sizes: dict[tuple[str, ...], int] = {}
        self.num_bytes = 0
        self.peak_bytes = 0

    @property
    def num_parcels(self) -> int:
        return len(self._sizes)

    def hold(self, memory: RemoteMemory) -> None:
        """The parcels of a memory stay in the store until ``drop``."""
        for parcel in memory.parcels:
            if self._num_holders[parcel.segment_ids] == 0:
                self._sizes[parcel.segment_ids] = parcel.num_bytes
                self.num_bytes += parcel.num_bytes
            self._num_holders[parcel.segment_ids] += 1
        self.peak_bytes = max(self.peak_bytes, self.num_bytes)

    def drop(self, memory: RemoteMemory) -> None:
        for parcel in memory.parcels:
            key = parcel.segment_ids
            assert self._num_holders[key] > 0, f"parcel {key} is dropped twice"
            self._num_holders[key] -= 1
            if self._num_holders[key] == 0:
                del self._num_holders[key]
                self.num_bytes -= self._sizes.pop(key)


class TransferBudget:
    """Lets runs in, first come first served, as long as what they hold or will hold fits.

    A run that is in goes on whatever it takes, and one is always let in, so nobody waits for each
    other.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._typical_bytes = max_bytes * FIRST_GUESS
        self._accounts: set[RunAccount] = set()
        self._waiting: deque[tuple[RunAccount, asyncio.Future[None]]] = deque()

    @property
    def num_bytes(self) -> int:
        """Bytes of all parcels that are held."""
        return sum(account.num_bytes for account in self._accounts)

    @property
    def num_parcels(self) -> int:
        return sum(account.num_parcels for account in self._accounts)

    @property
    def num_runs(self) -> int:
        """Those that are in."""
        return len(self._accounts)

    @asynccontextmanager
    async def run(self, *, max_wait_s: float | None = None) -> AsyncIterator[RunAccount]:
        """An account for a run, once there is room; EngineError if that takes too long."""
        account = RunAccount()
        try:
            await self._wait_for_room(account, max_wait_s)
            yield account
        finally:
            if account in self._accounts:
                self._accounts.remove(account)
                self._typical_bytes += SMOOTHING * (account.peak_bytes - self._typical_bytes)
            self._let_in()

    async def _wait_for_room(self, account: RunAccount, max_wait_s: float | None) -> None:
        is_in = asyncio.get_running_loop().create_future()
        self._waiting.append((account, is_in))
        self._let_in()
        try:
            async with asyncio.timeout(max_wait_s):
                await is_in
        except TimeoutError:
            raise EngineError(
                f"{self.num_bytes} bytes of memory are on their way between agents; "
                f"max_transfer_bytes is {self.max_bytes}, and there was no room for another run "
                f"within {max_wait_s:g} s. Retry later, or raise it."
            ) from None

    def _let_in(self) -> None:
        while self._waiting and self._has_room():
            account, is_in = self._waiting.popleft()
            if not is_in.done():  # whoever gave up waiting has cancelled it
                self._accounts.add(account)
                is_in.set_result(None)

    def _has_room(self) -> bool:
        if not self._accounts:
            return True
        expected = sum(max(one.num_bytes, self._typical_bytes) for one in self._accounts)
        return expected + self._typical_bytes <= self.max_bytes
