"""Cards that are not there: numbers stay on the CPU, and every tensor has the device it would have.

Inside ``PretendedCards`` tensors made on or moved to a card are labelled with it, ``tensor.device``
says so, and a computation whose tensors have different labels fails as it does on cards. So what
was left on the wrong device is found on a machine without any, with the right numbers beside it.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

CPU = torch.device("cpu")
_DEVICE = torch.Tensor.device.__get__  # type: ignore[attr-defined]
# What copies from one device to another, instead of computing.
_COPIES = {torch.Tensor.copy_, torch.Tensor.__setitem__}


class PretendedCards(TorchFunctionMode):
    """Labels belong to storages: a view lies where its base does.

    Storages with a label are kept, so that no address is used again. What has none is on the CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self._labels: dict[int, tuple[torch.device, Any]] = {}
        self.num_moves = 0

    def put(self, tensors: Iterable[torch.Tensor], device: torch.device) -> None:
        """Label tensors that exist already."""
        for tensor in tensors:
            if device != CPU:
                storage = _storage(tensor)
                self._labels[storage._cdata] = (device, storage)

    def device_of(self, tensor: torch.Tensor) -> torch.device:
        device, _ = self._labels.get(_storage(tensor)._cdata, (CPU, None))
        return device

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func == _DEVICE:  # a new object each time
            return self.device_of(args[0])
        if func is torch.Tensor.to:
            return self._move(args, kwargs)
        if func is torch.Tensor.cpu:
            return self._labelled_copy(args[0], CPU)
        if "device" in kwargs:
            device = kwargs.pop("device") or CPU
            return self._label(func(*args, **kwargs), torch.device(device))
        if func in _COPIES:
            return func(*args, **kwargs)
        device = self._common_device(func, [*args, *kwargs.values()])
        return self._label(func(*args, **kwargs), device)

    def _move(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        tensor, *options = args
        target = self.device_of(tensor)
        for number, option in enumerate(options):
            if isinstance(option, torch.device):
                target = option
                options[number] = CPU
            elif isinstance(option, torch.Tensor):
                target = self.device_of(option)
        target = kwargs.pop("device", None) or target
        moved = torch.Tensor.to(tensor, *options, **kwargs) if options or kwargs else tensor
        if target == self.device_of(tensor):
            return self._label(moved, target)
        self.num_moves += 1
        return self._labelled_copy(moved, target)

    def _labelled_copy(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        return self._label(tensor.clone(), device)

    def _common_device(self, func: Callable[..., Any], values: list[Any]) -> torch.device:
        tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
        # As on cards: a single number of the CPU goes with tensors of any device.
        devices = {self.device_of(x) for x in tensors if x.dim() > 0 or self.device_of(x) != CPU}
        if len(devices) > 1:
            raise RuntimeError(f"{func.__name__}: tensors on {sorted(map(str, devices))}")
        return devices.pop() if devices else CPU

    def _label(self, result: Any, device: torch.device) -> Any:
        self.put((leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)), device)
        return result


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage:
    with torch._C.DisableTorchFunction():
        return tensor.untyped_storage()
