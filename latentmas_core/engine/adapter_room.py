"""Whether rows and adapters fit side by side: asked before a turn or a pin is let in."""

from collections.abc import Iterable

from latentmas_core.engine.block_manager import BlockManager
from latentmas_core.engine.limits import TurnLimits
from latentmas_core.engine.sequence import Sequence
from latentmas_core.errors import AdapterError
from latentmas_core.lora.cache import AdapterCache
from latentmas_core.lora.cached_adapter import AdapterSpec


class AdapterRoom:
    """What is pinned never gives way, so every turn that is let in must fit beside it."""

    def __init__(self, adapters: AdapterCache, blocks: BlockManager, limits: TurnLimits) -> None:
        self._adapters = adapters
        self._blocks = blocks
        self._limits = limits

    def check(self, sequence: Sequence) -> None:
        """Raise AdapterError or ContextLengthError if it does not fit beside what is pinned."""
        reserved = self._adapters.reserved(sequence.mix)
        max_loaded = self._adapters.max_loaded
        if len(reserved) > max_loaded:
            raise AdapterError(
                f"agent {sequence.turn.agent!r} needs {len(sequence.mix.digests)} adapters, with "
                f"the pinned ones {len(reserved)}; max_loaded_adapters is {max_loaded}. Unpin one, "
                "use fewer, or raise max_loaded_adapters.",
                param="adapters",
            )
        num_slots = self._num_blocks(reserved) * self._blocks.block_size
        self._limits.check_slots(sequence.turn, num_reserved=num_slots)

    def check_pin(self, spec: AdapterSpec, under_way: Iterable[Sequence]) -> None:
        """Raise AdapterError if one of the turns under way would not fit beside it."""
        max_loaded = self._adapters.max_loaded
        for sequence in under_way:
            reserved = self._adapters.reserved(sequence.mix, pinned=spec)
            if len(reserved) > max_loaded:
                raise AdapterError(
                    f"adapter {spec.name!r} cannot be pinned now: beside the pinned ones and those "
                    f"of a request under way it would be number {len(reserved)}, and "
                    f"max_loaded_adapters is {max_loaded}. Try again later, or raise it.",
                    param="pinned",
                )
            num_slots = sequence.num_memory_rows + sequence.max_rows
            num_blocks = self._blocks.num_blocks_for(num_slots) + 1
            num_reserved = self._num_blocks(reserved)
            if num_blocks + num_reserved > self._blocks.num_blocks:
                raise AdapterError(
                    f"adapter {spec.name!r} cannot be pinned now: a request under way needs "
                    f"{num_blocks} of {self._blocks.num_blocks} blocks, and its adapters and the "
                    f"pinned ones would take {num_reserved}. Try again later, or raise "
                    "kv_cache_bytes.",
                    param="pinned",
                )

    def error_of_stuck(self, sequence: Sequence) -> AdapterError:
        """Why a sequence that was let in finds no room although nothing runs."""
        own = [s for s in self._adapters.reserved(sequence.mix) if s.digest in sequence.mix.digests]
        sizes = " and ".join(str(self._adapters.num_blocks_for(spec)) for spec in own)
        pinned = ", ".join(spec.name for spec in self._adapters.pinned())
        return AdapterError(
            f"agent {sequence.turn.agent!r} needs {sizes} blocks for its adapter(s), each in one "
            f"piece, and the pool of {self._blocks.num_blocks} has no such room"
            f"{f' beside the pinned {pinned}' if pinned else ''}. Use fewer, raise kv_cache_bytes"
            f"{', or unpin one' if pinned else ''}.",
            param="adapters",
        )

    def _num_blocks(self, specs: Iterable[AdapterSpec]) -> int:
        return sum(map(self._adapters.num_blocks_for, specs))
