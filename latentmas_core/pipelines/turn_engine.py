"""What pipelines need of an engine, and nothing more."""

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol

import torch

from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.engine.turn import Turn, TurnEvent
from latentmas_core.latent.memory import Memory
from latentmas_core.latent.merge_rule import MergeRule
from latentmas_core.lora.cached_adapter import AdapterSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TurnEngine(Protocol):
    """Takes turns and keeps memories. A call that is cancelled leaves no memory behind."""

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase": ...

    @property
    def max_positions(self) -> int: ...

    def adapter(self, name: str) -> AdapterSpec:
        """A loaded adapter; NotFoundError if there is none of that name."""
        ...

    def holding(self, digests: Collection[str]) -> AbstractAsyncContextManager[None]:
        """Adapters that are unloaded meanwhile can be used until it ends."""
        ...

    def run(self, turn: Turn) -> AsyncGenerator[TurnEvent, None]:
        """Take a turn; the last event is its ``TurnDone``. Closing it frees everything."""
        ...

    async def merge(
        self, memories: Sequence[ResidentMemory], rule: MergeRule
    ) -> ResidentMemory: ...

    async def keep_latents(self, memory: ResidentMemory) -> ResidentMemory: ...

    async def prefill_memory(
        self, memory: Memory, latents: Mapping[str, torch.Tensor]
    ) -> ResidentMemory: ...

    async def release(self, memory: ResidentMemory) -> None:
        """Takes effect even if the waiting for it is cancelled."""
        ...
