"""A stopwatch that waits for the device."""

import time
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import torch

T = TypeVar("T")


class Timed(NamedTuple, Generic[T]):
    """What a call returned and how long it took."""

    value: T
    duration_s: float


def timed(device: torch.device, function: Callable[[], T]) -> Timed[T]:
    """What a function returns and how long it took, with all that it left to the device."""
    started_s = now_s(device)
    value = function()
    return Timed(value, now_s(device) - started_s)


def now_s(device: torch.device) -> float:
    """A clock that goes on once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
