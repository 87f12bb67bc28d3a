"""One agent's turn at one node: reads what it finds, thinks or writes, and leaves a hand-over."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from latentmas_core.agents.chat_template import has_system_role
from latentmas_core.agents.config import AgentConfig
from latentmas_core.agents.prompts import build_messages, encode_prompt
from latentmas_core.engine.lens import LensReading
from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.engine.turn import PhaseBegun, TextDelta, Thought, Turn, TurnDone
from latentmas_core.events import (
    AgentFinished,
    AgentPhase,
    AgentStarted,
    AgentThought,
    AnswerDelta,
    Event,
)
from latentmas_core.pipelines.adapter_choice import ChosenAdapters
from latentmas_core.pipelines.assignment import Assignment
from latentmas_core.pipelines.ownership import OwnedMemories
from latentmas_core.pipelines.runner import Said
from latentmas_core.pipelines.turn_engine import TurnEngine
from latentmas_core.request import Carry, Handoff, ReasonRequest, Trace
from latentmas_core.result import AgentTrace, LensStep, LensToken, PhaseDurations


@dataclass(frozen=True)
class Handover:
    """What an agent finds: a memory, and the words of those before it."""

    memory: ResidentMemory | None = None
    transcript: tuple[Said, ...] = ()


@dataclass(frozen=True)
class Seat:
    """Whose turn it is, with which adapters, what is to be done until when, and how its events are
    labelled."""

    agent: AgentConfig
    adapters: ChosenAdapters
    assignment: Assignment
    node: str
    stage: str
    is_speaker: bool
    ends_at: float | None = None


class NodeTurn:
    """Iterate ``events`` to the end, then read ``left`` and ``finish_reason``.

    The memories it makes belong to ``owned``, which the caller closes; it releases early what
    nobody will read.
    """

    def __init__(
        self,
        engine: TurnEngine,
        seat: Seat,
        found: Handover,
        request: ReasonRequest,
        owned: OwnedMemories[ResidentMemory],
    ) -> None:
        self._engine = engine
        self._seat = seat
        self._found = found
        self._request = request
        self._owned = owned
        self._lens: list[LensStep] = []
        self._done: TurnDone | None = None
        self._started_at = 0.0
        self.left = Handover()

    @property
    def finish_reason(self) -> str:
        return self._outcome.finish_reason

    async def events(self) -> AsyncGenerator[Event, None]:
        """The turn, from AgentStarted to AgentFinished; ``left`` is there before the last."""
        self._started_at = time.time()
        started_at = time.perf_counter()
        yield AgentStarted(self._seat.node, self._seat.stage)
        memory = await self._readable_memory()
        async with aclosing(self._engine_events(memory)) as events:
            async for event in events:
                yield event
        if memory is not self._found.memory:
            await self._owned.release(memory)
        self.left = Handover(await self._memory_to_leave(), self._found.transcript + self._said())
        yield AgentFinished(self._seat.node, self._trace(time.perf_counter() - started_at))

    async def _readable_memory(self) -> ResidentMemory | None:
        """The memory found or, for hand-off ``embeddings``, its rows computed again by us."""
        found = self._found.memory
        if found is None or self._request.handoff is not Handoff.EMBEDDINGS:
            return found
        memory = await self._engine.prefill_memory(found.memory, found.latents)
        self._owned.own(memory)
        return memory

    async def _engine_events(self, memory: ResidentMemory | None) -> AsyncGenerator[Event, None]:
        async with aclosing(self._engine.run(self._turn(memory))) as turn_events:
            async for event in turn_events:
                if isinstance(event, PhaseBegun):
                    yield AgentPhase(self._seat.node, event.phase)
                elif isinstance(event, Thought):
                    yield self._thought(event)
                elif isinstance(event, TextDelta):
                    if self._seat.is_speaker:
                        yield AnswerDelta(event.text, event.logprobs)
                else:
                    self._owned.own(event.memory)
                    self._done = event

    def _thought(self, event: Thought) -> AgentThought:
        if event.reading is None:
            return AgentThought(self._seat.node, event.num_latent_steps)
        step = self._lens_step(len(self._lens), event.reading)
        self._lens.append(step)
        return AgentThought(self._seat.node, event.num_latent_steps, step)

    def _lens_step(self, index: int, reading: LensReading) -> LensStep:
        decode = self._engine.tokenizer.backend_tokenizer.decode
        tokens = (
            LensToken(
                id=token_id,
                text=decode([token_id], skip_special_tokens=False),
                probability=probability,
            )
            for token_id, probability in zip(reading.token_ids, reading.probabilities, strict=True)
        )
        return LensStep(index=index, norm=reading.norm, tokens=tuple(tokens))

    def _turn(self, memory: ResidentMemory | None) -> Turn:
        assignment = self._seat.assignment
        return Turn(
            agent=self._seat.node,
            prompt_ids=self._prompt_ids(),
            memory=memory,
            num_latent_steps=assignment.num_latent_steps,
            sampling=assignment.sampling,
            keeps_memory=assignment.keeps_memory,
            adapters=self._seat.adapters.mix,
            deadline=_moment_in(self._request.max_wait_s),
            ends_at=self._seat.ends_at,
            has_lens=self._request.trace is Trace.LENS,
            tells_phases=True,
        )

    def _prompt_ids(self) -> tuple[int, ...]:
        messages = build_messages(
            self._seat.agent,
            self._request.shown_question,
            situation=self._seat.assignment.situation,
            transcript=[(said.agent, said.text) for said in self._found.transcript],
            system_prompt=self._request.system_prompt,
            conversation=self._request.conversation,
            has_system_role=has_system_role(self._engine.tokenizer),
        )
        tools = self._request.tools if self._seat.is_speaker else ()
        return encode_prompt(self._engine.tokenizer, messages, tools)

    async def _memory_to_leave(self) -> ResidentMemory | None:
        memory = self._outcome.memory
        if memory is None or self._request.carry is not Carry.LATENTS:
            return memory
        latents = await self._engine.keep_latents(memory)
        self._owned.own(latents)
        await self._owned.release(memory)
        return latents

    def _said(self) -> tuple[Said, ...]:
        if self._seat.assignment.sampling is None:
            return ()
        return (Said(self._seat.node, self._outcome.text),)

    def _trace(self, latency_s: float) -> AgentTrace:
        outcome, mix = self._outcome, self._seat.adapters.mix
        return AgentTrace(
            name=self._seat.node,
            role=self._seat.agent.role,
            adapter=self._seat.adapters.label,
            adapter_digest=None if mix.is_base else mix.key,
            mode=self._request.mode,
            latent_steps=outcome.num_latent_steps,
            prompt_tokens=outcome.num_prompt_tokens,
            completion_tokens=len(outcome.output_ids),
            started_at=self._started_at,
            latency_ms=1000.0 * latency_s,
            text=outcome.text,
            logprobs=outcome.logprobs,
            phases=PhaseDurations.of(outcome.phase_s),
            lens=tuple(self._lens),
        )

    @property
    def _outcome(self) -> TurnDone:
        assert self._done is not None, "an engine's turn ended without TurnDone"
        return self._done


def _moment_in(seconds: float | None) -> float | None:
    return None if seconds is None else time.monotonic() + seconds
