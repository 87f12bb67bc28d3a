"""Counts the bytes that torch copies on the thread of an engine and on the caller's own."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from latentmas_core.engine.engine import Engine

_ALLOCATIONS = {"aten::empty", "aten::empty_strided", "aten::new_empty", "aten::empty_like"}
# What an operation in place writes, where that is not all of what it is applied to.
_WRITTEN_ARGUMENT = {"aten::index_copy_": 3, "aten::index_put_": 2, "aten::index_add_": 3}


class CopyCounter(TorchDispatchMode):
    """Sums the floating-point results of all operations but views and allocations.

    Slot numbers are integers and no part of a memory; a computation counts like a copy.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.num_bytes += _num_bytes_written(func, args, result)
        return result


@asynccontextmanager
async def copies_counted(engine: Engine) -> AsyncIterator[CopyCounter]:
    """What torch copies on the engine's thread and on this one until the end."""
    counter = CopyCounter()
    threads = CopyCounter()
    # A mode holds for the thread that enters it, and the engine copies on a thread of its own.
    await engine._inbox.call(threads.__enter__)
    try:
        with counter:
            yield counter
    finally:
        await engine._inbox.call(lambda: threads.__exit__(None, None, None))
        counter.num_bytes += threads.num_bytes


def _num_bytes_written(func: Any, args: tuple[Any, ...], result: Any) -> int:
    name = func._schema.name
    if name in _ALLOCATIONS:
        return 0
    if name in _WRITTEN_ARGUMENT:
        result = args[_WRITTEN_ARGUMENT[name]]
    elif not func._schema.is_mutable and _is_view(args, result):
        return 0
    results = result if isinstance(result, tuple | list) else (result,)
    return sum(
        one.numel() * one.itemsize
        for one in results
        if isinstance(one, torch.Tensor) and one.is_floating_point()
    )


def _is_view(args: tuple[Any, ...], result: Any) -> bool:
    first = result[0] if isinstance(result, tuple | list) and result else result
    if not isinstance(first, torch.Tensor):
        return True
    storages = {_storage(arg) for arg in args if isinstance(arg, torch.Tensor)}
    return _storage(first) in storages


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
