"""What crosses a handle survives pickling, errors with all that they say."""

import pickle

import pytest

from cluster.routing import RoutingHint
from deployments.messages import (
    LoadedAdapter,
    Parcel,
    RemoteMemory,
    StageCall,
    StageFailed,
    StageMade,
)
from latentmas_core import errors
from latentmas_core.events import (
    AgentFinished,
    AgentPhase,
    AgentStarted,
    AgentThought,
    AnswerDelta,
    StageGivenUp,
    StageRetried,
)
from latentmas_core.latent.memory import Memory
from latentmas_core.lora.library import AdapterSource
from latentmas_core.phases import Phase
from latentmas_core.pipelines.plan import Stage, plan
from latentmas_core.pipelines.runner import Said
from latentmas_core.pipelines.spec import PipelineSpec
from latentmas_core.request import Handoff, Mode, ReasonRequest
from latentmas_core.result import AgentTrace
from tests.deployments.fake_reasoner import INFO, LENS_STEP
from tests.deployments.wire import make_segment, send

ERROR_TYPES = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.LatentMASError)
]


@pytest.mark.parametrize("kind", ERROR_TYPES, ids=lambda kind: kind.__name__)
def test_error_keeps_its_type_message_and_param(kind):
    failed = send(StageFailed(kind("it is 7; the limit is 5.", param="latent_steps")))
    assert type(failed.error) is kind
    assert (failed.error.message, str(failed.error)) == ("it is 7; the limit is 5.",) * 2
    assert failed.error.param == "latent_steps"


def test_error_without_a_param_stays_without():
    assert send(StageFailed(errors.EngineError("closed."))).error.param is None


@pytest.mark.parametrize(
    "event",
    [
        AgentStarted("planner", "planner+critic"),
        AgentPhase("planner", Phase.THINKING),
        AgentThought("planner", 15),
        AgentThought("planner", 1, LENS_STEP),
        AgentFinished(
            "planner",
            AgentTrace(
                name="planner",
                role="plans",
                adapter="base",
                mode=Mode.LATENT,
                latent_steps=15,
                prompt_tokens=7,
                completion_tokens=0,
                started_at=1e9,
                latency_ms=1.5,
            ),
        ),
        StageRetried("planner+critic", 2, "a replica was lost"),
        StageGivenUp("medical", ("medical",), "a replica was lost"),
        AnswerDelta("Zoë 🦊"),
    ],
    ids=lambda event: type(event).__name__,
)
def test_event_arrives_as_it_was_sent(event):
    assert send(event) == event


def test_end_of_a_stage_arrives_as_it_was_sent():
    segment = make_segment()
    made = StageMade(
        memory=Memory().followed_by(segment),
        new_segment_ids=(segment.segment_id,),
        num_bytes=320,
        said=(Said("planner", "first, second"),),
        finish_reason="thought",
    )
    assert send(made) == made


def test_call_arrives_as_it_was_sent_with_the_speaker_of_its_stage():
    spec = PipelineSpec.chain("short", ["planner", "judger"])
    (stage,) = plan(spec, {"planner": "a", "judger": "a"}).stages
    segment = make_segment()
    call = StageCall(
        stage=stage,
        memory=RemoteMemory(
            Memory().followed_by(segment), (Parcel((segment.segment_id,), "a reference", 320),)
        ),
        transcript=(Said("planner", "first, second"),),
        request=ReasonRequest(question="Why?", handoff=Handoff.EMBEDDINGS, stop=["\n"]),
    )
    received = send(call)
    assert received == call
    # A stage worker asks for the speaker by identity.
    assert received.stage.nodes[-1] is received.stage.speaker


def test_call_is_small_however_much_it_refers_to():
    segment = make_segment(num_tokens=1000)
    stage = Stage("judger", "b", nodes=PipelineSpec.chain("alone", ["judger"]).nodes)
    memory = RemoteMemory(Memory().followed_by(segment), (Parcel((), "a reference", 10**9),))
    call = StageCall(stage, memory, (), ReasonRequest(question="Why?"))
    assert len(pickle.dumps(call)) < 10_000


def test_call_tells_the_router_what_it_needs():
    first, second = make_segment("planner"), make_segment("critic")
    parcels = (
        Parcel((first.segment_id,), None, 1, node_id="node-1"),
        Parcel((second.segment_id,), None, 1, node_id="node-1"),
        Parcel(("x",), None, 1),
    )
    call = StageCall(
        Stage("judger", "deciders", ()),
        RemoteMemory(Memory(), parcels),
        (),
        ReasonRequest(question="?"),
        (LoadedAdapter(INFO, AdapterSource(name=INFO.name, path="/adapters/mine")),),
    )
    assert call.routing_hint == RoutingHint((INFO.name,), ("node-1",))
    assert call.digests == {INFO.name: INFO.digest}
    alone = StageCall(Stage("judger", "deciders", ()), None, (), ReasonRequest(question="?"))
    assert alone.routing_hint == RoutingHint()
