"""A service without engines, whose agents do what a script says; on a port of this machine."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from latentmas_core.engine.stats import EngineStats
from latentmas_core.events import (
    AgentFinished,
    AgentPhase,
    AgentStarted,
    AgentThought,
    AnswerDelta,
    AnswerDone,
    Event,
    StageFinished,
    StageStarted,
)
from latentmas_core.phases import Phase
from latentmas_core.pipelines.builtin import builtin_pipelines
from latentmas_core.pipelines.plan import plan
from latentmas_core.pipelines.spec import NodeSpec, PipelineSpec
from latentmas_core.request import Mode, ReasonRequest
from latentmas_core.result import (
    AgentTrace,
    LensStep,
    LensToken,
    PhaseDurations,
    Result,
    StageStatus,
    StageTrace,
    Transfer,
    Usage,
)
from tests.deployments.fake_reasoner import FakeDirectory, FakeReasoner

POLL_S = 0.01
NUM_STEPS = 3
BYTES_OUT = 4 * 2**20
ANSWER = "The capital of France is Paris."
AGENTS = ("planner", "critic", "refiner", "judger", "medical", "math", "coder")
THINKERS = ("planner", "critic", "medical", "coder")
GROUP_OF = dict.fromkeys(AGENTS, "deciders") | dict.fromkeys(THINKERS, "thinkers")
# An edge that passes others by, names that are longer than their boxes, and one agent twice.
DIAMOND = PipelineSpec(
    name="diamond",
    description="two opinions, and a plan that the judger reads too",
    nodes=(
        NodeSpec(name="planner"),
        NodeSpec(name="first_opinion_of_the_physician", agent="medical", after=("planner",)),
        NodeSpec(name="second", agent="medical", after=("planner",)),
        NodeSpec(name="critic", after=("first_opinion_of_the_physician", "second")),
        NodeSpec(name="judger", after=("critic", "planner")),
    ),
)
STATS = EngineStats(
    num_running=2,
    num_waiting=1,
    num_memories=3,
    num_blocks=400,
    num_used_blocks=100,
    num_cached_blocks=0,
    block_size=16,
    num_steps_total=0,
    num_rows_total=0,
    num_tokens_total=0,
    num_latent_steps_total=0,
    num_cached_tokens_total=0,
    num_preemptions_total=0,
    num_suspensions_total=0,
    num_offloads_total=0,
)


class ScriptedDirectory(FakeDirectory):
    """Lists what it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.listed: list[dict[str, Any]] = []

    async def listing(self):
        return self.listed


class ScriptedReasoner(FakeReasoner):
    """Every agent of a pipeline takes its turn, one after the other.

    ``lens_text`` is what all thoughts are close to. Before each event it waits for ``may_go_on``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pipelines = builtin_pipelines(AGENTS) | {"diamond": DIAMOND}
        self.plans = {name: plan(spec, GROUP_OF) for name, spec in self.pipelines.items()}
        self.adapters = ScriptedDirectory()
        self.may_go_on = threading.Event()
        self.has_left = threading.Event()
        self.reset()

    def reset(self) -> None:
        """As it was at first."""
        self.error, self.fails_at = None, 0
        self.requests = []
        self.adapters.listed = []
        self.answer = ANSWER
        self.lens_text = " Paris"
        self.may_go_on.set()
        self.has_left.clear()

    async def check(self, request):
        """Every pipeline that is known is offered."""

    async def stream(self, request):
        self.requests.append(request)
        try:
            for number, event in enumerate(self._events(request)):
                if self.error is not None and number == self.fails_at:
                    raise self.error
                while not self.may_go_on.is_set():  # noqa: ASYNC110 - another thread sets it
                    await asyncio.sleep(POLL_S)
                yield event
        finally:
            self.has_left.set()

    async def stats(self):
        return {"thinkers": [asdict(STATS) | {"replica": "r1"}], "deciders": []}

    def _events(self, request: ReasonRequest) -> Iterator[Event]:
        chosen = self.plans[request.pipeline].in_mode(request.mode)
        traces = []
        for stage in chosen.stages:
            nodes = tuple(node.name for node in stage.nodes)
            yield StageStarted(stage.name, stage.group, nodes, 1)
            for node in stage.nodes:
                is_speaker = node is stage.speaker
                trace = self._trace_of(node, request, is_speaker)
                yield from self._turn(trace, stage.name, request)
                traces.append(trace)
            yield StageFinished(stage.name, self._stage_trace(stage, request))
        yield AnswerDone(self._result(request, tuple(traces), len(chosen.stages)))

    def _turn(self, trace: AgentTrace, stage: str, request: ReasonRequest) -> Iterator[Event]:
        yield AgentStarted(trace.name, stage)
        yield AgentPhase(trace.name, Phase.PREFILL)
        if trace.latent_steps:
            yield AgentPhase(trace.name, Phase.THINKING)
            for index in range(trace.latent_steps):
                yield AgentThought(trace.name, index + 1, self._lens_of(index, request))
        if trace.completion_tokens:
            yield AgentPhase(trace.name, Phase.SPEAKING)
        if trace.text == self.answer:
            yield from (AnswerDelta(piece) for piece in self.answer.partition(" ") if piece)
        yield AgentFinished(trace.name, trace)

    def _lens_of(self, index: int, request: ReasonRequest) -> LensStep | None:
        if request.trace == "off":
            return None
        shares = (0.6, 0.2, 0.1, 0.004, 0.001)
        tokens = tuple(
            LensToken(id=place, text=self.lens_text, probability=share)
            for place, share in enumerate(shares)
        )
        return LensStep(index=index, norm=54.1, tokens=tokens)

    def _trace_of(self, node: NodeSpec, request: ReasonRequest, is_speaker: bool) -> AgentTrace:
        thinks = request.mode is Mode.LATENT and not is_speaker
        said = self.answer if is_speaker else f"{node.name} wrote this."
        return AgentTrace(
            name=node.name,
            role="any",
            adapter="base",
            mode=request.mode,
            latent_steps=NUM_STEPS if thinks else 0,
            prompt_tokens=40,
            completion_tokens=0 if thinks else 9,
            started_at=1.0,
            latency_ms=330.0,
            text="" if thinks else said,
            phases=PhaseDurations(queued_ms=1.0, prefill_ms=140.0, thinking_ms=180.0),
        )

    def _stage_trace(self, stage, request: ReasonRequest) -> StageTrace:
        hands_on = request.mode is Mode.LATENT and not stage.is_speaking
        return StageTrace(
            name=stage.name,
            group=stage.group,
            status=StageStatus.DONE,
            replica="r1",
            started_ms=0.5,
            finished_ms=1.5,
            bytes_in=0,
            bytes_out=BYTES_OUT if hands_on else 0,
            attempts=1,
        )

    def _result(self, request: ReasonRequest, traces, num_stages: int) -> Result:
        hops = num_stages - 1
        num_bytes = hops * BYTES_OUT if request.mode is Mode.LATENT else 0
        return Result(
            id="reason-1",
            final_answer=self.answer,
            pipeline=request.pipeline,
            mode=request.mode,
            agents=traces,
            usage=Usage.of(traces),
            latency_ms=400.0 * len(traces),
            transfer=Transfer(stages=num_stages, hops=hops, num_bytes=num_bytes),
        )


@contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """The URL of ``app``, served by a thread of this process."""
    config = uvicorn.Config(
        app, log_level="error", lifespan="off", ws="none", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))  # from here on connections wait
    port = listener.getsockname()[1]
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
