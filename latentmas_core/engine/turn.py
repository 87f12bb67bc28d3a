"""What an engine is asked for and what it answers: one agent's turn. Plain data, no scheduling."""

from dataclasses import dataclass, field

import torch

from latentmas_core.config import SamplingParams
from latentmas_core.engine.lens import LensReading
from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.latent.segment import Segment
from latentmas_core.logprobs import AnswerToken
from latentmas_core.lora.mix import NO_ADAPTERS, AdapterMix
from latentmas_core.phases import Phase, PhaseTimes


@dataclass(frozen=True)
class Recall:
    """A thought of an earlier computation, to be prefilled again as it was (``embeddings``).

    latents: [segment.num_latents, hidden_size], the input embeddings of its latent steps.
    """

    segment: Segment
    latents: torch.Tensor


@dataclass(frozen=True)
class Turn:
    """Prefill ``prompt_ids`` behind ``memory``, think ``num_latent_steps``, then maybe speak.

    Without ``sampling`` nothing is sampled and no logits are computed. ``keeps_memory`` hands the
    turn's own segment, behind the memory it read, over at the end. With ``recall`` the rows and
    their positions are those of the recalled segment; ``prompt_ids`` stays empty, and the adapters
    are those that the segment was computed with. ``deadline``: a time of ``time.monotonic`` at
    which the first row behind the prompt is due; a turn that cannot meet it is refused.
    ``ends_at``: one at which the turn is ended, wherever it is. ``has_lens``: each latent step is
    reported, with what it is close to. ``tells_phases``: so is each phase that it enters.
    """

    agent: str
    prompt_ids: tuple[int, ...] = ()
    memory: ResidentMemory | None = None
    num_latent_steps: int = 0
    sampling: SamplingParams | None = None
    keeps_memory: bool = False
    recall: Recall | None = None
    adapters: AdapterMix = NO_ADAPTERS
    deadline: float | None = None
    ends_at: float | None = None
    has_lens: bool = False
    tells_phases: bool = False

    @property
    def mix(self) -> AdapterMix:
        """The adapters that its rows are computed with."""
        return AdapterMix.from_key(self.recall.segment.adapter) if self.recall else self.adapters


@dataclass(frozen=True)
class PhaseBegun:
    """The turn left what it was at before."""

    phase: Phase


@dataclass(frozen=True)
class Thought:
    """The latent steps of the turn are done or, with the lens, so many of them.

    ``reading`` is of the last one, and there only with the lens.
    """

    num_latent_steps: int
    reading: LensReading | None = None


@dataclass(frozen=True)
class TextDelta:
    """A piece of the answer that splits no character; its tokens, where they are asked for."""

    text: str
    logprobs: tuple[AnswerToken, ...] = ()


@dataclass(frozen=True)
class TurnDone:
    """The last event of a turn. ``memory`` is the receiver's to release.

    ``num_latent_steps`` counts the steps that were executed; ``finish_reason`` is "stop" or
    "length" where text was written, and "thought" where not. ``phase_s``: seconds from when the
    turn came to its end, by phase. ``logprobs``: of all its tokens, where
    they are asked for.
    """

    memory: ResidentMemory | None
    num_prompt_tokens: int
    num_cached_tokens: int
    num_latent_steps: int
    output_ids: tuple[int, ...]
    text: str
    finish_reason: str
    num_preemptions: int
    logprobs: tuple[AnswerToken, ...] | None = None
    phase_s: PhaseTimes = field(default_factory=dict)


TurnEvent = PhaseBegun | Thought | TextDelta | TurnDone
