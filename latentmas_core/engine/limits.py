"""Says whether a turn can run on an engine at all, before anything is allocated for it."""

from dataclasses import dataclass
from typing import NamedTuple

from latentmas_core.engine.turn import Turn
from latentmas_core.errors import ConfigError, ContextLengthError, SegmentError
from latentmas_core.latent.memory import check_same_model


@dataclass(frozen=True)
class TurnLimits:
    """What one turn may ask for. ``max_slots``: rows that the KV pool can hold for one turn."""

    max_positions: int
    max_slots: int
    max_latent_steps: int
    fingerprint: str

    def check(self, turn: Turn) -> None:
        """Raise ConfigError, SegmentError or ContextLengthError."""
        self._check_fields(turn)
        self.check_memory(turn)
        self._check_length(turn)

    def check_slots(self, turn: Turn, *, num_reserved: int) -> None:
        """Raise ContextLengthError if the turn does not fit beside ``num_reserved`` slots.

        Those are of its own adapters and of all that are pinned.
        """
        _, num_slots, shares = _needs(turn)
        if num_slots > self.max_slots - num_reserved:
            beside = f", {num_reserved} of them taken by adapters" if num_reserved else ""
            raise ContextLengthError(
                f"context of agent {turn.agent!r} needs {num_slots} slots ({shares}); the KV pool "
                f"holds {self.max_slots} for one request{beside}. Shorten the question, lower "
                "max_tokens or latent_steps, or raise kv_cache_bytes.",
                param="question",
            )

    def _check_fields(self, turn: Turn) -> None:
        if not turn.prompt_ids and turn.recall is None:
            raise ConfigError(
                f"prompt of agent {turn.agent!r} has 0 tokens; it needs at least 1.", param="prompt"
            )
        num_steps = turn.num_latent_steps
        if type(num_steps) is not int or not 0 <= num_steps <= self.max_latent_steps:
            raise ConfigError(
                f"latent_steps is {turn.num_latent_steps} for agent {turn.agent!r}; allowed are 0 "
                f"to {self.max_latent_steps}. Lower it, or raise max_latent_steps of the engine.",
                param="latent_steps",
            )

    def check_memory(self, turn: Turn) -> None:
        """Raise SegmentError if the memory cannot be read: gone, without rows, or a stranger's."""
        if turn.memory is None:
            return
        if turn.memory.is_released:
            raise SegmentError(
                f"agent {turn.agent!r} reads a memory that was released. Release a memory after "
                "its last reader has started.",
                param="memory",
            )
        if not turn.memory.has_rows:
            raise SegmentError(
                f"agent {turn.agent!r} reads a memory that came without keys and values. Prefill "
                "it first, or hand over with handoff='kv'.",
                param="memory",
            )
        check_same_model(turn.memory.memory.segments, self.fingerprint)

    def _check_length(self, turn: Turn) -> None:
        num_positions, _, shares = _needs(turn)
        if num_positions > self.max_positions:
            raise ContextLengthError(
                f"context of agent {turn.agent!r} needs {num_positions} positions ({shares}); the "
                f"model has {self.max_positions}. Shorten the question, or lower max_tokens or "
                "latent_steps.",
                param="question",
            )
        self.check_slots(turn, num_reserved=0)


class _Needs(NamedTuple):
    num_positions: int
    num_slots: int
    shares: str


def _needs(turn: Turn) -> _Needs:
    """What a turn takes until its latest end, and what of it is for what."""
    memory = turn.memory.memory if turn.memory else None
    num_memory = memory.num_rows if memory else 0
    num_prompt = len(turn.recall.segment.token_ids if turn.recall else turn.prompt_ids)
    num_latents = turn.num_latent_steps
    num_latents += turn.recall.segment.num_latents if turn.recall else 0
    num_answer = turn.sampling.max_tokens if turn.sampling else 0
    num_own = num_prompt + num_latents + num_answer
    return _Needs(
        num_positions=num_own + (memory.next_position if memory else 0),
        num_slots=num_own + num_memory,
        shares=f"prompt {num_prompt} + memory {num_memory} + latent steps {num_latents} + answer "
        f"{num_answer}",
    )
