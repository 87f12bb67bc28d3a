"""Who has to give a memory back: a scope that owns memories and releases what is left at its end.

Knows nothing about what a memory is; a reference is told from others by its identity.
"""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Generic, Self, TypeVar

MemoryRef = TypeVar("MemoryRef")


class OwnedMemories(Generic[MemoryRef]):
    """An async context manager; each memory in it is released or handed on exactly once.

    None stands for no memory and may be owned, handed on and released freely.
    """

    def __init__(self, release: Callable[[MemoryRef], Awaitable[None]]) -> None:
        self._release = release
        self._owned: dict[int, MemoryRef] = {}

    def __len__(self) -> int:
        return len(self._owned)

    def __contains__(self, memory: MemoryRef | None) -> bool:
        return id(memory) in self._owned

    def own(self, memory: MemoryRef | None) -> None:
        assert memory not in self, "a memory was given to one owner twice"
        if memory is not None:
            self._owned[id(memory)] = memory

    def hand_on(self, memory: MemoryRef | None) -> MemoryRef | None:
        """Give the memory to another owner; this scope no longer releases it."""
        return None if memory is None else self._owned.pop(id(memory))

    async def release(self, memory: MemoryRef | None) -> None:
        if memory is not None:
            await self._release(self._owned.pop(id(memory)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # An exit stack calls every callback, even when one of them fails or is cancelled.
        async with AsyncExitStack() as stack:
            while self._owned:
                _, memory = self._owned.popitem()
                stack.push_async_callback(self._release, memory)
