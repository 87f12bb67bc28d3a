"""All metrics of the application: names, labels, and what is counted when.

Labels come from the configuration or are few by nature: pipelines, agents, groups, modes, errors by
class. No label holds what a client wrote. Knows Ray only as the place where numbers are recorded.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, cast

from ray.serve import metrics as serve_metrics

from latentmas_core.engine.stats import EngineStats
from latentmas_core.errors import LatentMASError, LostError
from latentmas_core.events import (
    AgentFinished,
    AnswerDelta,
    Event,
    StageFinished,
    StageGivenUp,
    StageRetried,
)
from latentmas_core.request import ReasonRequest
from latentmas_core.result import AgentTrace

EXPORT_PREFIX = "ray_"  # what Ray puts in front of all names
REPORT_PERIOD_S = 2.0
SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 600.0)


class Kind(StrEnum):
    """What Prometheus calls the type of a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Metric:
    """Ray adds the labels ``deployment``, ``replica`` and ``application``."""

    name: str
    kind: Kind
    description: str
    labels: tuple[str, ...] = ()

    @property
    def exported_name(self) -> str:
        """As Prometheus knows it; histograms have _bucket, _sum and _count behind it."""
        ending = "_total" if self.kind is Kind.COUNTER else ""
        return f"{EXPORT_PREFIX}{self.name}{ending}"


def _counter(name: str, description: str, *labels: str) -> Metric:
    return Metric(f"latentmas_{name}", Kind.COUNTER, description, labels)


def _gauge(name: str, description: str, *labels: str) -> Metric:
    return Metric(f"latentmas_{name}", Kind.GAUGE, description, labels)


def _histogram(name: str, description: str, *labels: str) -> Metric:
    return Metric(f"latentmas_{name}", Kind.HISTOGRAM, description, labels)


# What the ingress sees. status: done, cancelled, or the class of the error.
REQUESTS = _counter("requests", "Requests that ended.", "pipeline", "mode", "status")
REQUEST_SECONDS = _histogram("request_seconds", "From request to its end.", "pipeline", "mode")
FIRST_TOKEN_SECONDS = _histogram(
    "first_token_seconds",
    "From request to the first piece of its answer; of streamed answers only.",
    "pipeline",
    "mode",
)
PROMPT_TOKENS = _counter("prompt_tokens", "Tokens of prompts of agents.", "agent")
COMPLETION_TOKENS = _counter("completion_tokens", "Tokens that agents wrote.", "agent")
LATENT_STEPS = _counter("latent_steps", "Latent steps that agents took.", "agent")
AGENT_SECONDS = _histogram("agent_seconds", "Turns of agents.", "agent")
PHASE_SECONDS = _histogram("phase_seconds", "Phases of agents' turns.", "agent", "phase")
HANDOFF_BYTES = _counter("handoff_bytes", "Memory that stages put where others fetch it.", "group")
FAILED_ATTEMPTS = _counter("failed_attempts", "Attempts of stages that were lost.", "stage")
STAGES_GIVEN_UP = _counter("stages_given_up", "Stages that answers were given without.", "stage")
TRANSFER_BYTES = _gauge("transfer_bytes", "Memory in the object store for this ingress.")

# What each replica of a group reports of its engine.
RUNNING = _gauge("running_sequences", "Turns in the batch.")
WAITING = _gauge("waiting_sequences", "Turns in the queue.")
MEMORIES = _gauge("memories", "Memories that are held.")
BLOCKS = _gauge("kv_blocks", "Blocks of the KV pool.")
USED_BLOCKS = _gauge("kv_blocks_used", "Blocks of the KV pool in use, those of adapters too.")
ADAPTERS = _gauge("adapters", "Adapters on the device, in host memory, and registered.", "tier")
STEPS = _counter("engine_steps", "Steps of the engine.")
ROWS = _counter("engine_rows", "Rows that the engine computed.")
CACHED_TOKENS = _counter("cached_tokens", "Prompt tokens that the prefix cache had.")
PREEMPTIONS = _counter("preemptions", "Turns that gave way and were computed again.")
SUSPENSIONS = _counter("suspensions", "Turns that gave way with their blocks.")
OFFLOADS = _counter("offloads", "Memories that left the KV pool for host memory.")
ADAPTER_LOADS = _counter("adapter_loads", "Adapters brought to the device.")
ADAPTER_EVICTIONS = _counter("adapter_evictions", "Adapters that left the device for others.")

METRICS = tuple(value for value in list(globals().values()) if isinstance(value, Metric))


class Recorder(Protocol):
    """Where numbers go: a counter is increased, a gauge set, a histogram given one more."""

    def record(self, metric: Metric, value: float, **labels: str) -> None: ...


class NullRecorder:
    """Where there is no cluster."""

    def record(self, metric: Metric, value: float, **labels: str) -> None:
        """Forget it."""


class RayRecorder:
    """Ray's metrics, to be made within a replica."""

    def __init__(self) -> None:
        self._instruments: dict[Metric, Any] = {}

    def record(self, metric: Metric, value: float, **labels: str) -> None:
        if metric not in self._instruments:
            self._instruments[metric] = _make_instrument(metric)
        instrument = self._instruments[metric]
        if metric.kind is Kind.COUNTER:
            if value > 0:  # Ray refuses to add nothing
                instrument.inc(value, labels)
        elif metric.kind is Kind.GAUGE:
            instrument.set(value, labels)
        else:
            instrument.observe(value, labels)


def _make_instrument(metric: Metric) -> Any:
    # Ray's annotation means a tuple of any length.
    labels = cast(tuple[str], metric.labels)
    name, description = metric.name, metric.description
    if metric.kind is Kind.COUNTER:
        return serve_metrics.Counter(name, description, labels)
    if metric.kind is Kind.GAUGE:
        return serve_metrics.Gauge(name, description, labels)
    return serve_metrics.Histogram(name, description, list(SECONDS), labels)


class RunMetrics:
    """What the ingress counts of its runs. ``transfer_bytes``: what lies in the object store."""

    def __init__(self, recorder: Recorder, transfer_bytes: Callable[[], int]) -> None:
        self._recorder = recorder
        self._transfer_bytes = transfer_bytes

    @contextmanager
    def run(self, request: ReasonRequest) -> "Iterator[OneRun]":
        """Of a request whose pipeline is offered, from its beginning to its end, whatever it is."""
        labels = {"pipeline": request.pipeline, "mode": request.mode.value}
        one = OneRun(self._recorder, labels, self._transfer_bytes)
        status = "cancelled"
        try:
            yield one
            status = "done"
        except LatentMASError as error:
            status = type(error).__name__
            raise
        except Exception:
            status = "internal"
            raise
        finally:
            one.end(status)


class OneRun:
    """Show it every event of a run."""

    def __init__(
        self, recorder: Recorder, labels: Mapping[str, str], transfer_bytes: Callable[[], int]
    ) -> None:
        self._record = recorder.record
        self._transfer_bytes = transfer_bytes
        self._labels = labels
        self._began_at = time.perf_counter()
        self._has_answered = False

    def note(self, event: Event) -> None:
        match event:
            case AnswerDelta() if not self._has_answered:
                self._has_answered = True
                self._record(FIRST_TOKEN_SECONDS, self._seconds, **self._labels)
            case AgentFinished(agent, trace):
                self._note_agent(agent, trace)
            case StageFinished(_, stage):
                self._record(HANDOFF_BYTES, stage.bytes_out, group=stage.group)
                self._record(TRANSFER_BYTES, self._transfer_bytes())
            case StageRetried(stage=name):
                self._record(FAILED_ATTEMPTS, 1, stage=name)
            case StageGivenUp(stage=name):
                self._record(STAGES_GIVEN_UP, 1, stage=name)

    def end(self, status: str) -> None:
        self._record(REQUESTS, 1, **self._labels, status=status)
        self._record(REQUEST_SECONDS, self._seconds, **self._labels)
        self._record(TRANSFER_BYTES, self._transfer_bytes())

    @property
    def _seconds(self) -> float:
        return time.perf_counter() - self._began_at

    def _note_agent(self, agent: str, trace: AgentTrace) -> None:
        self._record(PROMPT_TOKENS, trace.prompt_tokens, agent=agent)
        self._record(COMPLETION_TOKENS, trace.completion_tokens, agent=agent)
        self._record(LATENT_STEPS, trace.latent_steps, agent=agent)
        self._record(AGENT_SECONDS, trace.latency_ms / 1000.0, agent=agent)
        for field, spent_ms in trace.phases:
            if spent_ms:
                phase = field.removesuffix("_ms")
                self._record(PHASE_SECONDS, spent_ms / 1000.0, agent=agent, phase=phase)


class EngineMetrics:
    """What a replica reports of its engine: gauges as they are, totals as what was added since."""

    def __init__(self, recorder: Recorder) -> None:
        self._record = recorder.record
        self._last: dict[Metric, int] = {}

    def report(self, stats: EngineStats) -> None:
        """Gauges as they are, counters by how much they grew since the last report."""
        adapters = stats.adapters
        gauges = {
            RUNNING: stats.num_running,
            WAITING: stats.num_waiting,
            MEMORIES: stats.num_memories,
            BLOCKS: stats.num_blocks,
            USED_BLOCKS: stats.num_used_blocks,
        }
        for metric, value in gauges.items():
            self._record(metric, value)
        tiers = {"device": adapters.num_loaded, "host": adapters.num_on_host}
        tiers["registered"] = adapters.num_registered
        for tier, num_adapters in tiers.items():
            self._record(ADAPTERS, num_adapters, tier=tier)
        totals = {
            STEPS: stats.num_steps_total,
            ROWS: stats.num_rows_total,
            CACHED_TOKENS: stats.num_cached_tokens_total,
            PREEMPTIONS: stats.num_preemptions_total,
            SUSPENSIONS: stats.num_suspensions_total,
            OFFLOADS: stats.num_offloads_total,
            ADAPTER_LOADS: adapters.num_loads_total,
            ADAPTER_EVICTIONS: adapters.num_evictions_total,
        }
        for metric, total in totals.items():
            self._record(metric, total - self._last.get(metric, 0))
            self._last[metric] = total


async def report_regularly(report: Callable[[], Awaitable[None]]) -> None:
    """Until it is cancelled or the engine is gone."""
    while True:
        try:
            await report()
        except LostError:
            return
        await asyncio.sleep(REPORT_PERIOD_S)
