"""A reasoner without agents: it says what a test told it to, and keeps what it was asked."""

from latentmas_core.agents.config import default_agents
from latentmas_core.errors import NotFoundError
from latentmas_core.events import (
    AgentFinished,
    AgentPhase,
    AgentStarted,
    AgentThought,
    AnswerDelta,
    AnswerDone,
    StageFinished,
    StageStarted,
)
from latentmas_core.lora.library import AdapterInfo
from latentmas_core.phases import Phase
from latentmas_core.pipelines.builtin import builtin_pipelines
from latentmas_core.pipelines.executor import result_of
from latentmas_core.pipelines.plan import plan
from latentmas_core.pipelines.stage_worker import Roster
from latentmas_core.request import Mode
from latentmas_core.result import (
    AgentTrace,
    LensStep,
    LensToken,
    Result,
    StageStatus,
    StageTrace,
    Transfer,
    Usage,
)

ANSWER = "Zoë asks:\n\n你好 🦊 \u2028\u2029\x85\r data: x"
LENS_STEP = LensStep(index=0, norm=4.5, tokens=(LensToken(id=7, text=" 首", probability=0.5),))
TRACE = AgentTrace(
    name="judger",
    role="final decision",
    adapter="base",
    mode=Mode.LATENT,
    latent_steps=0,
    prompt_tokens=5,
    completion_tokens=2,
    started_at=1.0,
    latency_ms=1.0,
    text=ANSWER,
)
STAGE_TRACE = StageTrace(
    name="refiner+judger",
    group="deciders",
    status=StageStatus.DONE,
    replica="r1",
    started_ms=0.5,
    finished_ms=1.5,
    bytes_in=4096,
    bytes_out=0,
    attempts=1,
)
RESULT = Result(
    id="reason-1",
    final_answer=ANSWER,
    pipeline="hierarchical",
    mode=Mode.LATENT,
    agents=(TRACE,),
    usage=Usage.of((TRACE,)),
    latency_ms=2.0,
    transfer=Transfer(stages=3, hops=2, num_bytes=4096),
)
INFO = AdapterInfo(
    name="any",
    digest="d" * 64,
    state="absent",
    rank=8,
    targets=("self_attn.q_proj",),
    base_model="Qwen2.5-3B",
    pinned=False,
)
EVENTS = (
    StageStarted("refiner+judger", "deciders", ("refiner", "judger"), 1),
    AgentStarted("judger", "refiner+judger"),
    AgentPhase("judger", Phase.PREFILL),
    AgentThought("judger", 4),
    *(AnswerDelta(piece) for piece in (ANSWER[:4], ANSWER[4:])),
    AgentFinished("judger", TRACE),
    StageFinished("refiner+judger", STAGE_TRACE),
    AnswerDone(RESULT),
)


OFFERED = ("hierarchical", "parallel", "chat")

GROUP_OF = {
    "planner": "thinkers",
    "critic": "thinkers",
    "refiner": "deciders",
    "judger": "deciders",
}


class FakeDirectory:
    """Loads whatever it is told to; ``error`` is raised in place of that."""

    def __init__(self):
        self.error = None
        self.sources = {}
        self.operators = set()

    async def load(self, source, *, is_operators):
        if self.error is not None:
            raise self.error
        self.sources[source.name] = source
        if is_operators:
            self.operators.add(source.name)
        return INFO.model_copy(update={"name": source.name, "pinned": source.pinned})

    async def unload(self, name):
        if name not in self.sources:
            raise NotFoundError(f"adapter {name!r} is not loaded.", param="adapters")
        del self.sources[name]

    async def require(self, names):
        for name in names:
            if name not in self.sources:
                raise NotFoundError(f"adapter {name!r} is not loaded.", param="adapters")

    async def listing(self):
        return [{"name": name, "states": {"thinkers": ["ready"]}} for name in self.sources]


class FakeReasoner:
    """Says ``events``; ``error`` is raised in front of the event number ``fails_at``.

    ``failures`` maps questions to what is raised when they are answered.
    """

    def __init__(self):
        self.events = EVENTS
        self.error = None
        self.fails_at = 0
        self.missing = []
        self.failures = {}
        self.pipelines = {"hierarchical": builtin_pipelines()["hierarchical"]}
        self.plans = {name: plan(spec, GROUP_OF) for name, spec in self.pipelines.items()}
        self.adapters = FakeDirectory()
        self.requests = []
        self.is_closed = False

    async def check(self, request):
        if request.pipeline not in OFFERED:
            raise NotFoundError(
                f"pipeline {request.pipeline!r} is not offered here; offered: hierarchical. "
                "Declare it.",
                param="pipeline",
            )

    async def stream(self, request):
        self.requests.append(request)
        if request.question in self.failures:
            raise self.failures[request.question]
        try:
            for number, event in enumerate(self.events):
                if self.error is not None and number == self.fails_at:
                    raise self.error
                yield event
        finally:
            self.is_closed = True

    async def reason(self, request):
        return await result_of(self.stream(request))

    async def rosters(self):
        agents = {agent.name: agent for agent in default_agents()}
        agents["refiner"] = agents["refiner"].model_copy(
            update={"adapter": "mine", "latent_steps": 9}
        )
        return {
            group: Roster({name: agents[name] for name, one in GROUP_OF.items() if one == group}, 4)
            for group in ("thinkers", "deciders")
        }

    async def stats(self):
        if self.error is not None:
            raise self.error
        return {"thinkers": [{"num_running": 0}]}

    def transfer(self):
        return {"num_bytes": 0, "num_parcels": 0, "max_bytes": 100}

    async def groups_not_ready(self):
        return self.missing
