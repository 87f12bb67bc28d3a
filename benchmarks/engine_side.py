"""Our sides: a system over an engine, asked as a user asks, and the bare step of its model runner.

Each lives in a worker of its own.
"""

import asyncio
import statistics
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import torch

from benchmarks.baselines.generate import NUM_WARMUP_STEPS
from benchmarks.prompts import latent_prompts, single_prompt
from benchmarks.protocol import Limits, Run, SideSettings
from benchmarks.timing import timed
from latentmas_core.config import EngineConfig, SamplingParams
from latentmas_core.engine.detokenizer import Detokenizer
from latentmas_core.engine.engine import Engine
from latentmas_core.engine.kv_pool import KVPool
from latentmas_core.engine.model_loader import load_model, resolve_device, resolve_dtype
from latentmas_core.engine.model_runner import ModelRunner
from latentmas_core.engine.pool_size import choose_block_size
from latentmas_core.engine.scheduler import ScheduledRows
from latentmas_core.engine.sequence import Sequence as EngineSequence
from latentmas_core.engine.turn import Turn, TurnDone, TurnEvent
from latentmas_core.system import LatentMASSystem

# On a GPU several sides share the card, so the pool must not take half of what is free.
CUDA_POOL_BYTES = 4 * 2**30


class EngineSide:
    """All methods answer greedily with forced lengths; building prompts is part of the time."""

    def __init__(self, settings: SideSettings) -> None:
        self._device = resolve_device(settings.device)
        self._engine = Engine(_engine_config(settings))
        self._recorder = RecordingEngine(self._engine)
        self._system = LatentMASSystem.from_engine(self._recorder).add_default_agents()

    def close(self) -> None:
        self._system.close()
        self._engine.close()

    def reason_latent(self, *, questions: list[str], limits: Limits) -> Run:
        """The hierarchical pipeline over all questions at once."""
        duration_s = self._ask(questions, "latent", limits)
        prompts = [latent_prompts(self._engine.tokenizer, question)[-1] for question in questions]
        return Run(duration_s, [self._recorder.answer_to(prompt_ids) for prompt_ids in prompts])

    def reason_text(self, *, questions: list[str], limits: Limits) -> Run:
        """The hierarchical pipeline in mode text over one question."""
        assert len(questions) == 1, f"answers of {len(questions)} questions would be mixed up"
        return Run(self._ask(questions, "text", limits), self._recorder.answers)

    def answer_alone(self, *, questions: list[str], limits: Limits) -> Run:
        """Mode single over all questions at once."""
        duration_s = self._ask(questions, "single", limits)
        prompts = [single_prompt(self._engine.tokenizer, question) for question in questions]
        return Run(duration_s, [self._recorder.answer_to(prompt_ids) for prompt_ids in prompts])

    def step_ms(self, *, context_len: int, num_steps: int) -> float:
        """Time per token of one long decode; prefill and first token are taken off."""
        first_s = self._decode_s(context_len, num_tokens=1)
        return 1e3 * (self._decode_s(context_len, num_tokens=num_steps + 1) - first_s) / num_steps

    def _ask(self, questions: list[str], mode: str, limits: Limits) -> float:
        self._recorder.forget()
        run = timed(
            self._device,
            lambda: self._system.run_many(
                questions,
                mode=mode,
                latent_steps=limits.latent_steps,
                max_tokens=limits.max_tokens,
                temperature=0.0,
                ignore_eos=True,
            ),
        )
        return run.duration_s

    def _decode_s(self, context_len: int, *, num_tokens: int) -> float:
        turn = Turn(
            "judger",
            prompt_ids=_step_prompt(context_len, self._engine.shape.vocab_size),
            sampling=SamplingParams(max_tokens=num_tokens, ignore_eos=True),
        )
        return timed(self._device, lambda: asyncio.run(self._engine.complete(turn))).duration_s


class RecordingEngine:
    """An engine that remembers the token ids that were written; results tell only their text."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._done: list[tuple[Turn, TurnDone]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def run(self, turn: Turn) -> AsyncGenerator[TurnEvent, None]:
        async with aclosing(self._engine.run(turn)) as events:
            async for event in events:
                if isinstance(event, TurnDone) and turn.sampling is not None:
                    self._done.append((turn, event))
                yield event

    def forget(self) -> None:
        self._done.clear()

    @property
    def answers(self) -> list[list[int]]:
        """In the order in which they ended."""
        return [list(done.output_ids) for _, done in self._done]

    def answer_to(self, prompt_ids: Sequence[int]) -> list[int]:
        """LookupError if nobody was asked just this, which the baselines are."""
        for turn, done in self._done:
            if turn.prompt_ids == tuple(prompt_ids):
                return list(done.output_ids)
        raise LookupError(
            f"no agent was asked the prompt of {len(prompt_ids)} tokens that the baselines are "
            "asked. Make benchmarks/prompts.py agree with the pipelines."
        )


class BareStepSide:
    """The model runner alone: no scheduler, no events, no detokenisation."""

    def __init__(self, settings: SideSettings) -> None:
        device = resolve_device(settings.device)
        torch.set_num_threads(settings.num_threads)
        loaded = load_model(
            settings.model_name, device=device, dtype=resolve_dtype(settings.dtype, device)
        )
        self._config = _engine_config(settings)
        self._tokenizer = loaded.tokenizer
        self._runner = ModelRunner(loaded, is_realigned=True)

    def close(self) -> None:
        """Nothing runs between calls."""

    def step_ms(self, *, context_len: int, num_steps: int) -> float:
        """Median time of a greedy one-row step behind ``context_len`` rows and more."""
        num_outputs = NUM_WARMUP_STEPS + num_steps
        sequence = self._sequence(context_len, num_outputs)
        pool = self._pool_for(sequence)
        self._step(sequence, pool)
        durations_s = [
            timed(self._runner.device, lambda: self._step(sequence, pool)).duration_s
            for _ in range(num_outputs)
        ]
        return 1e3 * statistics.median(durations_s[NUM_WARMUP_STEPS:])

    def _sequence(self, context_len: int, num_outputs: int) -> EngineSequence:
        turn = Turn(
            "judger",
            prompt_ids=_step_prompt(context_len, self._runner.shape.vocab_size),
            sampling=SamplingParams(max_tokens=num_outputs + 1),
        )
        detokenizer = Detokenizer(self._tokenizer.backend_tokenizer)
        return EngineSequence(turn, sink=_ignore, detokenizer=detokenizer, prefix_keys=[])

    def _pool_for(self, sequence: EngineSequence) -> KVPool:
        """A pool of just the blocks that the sequence will fill, in order."""
        block_size = choose_block_size(self._config, is_paged=self._runner.is_paged)
        num_blocks = -(-sequence.max_rows // block_size)
        sequence.block_table = list(range(num_blocks))
        return KVPool(
            self._runner.shape,
            num_blocks=num_blocks,
            block_size=block_size,
            dtype=self._runner.dtype,
            device=self._runner.device,
        )

    def _step(self, sequence: EngineSequence, pool: KVPool) -> None:
        num_rows = sequence.num_uncomputed
        self._runner.step([ScheduledRows(sequence, num_rows)], pool)
        sequence.num_computed += num_rows


def _engine_config(settings: SideSettings) -> EngineConfig:
    return EngineConfig(
        model_name=settings.model_name,
        device=settings.device,
        dtype=settings.dtype,
        num_threads=settings.num_threads,
        has_prefix_cache=settings.has_prefix_cache,
        kv_cache_bytes=CUDA_POOL_BYTES if settings.device == "cuda" else None,
    )


def _step_prompt(context_len: int, vocab_size: int) -> tuple[int, ...]:
    """The ids that the eager step of the baselines starts behind."""
    return tuple(index % vocab_size for index in range(context_len))


def _ignore(event: object) -> None:
    """The sink of a sequence that nobody listens to."""
