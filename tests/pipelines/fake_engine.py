"""An engine that computes nothing but keeps every account: which memories live, who reads them.

What an agent writes is a digest of everything it read: a changed memory changes all that follows.
"""

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import torch

from latentmas_core.engine.lens import LensReading
from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.engine.stats import EngineStats
from latentmas_core.engine.turn import PhaseBegun, TextDelta, Thought, Turn, TurnDone, TurnEvent
from latentmas_core.errors import ContextLengthError, EngineError, NotFoundError
from latentmas_core.latent.memory import Memory, MergeRule, merge
from latentmas_core.latent.segment import Segment
from latentmas_core.lora.cached_adapter import AdapterSpec
from latentmas_core.phases import Phase

FINGERPRINT = "fake-model"

Hook = Callable[[], Awaitable[object]]


class FakeEngine:
    """``before_turn`` maps an agent to what is awaited once its turn has begun."""

    def __init__(self, tokenizer, *, max_positions: int = 100_000) -> None:
        self.tokenizer = tokenizer
        self.max_positions = max_positions
        self.before_turn: dict[str, Hook] = {}
        self.has_begun: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.turns: list[Turn] = []
        self.calls: list[str] = []
        self.live: dict[int, ResidentMemory] = {}
        self.num_made = 0
        self.max_live = 0
        self.num_open_turns = 0
        self.is_closed = False

    def turn_of(self, agent: str) -> Turn:
        (turn,) = [turn for turn in self.turns if turn.agent == agent]
        return turn

    def prompt_of(self, agent: str) -> str:
        return self.tokenizer.decode(self.turn_of(agent).prompt_ids)

    def adapter(self, name: str) -> AdapterSpec:
        raise NotFoundError(f"adapter {name!r} is not loaded.", param="adapters")

    @asynccontextmanager
    async def holding(self, digests):
        yield

    async def run(self, turn: Turn) -> AsyncGenerator[TurnEvent, None]:
        if self.is_closed:
            raise EngineError("the engine was closed.")
        self._check_length(turn)
        self.turns.append(turn)
        self.num_open_turns += 1
        try:
            self._check_live(turn.memory)
            await asyncio.sleep(0)
            self.has_begun[turn.agent].set()
            if turn.agent in self.before_turn:
                await self.before_turn[turn.agent]()
            if turn.tells_phases:
                yield PhaseBegun(Phase.PREFILL)
            for thought in self._thoughts(turn):
                yield thought
                await asyncio.sleep(0)
            text = self._text(turn) if turn.sampling else ""
            for start in range(0, len(text), 5):
                yield TextDelta(text[start : start + 5])
                await asyncio.sleep(0)
            self._check_live(turn.memory)
            yield self._done(turn, text)
            await asyncio.sleep(0)
        finally:
            self.num_open_turns -= 1

    async def merge(self, memories: Sequence[ResidentMemory], rule: MergeRule) -> ResidentMemory:
        latents = {key: value for memory in memories for key, value in memory.latents.items()}
        return await self._call(
            "merge", memories, merge([m.memory for m in memories], rule), latents
        )

    async def keep_latents(self, memory: ResidentMemory) -> ResidentMemory:
        return await self._call(
            "keep_latents", [memory], memory.memory.latents_only(), memory.latents
        )

    async def prefill_memory(
        self, memory: Memory, latents: Mapping[str, torch.Tensor]
    ) -> ResidentMemory:
        return await self._call("prefill_memory", [], memory, latents)

    async def release(self, memory: ResidentMemory) -> None:
        assert id(memory) in self.live, "a memory was released twice"
        del self.live[id(memory)]
        await asyncio.sleep(0)

    async def stats(self) -> EngineStats:
        counts = dict.fromkeys(EngineStats.__annotations__, 0)
        return EngineStats(**counts | {"num_memories": len(self.live)})

    def close(self) -> None:
        self.is_closed = True

    def check_idle(self) -> None:
        """Everything that was made is back."""
        assert self.num_open_turns == 0, f"{self.num_open_turns} turns are still open"
        assert not self.live, f"{len(self.live)} of {self.num_made} memories were not released"

    async def _call(
        self,
        name: str,
        sources: Sequence[ResidentMemory],
        memory: Memory,
        latents: Mapping[str, torch.Tensor],
    ) -> ResidentMemory:
        self.calls.append(name)
        for source in sources:
            self._check_live(source)
        await asyncio.sleep(0)
        return self._make(memory, latents)

    def _make(self, memory: Memory, latents: Mapping[str, torch.Tensor]) -> ResidentMemory:
        resident = ResidentMemory(memory, dict(latents))
        self.live[id(resident)] = resident
        self.num_made += 1
        self.max_live = max(self.max_live, len(self.live))
        return resident

    def _check_live(self, memory: ResidentMemory | None) -> None:
        assert memory is None or id(memory) in self.live, "a memory was read after its release"

    def _check_length(self, turn: Turn) -> None:
        num_rows = turn.memory.num_rows if turn.memory else 0
        if num_rows + len(turn.prompt_ids) > self.max_positions:
            raise ContextLengthError(f"the model has {self.max_positions} positions.")

    def _thoughts(self, turn: Turn) -> list[Thought]:
        num_steps = turn.num_latent_steps
        if not turn.has_lens:
            return [Thought(num_steps)] if num_steps else []
        return [
            Thought(step, LensReading(float(step), (ord("a") + step, ord(" ")), (0.75, 0.25)))
            for step in range(1, num_steps + 1)
        ]

    def _text(self, turn: Turn) -> str:
        read = (
            [(p.segment.agent, p.segment.token_ids, p.shift) for p in turn.memory.memory.placements]
            if turn.memory
            else []
        )
        digest = hashlib.sha256(repr((read, turn.prompt_ids, turn.sampling)).encode()).hexdigest()
        return f"{turn.agent} says {digest[:8]}"

    def _done(self, turn: Turn, text: str) -> TurnDone:
        return TurnDone(
            memory=self._kept(turn) if turn.keeps_memory else None,
            num_prompt_tokens=len(turn.prompt_ids),
            num_cached_tokens=0,
            num_latent_steps=turn.num_latent_steps,
            output_ids=tuple(range(len(text))),
            text=text,
            finish_reason="length" if text else "thought",
            num_preemptions=0,
            phase_s={Phase.PREFILL: 0.25},
        )

    def _kept(self, turn: Turn) -> ResidentMemory:
        before = turn.memory.memory if turn.memory else Memory()
        latents = dict(turn.memory.latents) if turn.memory else {}
        segment = Segment(
            agent=turn.agent,
            fingerprint=FINGERPRINT,
            first_position=before.next_position,
            token_ids=turn.prompt_ids,
            num_latents=turn.num_latent_steps,
            context=before.seen,
        ).as_computed()
        latents[segment.segment_id] = torch.zeros(turn.num_latent_steps, 4)
        return self._make(before.followed_by(segment), latents)
