"""Chains of agents, run by an engine and by the plain loop, and how the two are compared."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.testing import assert_close

from benchmarks.baselines.plain import PlainLatentMAS, PlainMemory
from latentmas_core.config import SamplingParams
from latentmas_core.engine.engine import Engine
from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.engine.turn import Turn, TurnDone
from latentmas_core.latent.segment import KVRows, SegmentTensors
from tests.engine.engines import CPU, load_plain

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Agent:
    prompt: str
    latent_steps: int


@dataclass(frozen=True)
class Chain:
    """Agents behind each other; the last one says exactly ``max_tokens`` ids if more than 0."""

    agents: tuple[Agent, ...]
    max_tokens: int = 0

    def turn_of(
        self, index: int, prompt_ids: tuple[int, ...], memory: ResidentMemory | None
    ) -> Turn:
        speaks = index == len(self.agents) - 1 and self.max_tokens > 0
        return Turn(
            f"agent-{index}",
            prompt_ids,
            memory=memory,
            num_latent_steps=self.agents[index].latent_steps,
            sampling=greedy(self.max_tokens) if speaks else None,
            keeps_memory=True,
        )


@dataclass(frozen=True)
class Outcome:
    """What a chain leaves behind: all rows in order, latents per agent, and the answer."""

    kv: KVRows
    latents: list[torch.Tensor]
    output_ids: tuple[int, ...]


@dataclass(frozen=True)
class Run:
    """A chain that an engine ran. ``memory`` is to be released."""

    memory: ResidentMemory
    turns: tuple[TurnDone, ...]

    @property
    def output_ids(self) -> tuple[int, ...]:
        return self.turns[-1].output_ids

    @property
    def num_cached_tokens(self) -> int:
        return sum(turn.num_cached_tokens for turn in self.turns)

    @property
    def num_preemptions(self) -> int:
        return sum(turn.num_preemptions for turn in self.turns)


class Oracle:
    """The plain loop over one model, one chain at a time; remembers what it found out.

    ``is_scaled``: keys and values are compared relative to the norm of a head's vector where that
    is larger than 1. The embedded model needs it: its vectors have norms of 20 behind 30 layers,
    and the plain loop in fp32 itself stands up to 2e-4 away from the plain loop in float64.
    """

    def __init__(self, model: Path, *, is_scaled: bool = False, device: torch.device = CPU) -> None:
        loaded = load_plain(model, device)
        self.model = loaded.model
        self.plain = PlainLatentMAS(loaded.model)
        self._is_scaled = is_scaled
        self._tokenizer = loaded.tokenizer
        self._outcomes: dict[Chain, Outcome] = {}

    def encode(self, prompt: str) -> list[int]:
        return encode(self._tokenizer, prompt)

    def run(self, chain: Chain) -> Outcome:
        if chain not in self._outcomes:
            self._outcomes[chain] = self._run(chain)
        return self._outcomes[chain]

    async def assert_run_equals(self, engine: Engine, run: Run, chain: Chain) -> None:
        """Keys, values and latents of every segment within 1e-4, answers identical."""
        assert run.output_ids == self.run(chain).output_ids
        await self.assert_memory_equals(engine, run.memory, chain)

    async def assert_memory_equals(
        self, engine: Engine, memory: ResidentMemory, chain: Chain
    ) -> None:
        expected = self.run(chain)
        start = 0
        for content, latents in zip(
            await export_all(engine, memory), expected.latents, strict=True
        ):
            assert content.kv is not None
            end = start + content.kv.num_rows
            self.assert_rows_close(content.kv, expected.kv.select(start, end))
            assert_close(content.latents, latents, atol=TOLERANCE, rtol=0)
            start = end
        assert start == expected.kv.num_rows

    def assert_rows_close(self, actual: KVRows, expected: KVRows) -> None:
        """Within 1e-4: see ``is_scaled`` for of what."""
        assert actual.keys.shape == expected.keys.shape
        for ours, theirs in ((actual.keys, expected.keys), (actual.values, expected.values)):
            scale = theirs.norm(dim=-1, keepdim=True).clamp_min(1) if self._is_scaled else 1.0
            worst = ((ours - theirs).abs() / scale).max().item()
            largest = theirs.abs().max().item()
            assert worst < TOLERANCE, f"rows differ by {worst}, of {largest} at most"

    def _run(self, chain: Chain) -> Outcome:
        memory: PlainMemory | None = None
        latents: list[torch.Tensor] = []
        for agent in chain.agents:
            before, prompt_ids = memory, self.encode(agent.prompt)
            thought = self.plain.think(prompt_ids, before, latent_steps=agent.latent_steps)
            memory = thought.memory
            latents.append(thought.latents)
        assert memory is not None, "a chain has agents"
        output_ids: list[int] = []
        if chain.max_tokens:
            output_ids = self.plain.speak(
                prompt_ids,
                before,
                max_tokens=chain.max_tokens,
                latent_steps=agent.latent_steps,
            )
        return Outcome(rows_of(memory), latents, tuple(output_ids))


def greedy(max_tokens: int) -> SamplingParams:
    """Exactly so many tokens, the likeliest ones."""
    return SamplingParams(max_tokens=max_tokens, ignore_eos=True)


def encode(tokenizer, prompt: str) -> list[int]:
    return tokenizer.encode(prompt, add_special_tokens=False)


def rows_of(memory: PlainMemory) -> KVRows:
    """The plain loop's memory in the layout of segments."""
    keys, values = (torch.stack(layers).transpose(1, 2) for layers in (memory.keys, memory.values))
    return KVRows(keys, values)


async def run_chain(engine: Engine, chain: Chain) -> Run:
    """Every agent's turn, each behind the memory of the one before, which is released then."""
    memory: ResidentMemory | None = None
    turns: list[TurnDone] = []
    for index, agent in enumerate(chain.agents):
        prompt_ids = tuple(encode(engine.tokenizer, agent.prompt))
        turns.append(await engine.complete(chain.turn_of(index, prompt_ids, memory)))
        if memory is not None:
            await engine.release(memory)
        memory = turns[-1].memory
    assert memory is not None, "a chain has agents"
    return Run(memory, tuple(turns))


async def run_chains(engine: Engine, chains: Sequence[Chain]) -> list[Run]:
    """All at once."""
    return await asyncio.gather(*(run_chain(engine, chain) for chain in chains))


async def release_all(engine: Engine, runs: Sequence[Run]) -> None:
    for run in runs:
        await engine.release(run.memory)


async def export_all(engine: Engine, memory: ResidentMemory) -> list[SegmentTensors]:
    return await engine.export(memory, memory.memory.segments)
