"""Requests to the groups, and calls of one stage."""

from deployments.messages import StageCall, StageFailed
from latentmas_core.pipelines.plan import plan
from latentmas_core.request import ReasonRequest

STEPS = 3
QUESTION = "What is 17 times 3?"


def make_request(**fields):
    defaults = {"question": QUESTION, "temperature": 0.0, "max_tokens": 12, "ignore_eos": True}
    return ReasonRequest.model_validate(defaults | fields)


def make_call(args, *, stage=0, pipeline="hierarchical", memory=None, **fields):
    stages = plan(args.offered_pipelines[pipeline], args.group_of).stages
    return StageCall(stages[stage], memory, (), make_request(**fields))


async def failure_of(server, call):
    """The stage fails with its last message, which is data; no exception passes."""
    messages = [message async for message in server.run_stage(call)]
    assert isinstance(messages[-1], StageFailed)
    return messages[-1].error
