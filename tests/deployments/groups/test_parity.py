"""A request over two groups is answered as one process answers it."""

import asyncio

import pytest

from tests.deployments.groups.lenses import assert_same_lens
from tests.deployments.groups.stage_calls import STEPS, make_request


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


async def test_many_requests_at_once_equal_each_alone(reasoner):
    requests = [
        make_request(question=f"What is {number} + 2?", pipeline=pipeline)
        for number in range(3)
        for pipeline in ("zigzag", "parallel")
    ]
    alone = [(await reasoner.reason(request)).final_answer for request in requests]
    together = await asyncio.gather(*(reasoner.reason(request) for request in requests))
    assert [result.final_answer for result in together] == alone


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
