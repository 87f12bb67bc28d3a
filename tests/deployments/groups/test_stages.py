"""What one group does with one call."""

from dataclasses import replace

import pytest

from deployments.messages import Parcel, RemoteMemory, StageFailed, StageMade
from deployments.transport import WireSegments, to_wire
from latentmas_core.engine.engine import Engine
from latentmas_core.errors import (
    ConfigError,
    ContextLengthError,
    EngineError,
    NotFoundError,
    SegmentError,
)
from latentmas_core.latent.memory import Memory
from tests.deployments.groups.stage_calls import failure_of, make_call, make_request
from tests.deployments.local_groups import make_servers
from tests.deployments.wire import make_packed, make_segment, send


async def test_stage_ends_with_what_it_made_and_then_its_segments(args, servers):
    messages = [message async for message in servers["thinkers"].run_stage(make_call(args))]
    *events, made, wire = messages
    assert not any(isinstance(event, StageMade | StageFailed) for event in events)
    assert made.new_segment_ids == tuple(segment.segment_id for segment in wire.segments)
    assert made.memory.segment_ids == made.new_segment_ids
    assert made.num_bytes == wire.data.nbytes
    assert isinstance(wire, WireSegments)


async def test_speaking_stage_sends_no_segments(args, servers):
    call = make_call(args, mode="single", stage=1)
    messages = [message async for message in servers["deciders"].run_stage(call)]
    assert isinstance(messages[-1], StageMade)
    assert messages[-1].memory is None
    assert messages[-1].finish_reason == "length"


async def test_segment_of_another_model_fails_the_stage_by_name(args, servers):
    segment = make_segment("planner")
    wire = send(to_wire(make_packed(segment)))
    memory = RemoteMemory(
        Memory().followed_by(segment), (Parcel((segment.segment_id,), wire, wire.data.nbytes),)
    )
    error = await failure_of(servers["deciders"], make_call(args, stage=1, memory=memory))
    assert isinstance(error, SegmentError)
    assert "'planner'" in error.message


async def test_too_many_latent_steps_fail_the_stage_with_the_limit(args, servers):
    error = await failure_of(servers["thinkers"], make_call(args, latent_steps=200))
    assert isinstance(error, ConfigError)
    assert "200" in error.message
    assert "128" in error.message


async def test_question_that_is_too_long_fails_the_stage_with_both_numbers(args, servers):
    error = await failure_of(servers["thinkers"], make_call(args, question="x" * 9000))
    assert isinstance(error, ContextLengthError)
    assert "9000" in error.message
    assert "8192" in error.message


async def test_answer_that_does_not_fit_fails_the_stage_before_it_begins(args, servers):
    error = await failure_of(servers["deciders"], make_call(args, stage=1, max_tokens=9000))
    assert isinstance(error, ContextLengthError)
    assert "answer 9000" in error.message


async def test_unknown_pipeline_is_refused_before_anything_runs(reasoner):
    with pytest.raises(NotFoundError, match="offered are auto, chat, hierarchical, paral"):
        await reasoner.reason(make_request(pipeline="diagonal"))


async def test_stats_and_health_tell_of_the_engine(args, servers):
    server = servers["thinkers"]
    await failure_of(server, replace(make_call(args), request=make_request(latent_steps=200)))
    stats = await server.stats()
    assert (stats["num_running"], stats["num_memories"]) == (0, 0)
    await server.check_health()


async def test_replica_whose_engine_has_ended_is_unhealthy(args):
    engine = Engine(args.engine_of(args.groups[0]))
    server = make_servers(args, {"thinkers": engine, "deciders": engine})["thinkers"]
    server.close()
    with pytest.raises(EngineError, match="ended"):
        await server.check_health()
    messages = [message async for message in server.run_stage(make_call(args))]
    assert isinstance(messages[-1], StageFailed)
