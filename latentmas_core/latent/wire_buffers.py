"""Memory for the wire that is taken again and again: fresh pages cost more than the copy into them.

Knows nothing of segments. A buffer is free again when no tensor or array refers to it any more, so
nobody gives one back, and nobody can give one back too early.
"""

import ctypes
import mmap
import weakref

import torch

# Smaller ones are as quickly had from the allocator; larger ones would take too much for good.
MIN_KEPT_BYTES = 2**20
MAX_KEPT_BYTES = 2**28


class WireBuffers:
    """``take`` is for one thread alone; what it gave may be dropped by any."""

    def __init__(self, *, max_kept_bytes: int = MAX_KEPT_BYTES) -> None:
        self._max_kept_bytes = max_kept_bytes
        self._free: list[mmap.mmap] = []

    @property
    def num_free_bytes(self) -> int:
        return sum(map(len, self._free))

    def take(self, num_bytes: int) -> torch.Tensor:
        """[num_bytes] of uint8, filled with anything."""
        if not MIN_KEPT_BYTES <= num_bytes <= self._max_kept_bytes:
            return torch.empty(num_bytes, dtype=torch.uint8)
        # Fresh pages come when they are written to, not while everybody waits for this line.
        memory = self._take_free(num_bytes) or mmap.mmap(-1, num_bytes)
        # All views refer to the lease in the end, and the lease alone to the memory.
        lease = (ctypes.c_ubyte * len(memory)).from_buffer(memory)
        weakref.finalize(lease, self._give_back, memory).atexit = False
        return torch.frombuffer(lease, dtype=torch.uint8, count=num_bytes)

    def _take_free(self, num_bytes: int) -> mmap.mmap | None:
        """The smallest that is large enough; if none is, the smallest make room for a new one."""
        free: list[mmap.mmap] = []
        while self._free:
            free.append(self._free.pop())
        free.sort(key=len)
        found = next((index for index, memory in enumerate(free) if len(memory) >= num_bytes), None)
        taken = None if found is None else free.pop(found)
        while free and taken is None and sum(map(len, free)) + num_bytes > self._max_kept_bytes:
            del free[0]
        self._free.extend(free)
        return taken

    def _give_back(self, memory: mmap.mmap) -> None:
        # Called wherever the last reference is dropped, so it only appends, which needs no lock.
        if self.num_free_bytes + len(memory) <= self._max_kept_bytes:
            self._free.append(memory)
