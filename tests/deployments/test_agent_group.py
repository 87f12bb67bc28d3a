"""Groups with real engines over a tiny model, without Ray: equal to one process, and no leaks."""

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest

from deployments.args import AppArgs
from deployments.budget import TransferBudget
from deployments.messages import Parcel, RemoteMemory, StageCall, StageFailed, StageMade
from deployments.reasoner import Reasoner
from deployments.transport import WireSegments, to_wire
from latentmas_core.engine.engine import Engine
from latentmas_core.errors import (
    ConfigError,
    ContextLengthError,
    DeadlineError,
    EngineError,
    NotFoundError,
    SegmentError,
)
from latentmas_core.events import AgentFinished, AgentThought, AnswerDelta
from latentmas_core.latent.memory import Memory
from latentmas_core.pipelines.plan import plan
from latentmas_core.pipelines.spec import PipelineSpec
from latentmas_core.request import ReasonRequest
from latentmas_core.system import LatentMASSystem
from tests.deployments.local_groups import LocalTransport, make_servers
from tests.deployments.wire import make_packed, make_segment, send
from tests.factories import make_tiny_model

HIDDEN_SIZE, BYTES_PER_NUMBER = 64, 4
STEPS = 3
QUESTION = "What is 17 times 3?"
GROUPS = [
    {"name": "thinkers", "agents": ["planner", "critic", "medical", "coder"]},
    {"name": "deciders", "agents": ["refiner", "math", "judger"]},
]
PIPELINES = [PipelineSpec.chain("zigzag", ["planner", "refiner", "critic", "judger"])]


def make_args(model, **group_engine):
    engine = {
        "model_name": str(model),
        "device": "cpu",
        "dtype": "float32",
        "kv_cache_bytes": 2**23,
        "num_threads": 1,
    }
    deciders = GROUPS[1] | {"engine": group_engine}
    return AppArgs(
        engine=engine, groups=[GROUPS[0], deciders], latent_steps=STEPS, pipelines=PIPELINES
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Untied, so that realignment does something."""
    folder = tmp_path_factory.mktemp("tiny")
    return make_tiny_model(folder, "qwen2", max_position_embeddings=8192)


@pytest.fixture(scope="module")
def args(model):
    return make_args(model)


@pytest.fixture(scope="module")
def engines(args):
    engines = {group.name: Engine(args.engine_of(group)) for group in args.groups}
    yield engines
    for engine in engines.values():
        engine.close()


@pytest.fixture
async def servers(args, engines):
    """Fails the test if a request, a memory or a block is left."""
    yield make_servers(args, engines)
    for engine in engines.values():
        await assert_empty(engine)


@pytest.fixture
def transport(monkeypatch):
    transport = LocalTransport()
    monkeypatch.setattr("deployments.runner.stream_stage", transport.stream_stage)
    return transport


@pytest.fixture
def reasoner(args, servers, transport):
    return Reasoner(args, servers, TransferBudget(2**30))


@pytest.fixture(scope="module")
def system(args):
    with LatentMASSystem(
        engine_config=args.engine_of(args.groups[0]), latent_steps=STEPS
    ) as system:
        yield system.add_default_agents().add_pipeline(PIPELINES[0])


async def assert_empty(engine):
    stats = await engine.stats()
    left = (stats.num_running, stats.num_waiting, stats.num_memories, stats.num_used_blocks)
    assert left == (0, 0, 0, 0), f"running, waiting, memories, used blocks: {left}"
    await engine.check_integrity()


def make_request(**fields):
    defaults = {"question": QUESTION, "temperature": 0.0, "max_tokens": 12, "ignore_eos": True}
    return ReasonRequest.model_validate(defaults | fields)


async def assert_same_in_process(reasoner, system, request):
    served = await reasoner.reason(request)
    local = await system.arun(**request.model_dump())
    assert served.final_answer == local.final_answer
    assert served.usage == local.usage
    assert [strip(agent) for agent in served.agents] == [strip(agent) for agent in local.agents]
    return served


def strip(trace):
    return trace.model_dump(exclude={"latency_ms", "started_at", "phases"})


@pytest.mark.parametrize("carry", ["all", "latents"])
@pytest.mark.parametrize("handoff", ["kv", "embeddings", "text"])
@pytest.mark.parametrize("pipeline", ["hierarchical", "sequential", "zigzag"])
async def test_chain_over_two_groups_equals_one_process(reasoner, system, pipeline, handoff, carry):
    request = make_request(pipeline=pipeline, handoff=handoff, carry=carry)
    await assert_same_in_process(reasoner, system, request)


@pytest.mark.parametrize("handoff", ["kv", "embeddings"])
@pytest.mark.parametrize("carry", ["all", "latents"])
@pytest.mark.parametrize("merge", ["reused", "consecutive"])
async def test_parallel_experts_over_two_groups_equal_one_process(
    reasoner, system, merge, carry, handoff
):
    request = make_request(pipeline="parallel", merge=merge, carry=carry, handoff=handoff)
    await assert_same_in_process(reasoner, system, request)


@pytest.mark.parametrize("mode", ["text", "single"])
@pytest.mark.parametrize("pipeline", ["hierarchical", "parallel", "sequential"])
async def test_other_modes_equal_one_process_and_send_no_memory(
    reasoner, system, transport, pipeline, mode
):
    served = await assert_same_in_process(
        reasoner, system, make_request(pipeline=pipeline, mode=mode)
    )
    assert served.transfer.num_bytes == 0
    assert not transport.sent


async def test_sampled_answer_with_a_seed_equals_one_process(reasoner, system):
    request = make_request(mode="text", temperature=0.8, seed=11)
    await assert_same_in_process(reasoner, system, request)


async def test_answers_depend_on_what_is_handed_over(reasoner):
    """Or equal answers above would show nothing."""
    requests = [
        make_request(pipeline="zigzag"),
        make_request(pipeline="zigzag", carry="latents"),
        make_request(pipeline="zigzag", latent_steps=STEPS + 1),
        make_request(pipeline="zigzag", mode="single"),
        make_request(pipeline="parallel", merge="reused"),
        make_request(pipeline="parallel", merge="consecutive"),
    ]
    answers = [(await reasoner.reason(request)).final_answer for request in requests]
    assert len(set(answers)) == len(answers)


async def test_noise_on_the_wire_changes_the_answer(reasoner, transport):
    clean = await reasoner.reason(make_request(pipeline="zigzag"))

    def corrupt(wire):
        numbers = wire.data.view("float32")
        numbers[:] = numbers[::-1].copy()

    transport.before_sending = corrupt
    noisy = await reasoner.reason(make_request(pipeline="zigzag"))
    assert noisy.final_answer != clean.final_answer


async def test_embeddings_send_the_latents_and_nothing_else(reasoner):
    kv = await reasoner.reason(make_request(pipeline="zigzag"))
    embeddings = await reasoner.reason(make_request(pipeline="zigzag", handoff="embeddings"))
    num_thinkers = 3
    assert embeddings.transfer.num_bytes == num_thinkers * STEPS * HIDDEN_SIZE * BYTES_PER_NUMBER
    assert kv.transfer.num_bytes > 50 * embeddings.transfer.num_bytes


async def test_each_thought_crosses_once_however_many_read_it(reasoner, transport):
    await reasoner.reason(make_request(pipeline="zigzag"))
    sent = [[segment.agent for segment in wire.segments] for wire in transport.sent]
    assert sent == [["planner"], ["refiner"], ["critic"]]


async def test_neighbours_in_one_group_are_one_parcel(reasoner, transport):
    result = await reasoner.reason(make_request(pipeline="hierarchical"))
    assert [len(wire.segments) for wire in transport.sent] == [2]
    assert (result.transfer.stages, result.transfer.hops) == (2, 1)


@pytest.mark.parametrize("pipeline", ["zigzag", "parallel"])
@pytest.mark.parametrize("handoff", ["kv", "embeddings"])
async def test_what_lies_in_the_store_is_never_written_to(reasoner, transport, pipeline, handoff):
    """Other readers share it, and in a real store writing to it is a crash."""
    digests = []
    transport.before_sending = lambda wire: digests.append(wire.data.tobytes())
    await reasoner.reason(make_request(pipeline=pipeline, handoff=handoff, merge="consecutive"))
    assert [wire.data.tobytes() for wire in transport.sent] == digests


async def test_many_requests_at_once_equal_each_alone(reasoner):
    requests = [
        make_request(question=f"What is {number} + 2?", pipeline=pipeline)
        for number in range(3)
        for pipeline in ("zigzag", "parallel")
    ]
    alone = [(await reasoner.reason(request)).final_answer for request in requests]
    together = await asyncio.gather(*(reasoner.reason(request) for request in requests))
    assert [result.final_answer for result in together] == alone


async def test_pieces_of_the_answer_cross_only_for_one_who_reads_them(reasoner, transport):
    request = make_request()
    whole = await reasoner.reason(request)
    assert not any(isinstance(message, AnswerDelta) for message in transport.messages)
    events = [event async for event in reasoner.stream(request)]
    pieces = [event.text for event in events if isinstance(event, AnswerDelta)]
    assert len(pieces) > 1
    assert "".join(pieces) == events[-1].result.final_answer == whole.final_answer
    assert [type(m) for m in transport.messages].count(AnswerDelta) == len(pieces)


@pytest.mark.parametrize(
    "fields",
    [{}, {"pipeline": "parallel"}, {"pipeline": "zigzag", "handoff": "embeddings"}],
    ids=str,
)
async def test_lens_over_two_groups_equals_one_process(reasoner, system, fields):
    request = make_request(trace="lens", **fields)
    served = await reasoner.reason(request)
    local = await system.arun(**request.model_dump())
    assert served.final_answer == local.final_answer
    for ours, theirs in zip(served.agents, local.agents, strict=True):
        assert len(ours.lens) == ours.latent_steps
        assert_same_lens(ours.lens, theirs.lens)


def assert_same_lens(ours, theirs):
    for step, other in zip(ours, theirs, strict=True):
        assert (step.index, step.norm) == (other.index, pytest.approx(other.norm, rel=1e-4))
        shares = [[token.probability for token in one.tokens] for one in (step, other)]
        assert shares[0] == pytest.approx(shares[1], abs=1e-4)
        assert step.tokens[0].id == other.tokens[0].id


async def test_lens_crosses_step_by_step_only_for_one_who_reads_it(reasoner, transport):
    request = make_request(trace="lens")
    whole = await reasoner.reason(request)
    assert not any(isinstance(message, AgentThought) for message in transport.messages)
    events = [event async for event in reasoner.stream(request)]
    traces = {event.agent: event.trace for event in events if isinstance(event, AgentFinished)}
    for agent in whole.agents:
        told = [e.lens for e in events if isinstance(e, AgentThought) and e.agent == agent.name]
        assert tuple(told) == traces[agent.name].lens
        assert_same_lens(agent.lens, traces[agent.name].lens)


# What one group does with one call.


def make_call(args, *, stage=0, pipeline="hierarchical", memory=None, **fields):
    stages = plan(args.offered_pipelines[pipeline], args.group_of).stages
    return StageCall(stages[stage], memory, (), make_request(**fields))


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


async def failure_of(server, call):
    """The stage fails with its last message, which is data; no exception passes."""
    messages = [message async for message in server.run_stage(call)]
    assert isinstance(messages[-1], StageFailed)
    return messages[-1].error


async def test_segment_of_another_model_fails_the_stage_by_name(args, servers):
    segment = make_segment("planner")
    wire = send(to_wire(make_packed(segment)))
    memory = RemoteMemory(
        Memory().followed_by(segment), (Parcel((segment.segment_id,), wire, wire.data.nbytes),)
    )
    error = await failure_of(servers["deciders"], make_call(args, stage=1, memory=memory))
    assert isinstance(error, SegmentError)
    assert "'planner'" in error.message


async def test_groups_of_different_models_may_exchange_text_but_no_memory(
    args, engines, servers, transport, tmp_path
):
    other = make_tiny_model(tmp_path, "qwen2", seed=1, max_position_embeddings=8192)
    with Engine(args.engine_of(args.groups[0]).model_copy(update={"model_name": str(other)})) as e:
        mixed = engines | {"deciders": e}
        reasoner = Reasoner(args, make_servers(args, mixed), TransferBudget(2**30))
        assert (await reasoner.reason(make_request(handoff="text"))).final_answer
        with pytest.raises(SegmentError, match="load the same model"):
            await reasoner.reason(make_request())
        await assert_empty(e)


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


async def test_closing_a_stage_after_any_message_returns_all_blocks(args, engines, servers):
    server, call = servers["thinkers"], make_call(args)
    num_messages = len([message async for message in server.run_stage(call)])
    assert num_messages > 5
    for num_read in range(1, num_messages + 1):
        async with aclosing(server.run_stage(call)) as messages:
            for _ in range(num_read):
                await anext(messages)
        await assert_empty(engines["thinkers"])


async def test_cancelling_a_stage_at_any_moment_returns_all_blocks(args, engines, servers):
    call = make_call(args)

    async def consume():
        return [message async for message in servers["thinkers"].run_stage(call)]

    for delay_ms in range(0, 40, 4):
        task = asyncio.create_task(consume())
        await asyncio.sleep(delay_ms / 1000)
        task.cancel()
        await asyncio.wait([task])
        await assert_empty(engines["thinkers"])


@pytest.mark.parametrize("pipeline", ["zigzag", "parallel"])
async def test_closing_a_run_after_any_event_returns_all_blocks(reasoner, engines, pipeline):
    request = make_request(pipeline=pipeline, max_tokens=3)
    num_events = len([event async for event in reasoner.stream(request)])
    for num_read in range(1, num_events + 1):
        async with aclosing(reasoner.stream(request)) as events:
            for _ in range(num_read):
                await anext(events)
        for engine in engines.values():
            await assert_empty(engine)


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


async def test_run_waits_for_room_in_the_object_store_as_long_as_its_time_allows(
    args, servers, transport
):
    budget = TransferBudget(1)
    reasoner = Reasoner(args, servers, budget)
    held = RemoteMemory(Memory(), (Parcel(("x",), None, 10),))
    async with budget.run() as account:
        account.hold(held)
        with pytest.raises(DeadlineError, match=r"had not begun after 0\.2 s") as caught:
            await reasoner.reason(make_request(timeout_s=0.2))
        assert caught.value.param == "timeout_s"
        with pytest.raises(EngineError, match="max_transfer_bytes is 1"):
            await reasoner.reason(make_request(max_wait_s=0.2))
        assert (await reasoner.reason(make_request(mode="single"))).final_answer
        account.drop(held)
    assert (await reasoner.reason(make_request())).final_answer
    assert budget.num_parcels == 0
