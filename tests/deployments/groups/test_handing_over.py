"""What crosses from group to group, and what does not."""

import pytest

from deployments.budget import TransferBudget
from deployments.messages import Parcel, RemoteMemory
from deployments.reasoner import Reasoner
from latentmas_core.engine.engine import Engine
from latentmas_core.errors import DeadlineError, EngineError, SegmentError
from latentmas_core.events import AgentFinished, AgentThought, AnswerDelta
from latentmas_core.latent.memory import Memory
from tests.deployments.groups.lenses import assert_same_lens
from tests.deployments.groups.stage_calls import STEPS, make_request
from tests.deployments.local_groups import make_servers
from tests.engine.engines import assert_nothing_left
from tests.factories import make_tiny_model

HIDDEN_SIZE, BYTES_PER_NUMBER = 64, 4


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


async def test_pieces_of_the_answer_cross_only_for_one_who_reads_them(reasoner, transport):
    request = make_request()
    whole = await reasoner.reason(request)
    assert not any(isinstance(message, AnswerDelta) for message in transport.messages)
    events = [event async for event in reasoner.stream(request)]
    pieces = [event.text for event in events if isinstance(event, AnswerDelta)]
    assert len(pieces) > 1
    assert "".join(pieces) == events[-1].result.final_answer == whole.final_answer
    assert [type(m) for m in transport.messages].count(AnswerDelta) == len(pieces)


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
        await assert_nothing_left(e)


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
