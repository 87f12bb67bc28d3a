"""A request with tools is one request for metrics and log, however many rounds it takes."""

import pytest

from deployments import metrics
from deployments.args import AppArgs
from deployments.budget import TransferBudget
from deployments.logs import begin_request
from deployments.reasoner import Reasoner
from latentmas_core.context.request import AskRequest
from latentmas_core.errors import NotFoundError
from tests.context.scripted_ask import ScriptedAsk, call_of
from tests.deployments.test_metrics import MemoryRecorder

AGENTS = ["planner", "critic", "refiner", "judger"]
ARGS = AppArgs.model_validate({"groups": [{"name": "all", "agents": AGENTS}]})


class ScriptedRounds(Reasoner):
    """Each round says what is written down for it."""

    def __init__(self, recorder, *answers):
        super().__init__(ARGS, {}, TransferBudget(1), recorder)
        self._ask = ScriptedAsk(*answers)

    def _run(self, request, *, is_streamed):
        return self._ask(request)


@pytest.fixture
def recorder():
    return MemoryRecorder()


async def test_all_rounds_are_one_request_with_all_their_tokens(recorder):
    reasoner = ScriptedRounds(recorder, call_of("calculator", expression="6*7"), "It is 42.")
    notes = begin_request("r-1")
    result = await reasoner.reason(AskRequest(question="6 times 7?", enable_tools=["calculator"]))
    assert result.final_answer == "It is 42."
    labels = {"pipeline": "hierarchical", "mode": "latent", "status": "done"}
    assert recorder.of(metrics.REQUESTS) == [(1, labels)]
    assert len(recorder.of(metrics.FIRST_TOKEN_SECONDS)) == 1
    assert notes == result.usage.model_dump()
    assert notes["prompt_tokens"] == 2 + 20


async def test_document_that_cannot_be_had_is_counted_as_a_failed_request(recorder):
    reasoner = ScriptedRounds(recorder)
    request = AskRequest(question="Why?", documents=[{"url": "http://127.0.0.1/"}])
    with pytest.raises(Exception, match="loopback"):
        await reasoner.reason(request)
    ((_, labels),) = recorder.of(metrics.REQUESTS)
    assert labels["status"] == "DocumentError"


async def test_unknown_pipelines_are_not_counted(recorder):
    with pytest.raises(NotFoundError):
        await ScriptedRounds(recorder).reason(AskRequest(question="Why?", pipeline="diagonal"))
    assert recorder.values == []
