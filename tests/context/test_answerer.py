"""Questions with documents and tools, over a reasoner that answers from a script."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from pydantic import ValidationError

from latentmas_core.context.answerer import Answerer
from latentmas_core.context.config import ContextConfig, DocumentsConfig
from latentmas_core.context.reading import Reading
from latentmas_core.context.request import AskRequest
from latentmas_core.context.tools import shipped_tools
from latentmas_core.errors import ConfigError, DeadlineError, NotFoundError
from latentmas_core.events import AnswerDone, Event, ToolFinished
from latentmas_core.request import ReasonRequest
from latentmas_core.result import Result
from tests.context.scripted_ask import ScriptedAsk, call_of

PEARS = {"name": "pears.txt", "text": "Pears are picked in September, before they are ripe."}
BOILERS = {"name": "boilers.txt", "text": "The boiler is serviced by Mrs Okafor every spring."}
QUESTION = "When are pears picked?"


def spans_of_words(text: str) -> list[tuple[int, int]]:
    spans, start = [], 0
    for word in text.split(" "):
        spans.append((start, start + len(word)))
        start += len(word) + 1
    return spans


class Reasoner:
    """What ``ask`` answers, of a pipeline of ``num`` agents that hold ``max_positions`` words."""

    def __init__(self, *answers: str, num: int = 4, max_positions: int = 8000) -> None:
        self.ask = ScriptedAsk(*answers)
        self._num = num
        self._reading = Reading(spans_of_words, max_positions)

    def stream(self, request: ReasonRequest) -> AsyncGenerator[Event, None]:
        return self.ask(request)

    def num_agents(self, request: ReasonRequest) -> int:
        if request.pipeline == "unknown":
            raise NotFoundError("pipeline 'unknown' does not exist.", param="pipeline")
        return self._num

    async def reading(self) -> Reading:
        return self._reading


class MuteReasoner(Reasoner):
    """Never says how its model reads."""

    async def reading(self) -> Reading:
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")


def answerer() -> Answerer:
    words_alone = DocumentsConfig(finds_by_meaning=False)
    return Answerer(ContextConfig(documents=words_alone), shipped_tools())


async def run(reasoner: Reasoner, **fields: object) -> tuple[Result, list[Event]]:
    request = AskRequest(question=QUESTION, **fields)
    events = [event async for event in answerer().run(reasoner, request)]
    assert isinstance(events[-1], AnswerDone)
    return events[-1].result, events


async def test_question_without_context_is_asked_as_it_is() -> None:
    reasoner = Reasoner("In autumn.")
    result, _ = await run(reasoner)
    assert type(reasoner.ask.requests[0]) is ReasonRequest
    assert reasoner.ask.requests[0] == ReasonRequest(question=QUESTION)
    assert result.citations == ()


async def test_best_passage_is_shown_first_and_cited() -> None:
    reasoner = Reasoner("In September [1].")
    result, _ = await run(reasoner, documents=[BOILERS, PEARS])
    asked = reasoner.ask.requests[0]
    assert asked.question == QUESTION
    assert asked.preamble is not None
    assert "[1] pears.txt, line 1\n> Pears are picked in September" in asked.preamble
    assert asked.shown_question.endswith(f"Question: {QUESTION}")
    assert result.citations[0].document == "pears.txt"
    assert result.citations[0].text == PEARS["text"]


async def test_documents_without_a_fitting_word_are_shown_from_their_beginning() -> None:
    reasoner = Reasoner("No.")
    result, _ = await run(reasoner, documents=["Zebras graze."])
    assert [citation.document for citation in result.citations] == ["document 1"]


async def test_documents_of_one_name_are_cited_apart() -> None:
    reasoner = Reasoner("Both.")
    twin = PEARS | {"text": "Pears are picked again in October."}
    result, _ = await run(reasoner, documents=[PEARS, twin])
    assert {citation.text for citation in result.citations} == {PEARS["text"], twin["text"]}


@pytest.mark.parametrize(("num", "is_shown"), [(1, True), (16, False)])
async def test_more_agents_leave_less_room_for_passages_and_all_for_the_question(
    num: int, is_shown: bool
) -> None:
    reasoner = Reasoner("?", num=num, max_positions=200)
    result, _ = await run(reasoner, documents=[PEARS])
    assert bool(result.citations) is is_shown
    assert reasoner.ask.requests[0].shown_question.endswith(QUESTION)
    assert (reasoner.ask.requests[0].preamble is None) is not is_shown


async def test_own_preamble_stays_between_passages_and_question() -> None:
    reasoner = Reasoner("?")
    await run(reasoner, documents=[PEARS], preamble="Be brief. ")
    assert reasoner.ask.requests[0].shown_question.endswith(f"Question: Be brief. {QUESTION}")


async def test_tools_are_run_and_the_result_says_so() -> None:
    reasoner = Reasoner(call_of("calculator", expression="6*7"), "42.")
    result, events = await run(reasoner, enable_tools=True)
    assert result.final_answer == "42."
    assert [(call.name, call.text) for call in result.tool_calls] == [("calculator", "42")]
    assert any(isinstance(event, ToolFinished) for event in events)
    offered = {spec.name for spec in reasoner.ask.requests[0].tools}
    assert offered == set(shipped_tools().names)


async def test_only_named_tools_are_offered() -> None:
    reasoner = Reasoner("?")
    await run(reasoner, enable_tools=["today"])
    assert [spec.name for spec in reasoner.ask.requests[0].tools] == ["today"]


async def test_passages_that_the_model_searches_for_are_cited_too() -> None:
    reasoner = Reasoner(call_of("search_documents", query="boiler service"), "Mrs Okafor.")
    fields = {"documents": [PEARS, BOILERS], "enable_tools": ["search_documents"]}
    result, _ = await run(reasoner, **fields)
    assert [citation.document for citation in result.citations] == ["pears.txt", "boilers.txt"]
    assert "Mrs Okafor" in result.tool_calls[0].text


async def test_documents_are_searched_by_tools_only_where_tools_are_enabled() -> None:
    reasoner = Reasoner("?")
    await run(reasoner, documents=[PEARS])
    assert reasoner.ask.requests[0].tools == ()


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"enable_tools": ["hammer"]}, NotFoundError, "'hammer'"),
        ({"enable_tools": ["search_documents"]}, ConfigError, "no documents to search"),
        ({"enable_tools": True, "pipeline": "unknown"}, NotFoundError, "'unknown'"),
    ],
)
async def test_what_cannot_be_meant_raises_before_anything_runs(
    fields: dict[str, object], error: type[Exception], words: str
) -> None:
    reasoner = Reasoner()
    with pytest.raises(error, match=words):
        answerer().run(reasoner, AskRequest(question=QUESTION, **fields))
    assert reasoner.ask.requests == []


async def test_private_address_is_not_fetched() -> None:
    reasoner = Reasoner()
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1"):
        await run(reasoner, documents=[{"url": "http://127.0.0.1/secret"}])
    assert reasoner.ask.requests == []


async def test_preparing_a_question_counts_for_its_time() -> None:
    reasoner = MuteReasoner()
    with pytest.raises(DeadlineError, match=r"timeout_s is 0\.01"):
        await run(reasoner, documents=[PEARS], timeout_s=0.01)
    assert reasoner.ask.requests == []


async def test_agents_get_the_time_that_preparing_left() -> None:
    reasoner = Reasoner("?")
    await run(reasoner, documents=[PEARS], timeout_s=60.0)
    timeout_s = reasoner.ask.requests[0].timeout_s
    assert timeout_s is not None
    assert 0.0 < timeout_s < 60.0


@pytest.mark.parametrize(
    "fields",
    [
        {"documents": "a text"},
        {"documents": [7]},
        {"documents": [{"name": "x"}]},
        {"documents": [{"text": "x", "url": "http://example.com"}]},
        {"documents": [" "]},
        {"documents": ["x"] * 101},
        {"enable_tools": 1},
        {"enable_tools": "calculator"},
        {"enable_tools": [""]},
    ],
)
def test_wrong_context_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        AskRequest(question=QUESTION, **fields)
