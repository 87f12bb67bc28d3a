"""One turn on its way through the engine: its rows, its blocks, what is computed. No torch ops.

The rows of a sequence are, in order: prompt tokens, latent steps, sampled tokens. A row is *known*
once its input is; the row behind the last known one is found out by computing that one. A preempted
sequence forgets what was computed but not what is known, so it comes back by a plain prefill. A
suspended one waits with its blocks and goes on where it stopped.
"""

from collections.abc import Callable
from enum import Enum, auto
from itertools import count
from typing import NamedTuple

import torch

from latentmas_core.config import SamplingParams
from latentmas_core.engine.block_manager import PrefixKey
from latentmas_core.engine.detokenizer import Detokenizer
from latentmas_core.engine.lens import LensReading
from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.engine.sampler import TokenChooser
from latentmas_core.engine.token_text import RowLogprobs
from latentmas_core.engine.turn import Turn, TurnEvent
from latentmas_core.errors import LatentMASError
from latentmas_core.latent.memory import Memory
from latentmas_core.latent.segment import BASE_ADAPTER, Segment
from latentmas_core.lora.arena import Berth
from latentmas_core.phases import PhaseClock

EventSink = Callable[[TurnEvent | LatentMASError], None]

Kind = tuple[str, ...]

_ids = count()


class NextRow(Enum):
    """What computing the last known row is good for."""

    LATENT = auto()
    TOKEN = auto()
    NOTHING = auto()


class RowInputs(NamedTuple):
    """The inputs of a run of rows: prompt tokens, then latents, then sampled tokens."""

    before: tuple[int, ...]
    latents: list[torch.Tensor]
    after: list[int]


class Sequence:
    """The state of one turn; owned by the engine's thread."""

    def __init__(
        self,
        turn: Turn,
        *,
        sink: EventSink,
        detokenizer: Detokenizer,
        prefix_keys: list[PrefixKey],
    ) -> None:
        self.sequence_id = next(_ids)
        self.turn = turn
        self.sink = sink
        self.detokenizer = detokenizer
        self.prefix_keys = prefix_keys
        self.clock = PhaseClock()
        self.num_reported_outputs = 0
        self.num_reported_logprobs = 0
        self.num_reported_readings = 0
        self.has_reported_thought = False
        self.handed_over: ResidentMemory | None = None

        self.token_ids = turn.recall.segment.token_ids if turn.recall else turn.prompt_ids
        self.latents: list[torch.Tensor] = list(turn.recall.latents) if turn.recall else []
        self.readings: list[LensReading] = []  # one per latent step, if the turn has the lens
        self.output_ids: list[int] = []
        self.logprobs: list[RowLogprobs] = []  # one per output, where they are asked for
        self.chooser = TokenChooser.from_params(turn.sampling or SamplingParams())
        self.num_latents_due = len(self.latents) + turn.num_latent_steps

        self.mix = turn.mix
        self.mix_key = self.mix.key
        # Whom the scheduler is fair to. Weights do not count: each request may choose new ones.
        self.kind: Kind = tuple(sorted(self.mix.digests)) or (BASE_ADAPTER,)
        self.num_rows_before = 0  # that the engine had computed when it came
        self.berths: list[Berth] = []

        self.block_table: list[int] = []
        self.is_appender = False
        self.num_computed = 0
        self.num_published = 0
        self.num_cached_tokens = 0
        self.num_preemptions = 0

        self.is_suspended = False
        self.was_given_all_room = False  # its adapters were loaded anew, with nothing beside them
        self.num_blocked_steps = 0  # that it was the first that waits, and had no place
        self._num_known_before = 0

    def __repr__(self) -> str:
        return (
            f"Sequence({self.sequence_id}, agent={self.turn.agent!r}, computed={self.num_computed}"
            f"/{self.num_known}, latents={len(self.latents)}/{self.num_latents_due}, "
            f"outputs={len(self.output_ids)}, blocks={len(self.block_table)})"
        )

    @property
    def memory(self) -> Memory:
        return self.turn.memory.memory if self.turn.memory else Memory()

    @property
    def num_memory_rows(self) -> int:
        return self.turn.memory.num_rows if self.turn.memory else 0

    @property
    def first_position(self) -> int:
        recall = self.turn.recall
        return recall.segment.first_position if recall else self.memory.next_position

    @property
    def row_order(self) -> tuple[object, ...]:
        """Sorts sequences of equal adapters together, and these as they lie in the pool."""
        return (*((berth.num_blocks, berth.start) for berth in self.berths), (0, 0), self.mix_key)

    @property
    def num_known(self) -> int:
        return len(self.token_ids) + len(self.latents) + len(self.output_ids)

    @property
    def num_uncomputed(self) -> int:
        return self.num_known - self.num_computed

    @property
    def num_gained(self) -> int:
        """Rows that were found out since it started or went on."""
        return self.num_known - self._num_known_before

    @property
    def num_slots(self) -> int:
        """Slots that are filled: the memory and the computed rows."""
        return self.num_memory_rows + self.num_computed

    @property
    def max_rows(self) -> int:
        """Rows that will have been computed at the latest end (the last sample is not fed)."""
        sampling = self.turn.sampling
        num_outputs = sampling.max_tokens - 1 if sampling else 0
        return len(self.token_ids) + self.num_latents_due + num_outputs

    @property
    def num_given_latents(self) -> int:
        """Latents that it began with."""
        return self.turn.recall.segment.num_latents if self.turn.recall else 0

    @property
    def num_executed_steps(self) -> int:
        """Latent steps whose input this turn found out."""
        return len(self.latents) - self.num_given_latents

    @property
    def new_readings(self) -> list[LensReading]:
        """Those of steps that are done, their rows computed, and that were not reported yet."""
        num_done = self.num_computed - len(self.token_ids) - self.num_given_latents
        return self.readings[self.num_reported_readings : max(num_done, 0)]

    @property
    def has_thought(self) -> bool:
        """Whether every latent step that is due was computed."""
        return self.num_computed >= len(self.token_ids) + self.num_latents_due

    @property
    def has_begun(self) -> bool:
        """Whether its prompt was answered by a thought or a token, even if it waits again."""
        return self.num_executed_steps > 0 or bool(self.output_ids)

    @property
    def num_top_logprobs(self) -> int | None:
        return self.turn.sampling.logprobs if self.turn.sampling else None

    @property
    def next_row(self) -> NextRow:
        if len(self.latents) < self.num_latents_due:
            return NextRow.LATENT
        return NextRow.TOKEN if self.turn.sampling else NextRow.NOTHING

    def inputs(self, start: int, end: int) -> RowInputs:
        """The inputs of the known rows ``start`` .. ``end - 1``."""
        num_tokens, num_latents = len(self.token_ids), len(self.latents)
        first_output = num_tokens + num_latents
        return RowInputs(
            self.token_ids[start:end],
            self.latents[max(start - num_tokens, 0) : max(end - num_tokens, 0)],
            self.output_ids[max(start - first_output, 0) : max(end - first_output, 0)],
        )

    def begin_slice(self) -> None:
        """It starts, or goes on after it was suspended."""
        self.is_suspended = False
        self.was_given_all_room = False
        self.num_blocked_steps = 0
        self._num_known_before = self.num_known

    def forget_computed(self) -> None:
        """Back to the start: nothing is computed, everything known stays known."""
        self.block_table = []
        self.is_appender = False
        self.num_computed = 0
        self.num_published = 0

    def as_segment(self, fingerprint: str) -> Segment:
        """What this turn leaves behind: prompt and latent rows, without the sampled ones."""
        if self.turn.recall:
            return self.turn.recall.segment
        return Segment(
            agent=self.turn.agent,
            fingerprint=fingerprint,
            first_position=self.first_position,
            token_ids=self.token_ids,
            num_latents=len(self.latents),
            context=self.memory.seen,
            adapter=self.mix_key,
        ).as_computed()
