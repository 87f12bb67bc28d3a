"""Our side: an engine with many adapters, asked as its users ask. Lives in a worker."""

import asyncio
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.engine_side import CUDA_POOL_BYTES
from benchmarks.lora_trace import Trace, TraceRequest, make_requests
from benchmarks.protocol import Run, SideSettings
from benchmarks.timing import timed
from latentmas_core.config import EngineConfig, LoRAConfig, SamplingParams
from latentmas_core.engine.engine import Engine
from latentmas_core.engine.model_loader import resolve_device
from latentmas_core.engine.turn import TextDelta, Turn, TurnDone
from latentmas_core.lora import batch
from latentmas_core.lora.mix import NO_ADAPTERS, AdapterMix, AdapterUse

CPU_POOL_BYTES = 4 * 2**30
MAX_ON_HOST = 64


class TraceRun(NamedTuple):
    """What a trace came to. first_token_s: of each request, from when it came."""

    duration_s: float
    num_tokens: int
    first_token_s: list[float]

    @property
    def requests_per_s(self) -> float:
        return len(self.first_token_s) / self.duration_s

    @property
    def p99_s(self) -> float:
        return statistics.quantiles(self.first_token_s, n=100, method="inclusive")[98]


class LoRASide:
    """``max_loaded`` places for adapters, 0 is an engine that knows none; ``max_on_host`` more of
    them stay in host memory."""

    def __init__(
        self,
        settings: SideSettings,
        max_loaded: int,
        max_on_host: int = MAX_ON_HOST,
        max_num_seqs: int = 32,
    ) -> None:
        self._device = resolve_device(settings.device)
        is_cuda = settings.device == "cuda"
        self._engine = Engine(
            EngineConfig(
                model_name=settings.model_name,
                device=settings.device,
                dtype=settings.dtype,
                num_threads=settings.num_threads,
                has_prefix_cache=False,
                kv_cache_bytes=CUDA_POOL_BYTES if is_cuda else CPU_POOL_BYTES,
                max_num_seqs=max_num_seqs,
                lora=LoRAConfig(max_loaded_adapters=max_loaded, max_cpu_adapters=max_on_host),
            )
        )

    def close(self) -> None:
        self._engine.close()

    def load(self, *, folders: Sequence[str]) -> None:
        """Make adapters known, as "0", "1" and so on."""
        asyncio.run(self._load_all(folders))

    def load_and_use(self, *, folders: Sequence[str]) -> list[float]:
        """Seconds from asking for each adapter until its first token."""
        return asyncio.run(self._load_and_use(folders))

    def decode(self, *, adapters: Sequence[int | None], context_len: int, num_tokens: int) -> Run:
        """One row each; the time per token, with prefill and first token taken off."""
        first = self._answer(adapters, context_len, 1)
        run = self._answer(adapters, context_len, num_tokens + 1)
        return Run((run.duration_s - first.duration_s) / num_tokens, run.answer_ids)

    def prefill(self, *, adapters: Sequence[int | None], context_len: int) -> Run:
        """The time until each has said one token."""
        return self._answer(adapters, context_len, 1)

    def run_trace(self, *, trace: Trace) -> TraceRun:
        requests = make_requests(trace, self._engine.shape.vocab_size)
        return asyncio.run(self._run_trace(requests))

    def device_load_s(self, *, adapters: Sequence[int], num_places: int) -> float:
        """Median of what the first token of a lone request takes longer if its adapter is not on
        the device. ``adapters`` are more than the places there are."""
        cold = [self._first_token_s(adapter) for adapter in list(adapters) * 2]
        warm = [self._first_token_s(adapters[0]) for _ in range(len(cold))]
        return statistics.median(cold[num_places:]) - statistics.median(warm[1:])

    def _first_token_s(self, adapter: int) -> float:
        request = TraceRequest(0.0, adapter, prompt_of(0, 16, self._engine.shape.vocab_size), 1)
        return asyncio.run(self._run_trace([request])).first_token_s[0]

    def _answer(self, adapters: Sequence[int | None], context_len: int, num_tokens: int) -> Run:
        size = self._engine.shape.vocab_size
        turns = [
            self._turn(adapter, prompt_of(index, context_len, size), num_tokens)
            for index, adapter in enumerate(adapters)
        ]
        run = timed(self._device, lambda: asyncio.run(self._complete(turns)))
        return Run(run.duration_s, [list(done.output_ids) for done in run.value])

    async def _complete(self, turns: Sequence[Turn]) -> list[TurnDone]:
        return await asyncio.gather(*(self._engine.complete(turn) for turn in turns))

    async def _load_all(self, folders: Sequence[str]) -> None:
        for index, folder in enumerate(folders):
            await self._engine.load_adapter(str(index), Path(folder))

    async def _load_and_use(self, folders: Sequence[str]) -> list[float]:
        durations_s = []
        prompt_ids = prompt_of(0, 16, self._engine.shape.vocab_size)
        for index, folder in enumerate(folders):
            started_s = time.perf_counter()
            await self._engine.load_adapter(str(index), Path(folder))
            await self._engine.complete(self._turn(index, prompt_ids, 1))
            durations_s.append(time.perf_counter() - started_s)
        return durations_s

    async def _run_trace(self, requests: Sequence[TraceRequest]) -> TraceRun:
        started_s = time.perf_counter()
        answers = await asyncio.gather(*(self._run_one(r, started_s) for r in requests))
        duration_s = time.perf_counter() - started_s
        return TraceRun(
            duration_s, sum(num for _, num in answers), [first_s for first_s, _ in answers]
        )

    async def _run_one(self, request: TraceRequest, started_s: float) -> tuple[float, int]:
        await asyncio.sleep(max(0.0, started_s + request.at_s - time.perf_counter()))
        asked_s = time.perf_counter()
        first_s: float | None = None
        num_tokens = 0
        turn = self._turn(request.adapter, request.prompt_ids, request.num_outputs)
        async for event in self._engine.run(turn):
            if first_s is None and isinstance(event, TextDelta | TurnDone):
                first_s = time.perf_counter() - asked_s
            if isinstance(event, TurnDone):
                num_tokens = len(event.output_ids)
        assert first_s is not None, "a turn that speaks has a first token"
        return first_s, num_tokens

    def _turn(self, adapter: int | None, prompt_ids: Sequence[int], num_tokens: int) -> Turn:
        mix = NO_ADAPTERS
        if adapter is not None:
            mix = AdapterMix((AdapterUse(self._engine.adapter(str(adapter)).digest),))
        return Turn(
            "judger",
            prompt_ids=tuple(prompt_ids),
            sampling=SamplingParams(max_tokens=num_tokens, ignore_eos=True),
            adapters=mix,
        )


class InPlaceSide(LoRASide):
    """The same without copies: adapters at unequal distances are multiplied one by one."""

    def __init__(self, settings: SideSettings, max_loaded: int) -> None:
        batch.MAX_COPIED_BYTES = 0
        super().__init__(settings, max_loaded)


def prompt_of(index: int, context_len: int, vocab_size: int) -> tuple[int, ...]:
    """Equally long for all, so that nobody pads; the same on every side."""
    return tuple((7 * index + 13 * place + 1) % vocab_size for place in range(context_len))
