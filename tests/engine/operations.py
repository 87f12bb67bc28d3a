"""Counts what the engine asks of torch: numbers that are the same on every machine.

Knows nothing of time. The counters stand in the engine's thread, around the calls they watch.
"""

from collections import Counter
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from latentmas_core.engine.engine import Engine

# Whatever kind of linear layer a machine gets, one product is one of these.
_PRODUCTS = ("_linear_pointwise", "linear", "mm", "addmm", "addmm_", "bmm", "baddbmm_", "matmul")


class Operations(TorchDispatchMode):
    """The operations inside the block, by name, and the tensors that they allocated.

    A result that shares the storage of an argument is a view or was written in place, and counts
    as nothing new. Neither do tensors that are made from Python's lists.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()
        self.num_new_tensors = 0
        self.num_new_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.by_name[func.overloadpacket.__name__] += 1
        given = {_storage_of(tensor) for tensor in _tensors_in((args, kwargs))}
        for tensor in _tensors_in(result):
            if tensor.numel() and _storage_of(tensor) not in given:
                self.num_new_tensors += 1
                self.num_new_bytes += tensor.numel() * tensor.itemsize
        return result

    @property
    def num_products(self) -> int:
        return sum(self.by_name[name] for name in _PRODUCTS)

    @property
    def num_attentions(self) -> int:
        return self.by_name["scaled_dot_product_attention"]


def watch_steps(engine: Engine) -> list[Operations]:
    """A list that grows by one with every forward pass from now on."""
    return _watch(engine.stepper.runner, "step")


def watch_scheduling(engine: Engine) -> list[Operations]:
    """The same for what comes before a pass: who runs, and where what they read lies."""
    return _watch(engine.stepper.scheduler, "schedule")


def assert_count(what: str, actual: int, expected: int) -> None:
    """Equal; else the message tells which way the count moved."""
    direction = "more than before: slower" if actual > expected else "fewer than before: better"
    assert actual == expected, f"{what}: {actual} instead of {expected}, {direction}, if intended."


def _watch(owner: Any, name: str) -> list[Operations]:
    watched: list[Operations] = []
    method = getattr(owner, name)

    def counted(*args: Any) -> Any:
        with Operations() as operations:
            result = method(*args)
        watched.append(operations)
        return result

    setattr(owner, name, counted)
    return watched


def _tensors_in(tree: Any) -> list[Tensor]:
    """Those with a storage; weights that are packed for oneDNN show none."""
    leaves = tree_leaves(tree)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and not leaf.is_mkldnn]


def _storage_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
