"""The loop around a model that calls tools: what it is asked, what is run, what a reader gets."""

import asyncio
import threading
from contextlib import aclosing

import pytest

from latentmas_core.chat import ChatMessage, ToolCall, ToolSpec
from latentmas_core.context.tools import Tool, ToolLimits, ToolLoop, ToolRegistry
from latentmas_core.context.tools.loop import LAST_NOTE
from latentmas_core.errors import ConfigError, DeadlineError, NotFoundError, ToolError
from latentmas_core.events import AgentStarted, AnswerDelta, ToolFinished, ToolStarted
from latentmas_core.request import ReasonRequest
from latentmas_core.result import Usage
from tests.context.scripted_ask import ScriptedAsk, call_of, events_of, said_in, ticks


def double(number: int) -> int:
    """Doubles a number."""
    return 2 * number


def complain(reason: str) -> None:
    """Cannot do it."""
    raise ToolError(f"it cannot: {reason}.")


DOUBLE = Tool.from_function(double)
COMPLAIN = Tool.from_function(complain)
THEIRS = ToolSpec(name="weather", description="Tells the weather.")


async def test_result_of_a_tool_is_shown_to_the_model_that_called_it() -> None:
    ask = ScriptedAsk(f"Let me see.\n{call_of('double', number=21)}", "It is 42.")
    events = await events_of(ask, [DOUBLE])
    first, second = ask.requests
    assert first.tools == second.tools == (DOUBLE.spec,)
    assert first.tool_messages == ()
    call = ToolCall(name="double", arguments={"number": 21}, call_id="call01000")
    assert second.tool_messages == (
        ChatMessage(role="assistant", content="Let me see.", tool_calls=(call,)),
        ChatMessage(role="tool", content="42", tool_call_id="call01000"),
    )
    assert said_in(events) == events[-1].result.final_answer == "Let me see.\n\nIt is 42."


async def test_request_is_a_valid_one_in_every_round() -> None:
    ask = ScriptedAsk(call_of("double", number=1), call_of("double", number=2), "Done.")
    before = (
        ChatMessage(role="assistant", tool_calls=(ToolCall(name="weather", call_id="c1"),)),
        ChatMessage(role="tool", content="It rains.", tool_call_id="c1"),
    )
    request = ReasonRequest(question="Why?", tools=(THEIRS,), tool_messages=before, seed=7)
    await events_of(ask, [DOUBLE], request)
    for asked in ask.requests:
        assert ReasonRequest.model_validate(asked.model_dump()) == asked
        assert asked.tool_messages[:2] == before
        assert asked.tools == (THEIRS, DOUBLE.spec)
        assert (asked.question, asked.seed) == ("Why?", 7)


async def test_trace_shows_every_call_in_its_order() -> None:
    ask = ScriptedAsk(
        call_of("double", number=1) + call_of("complain", reason="no"),
        call_of("double", number="two"),
        "Done.",
    )
    events = await events_of(ask, [DOUBLE, COMPLAIN])
    shown = [
        (one.round, one.call_id, one.name, one.arguments, one.is_error)
        for one in events[-1].result.tool_calls
    ]
    assert shown == [
        (1, "call01000", "double", {"number": 1}, False),
        (1, "call01001", "complain", {"reason": "no"}, True),
        (2, "call02000", "double", {"number": "two"}, True),
    ]
    texts = [one.text for one in events[-1].result.tool_calls]
    assert texts[:2] == ["2", "it cannot: no."]
    assert "number: Input should be a valid integer" in texts[2]
    finished = [event.trace for event in events if isinstance(event, ToolFinished)]
    assert sorted(finished, key=lambda trace: trace.call_id) == [*events[-1].result.tool_calls]


async def test_tools_start_and_finish_between_the_rounds() -> None:
    ask = ScriptedAsk(call_of("double", number=1), "Done.")
    events = await events_of(ask, [DOUBLE])
    kinds = [type(event) for event in events if not isinstance(event, AnswerDelta)]
    assert kinds[:-1] == [AgentStarted, ToolStarted, ToolFinished, AgentStarted]
    (started,) = [event for event in events if isinstance(event, ToolStarted)]
    assert started == ToolStarted("call01000", 1, "double", {"number": 1})


async def test_result_is_the_sum_of_all_rounds() -> None:
    ask = ScriptedAsk(call_of("double", number=1), call_of("double", number=2), "Done.")
    events = await events_of(ask, [DOUBLE], clock=ticks(1.0))
    result = events[-1].result
    assert result.usage == Usage(prompt_tokens=222, completion_tokens=333, latent_steps=111)
    assert result.usage == Usage.of(result.agents)
    assert (result.transfer.stages, result.transfer.hops, result.transfer.num_bytes) == (111,) * 3
    assert [agent.role for agent in result.agents] == ["round 1", "round 2", "round 3"]
    assert (result.id, result.finish_reason, result.failed_agents) == (
        "reason-3",
        "stop",
        ("critic",),
    )
    starts = [stage.started_ms for stage in result.stages]
    assert starts[0] == 1.0
    assert starts == sorted(set(starts))
    assert all(stage.finished_ms == stage.started_ms + 1.0 for stage in result.stages)
    assert result.latency_ms > starts[-1]
    assert all(one.latency_ms == 1000.0 for one in result.tool_calls)


async def test_calls_of_an_answer_run_at_the_same_time() -> None:
    both_run = asyncio.Barrier(2)

    async def meet(who: str) -> str:
        """Waits for the other."""
        await both_run.wait()
        return who

    ask = ScriptedAsk(call_of("meet", who="a") + call_of("meet", who="b"), "Done.")
    events = await events_of(ask, [Tool.from_function(meet)])
    assert [one.text for one in events[-1].result.tool_calls] == ["a", "b"]


async def test_nothing_of_a_call_is_ever_shown() -> None:
    ask = ScriptedAsk(f"One <b>\n\n{call_of('double', number=1)} two", "and <three>.")
    events = await events_of(ask, [DOUBLE])
    assert said_in(events) == events[-1].result.final_answer == "One <b> two\n\nand <three>."
    assert not any("call" in event.text for event in events if isinstance(event, AnswerDelta))


async def test_answer_without_a_call_comes_as_the_model_gave_it() -> None:
    text = "  a < b, <tool_cal and </tool_call> \n"
    ask = ScriptedAsk(text)
    events = await events_of(ask, [DOUBLE])
    assert said_in(events) == events[-1].result.final_answer == text
    assert events[-1].result.tool_calls == ()


async def test_tokens_come_with_the_text_that_they_spell() -> None:
    ask = ScriptedAsk(f"Well.\n{call_of('double', number=1)}", "Two. ", has_logprobs=True)
    events = await events_of(ask, [DOUBLE])
    tokens = [token.token for event in events[:-1] if isinstance(event, AnswerDelta)
              for token in event.logprobs]  # fmt: skip
    assert "".join(tokens) == "Well.\n<tTwo. "
    assert said_in(events) == "Well.\n\nTwo. "


async def test_model_that_never_stops_calling_is_asked_once_more_without_tools() -> None:
    ask = ScriptedAsk(*[call_of("double", number=1)] * 3, "I give up.")
    limits = ToolLimits(max_rounds=3)
    events = await events_of(ask, [DOUBLE], limits=limits)
    assert [len(asked.tools) for asked in ask.requests] == [1, 1, 1, 0]
    last = [message.content for message in ask.requests[-1].tool_messages]
    assert last == ["", "2", "", "2", "", f"2\n\n{LAST_NOTE}"]
    assert [one.text for one in events[-1].result.tool_calls] == ["2", "2", "2"]
    assert events[-1].result.final_answer == "I give up."


async def test_calls_after_the_last_round_are_refused_and_not_shown() -> None:
    ask = ScriptedAsk(call_of("double", number=1), f"Once more: {call_of('double', number=2)}")
    events = await events_of(ask, [DOUBLE], limits=ToolLimits(max_rounds=1))
    assert said_in(events) == events[-1].result.final_answer == "Once more:"
    last = events[-1].result.tool_calls[-1]
    assert (last.round, last.is_error, last.text) == (
        2,
        True,
        "not run: no round of calls was left.",
    )
    assert sum(isinstance(event, ToolStarted) for event in events) == 1


async def test_calls_beyond_the_limit_of_an_answer_are_refused_to_the_model() -> None:
    ask = ScriptedAsk("".join(call_of("double", number=number) for number in range(4)), "Done.")
    events = await events_of(ask, [DOUBLE], limits=ToolLimits(max_calls=2))
    traces = events[-1].result.tool_calls
    assert [one.is_error for one in traces] == [False, False, True, True]
    told = [message.content for message in ask.requests[1].tool_messages[1:]]
    assert told == [one.text for one in traces]
    assert "may call 2 tools" in told[-1]


async def test_call_of_a_tool_of_the_caller_goes_to_the_caller() -> None:
    text = f"Let me look.\n{call_of('weather', city='Paris')}"
    ask = ScriptedAsk(text)
    request = ReasonRequest(question="Does it rain?", tools=(THEIRS,))
    events = await events_of(ask, [DOUBLE], request)
    assert said_in(events) == events[-1].result.final_answer == text
    assert events[-1].result.tool_calls == ()
    assert len(ask.requests) == 1


async def test_call_of_the_caller_may_follow_one_of_ours() -> None:
    theirs = call_of("weather", city="Paris")
    ask = ScriptedAsk(call_of("double", number=1), theirs)
    request = ReasonRequest(question="Does it rain?", tools=(THEIRS,))
    events = await events_of(ask, [DOUBLE], request)
    assert said_in(events) == events[-1].result.final_answer == theirs
    assert [one.text for one in events[-1].result.tool_calls] == ["2"]


async def test_of_mixed_calls_only_those_of_the_caller_are_left() -> None:
    theirs = call_of("weather", city="Paris")
    ask = ScriptedAsk(f"Both.\n{call_of('double', number=1)}\n{theirs}")
    request = ReasonRequest(question="Does it rain?", tools=(THEIRS,))
    events = await events_of(ask, [DOUBLE], request)
    assert said_in(events) == events[-1].result.final_answer == f"Both.\n{theirs}"
    (refused,) = events[-1].result.tool_calls
    assert (refused.name, refused.is_error) == ("double", True)
    assert not any(isinstance(event, ToolStarted) for event in events)


async def test_with_nothing_enabled_the_events_are_those_of_asking() -> None:
    text = f"Let me look. {call_of('double', number=1)}"
    request = ReasonRequest(question="Why?", tools=(THEIRS,))
    events = await events_of(ScriptedAsk(text), [], request)
    assert events == [event async for event in ScriptedAsk(text)(request)]


async def test_tool_that_is_not_enabled_is_not_run() -> None:
    text = call_of("double", number=1)
    loop = ToolLoop(ToolRegistry([DOUBLE, COMPLAIN]))
    request = ReasonRequest(question="Why?")
    events = [event async for event in loop.run(ScriptedAsk(text), request, ["complain"])]
    assert events[-1].result.final_answer == text
    assert events[-1].result.tool_calls == ()


def test_unknown_tool_is_refused_by_name_before_anything_is_asked() -> None:
    loop = ToolLoop(ToolRegistry([DOUBLE]))
    with pytest.raises(NotFoundError, match=r"'halve' does not exist here\. Known: double"):
        loop.run(ScriptedAsk(), ReasonRequest(question="Why?"), ["halve"])


def test_name_that_both_sides_use_is_refused_before_anything_is_asked() -> None:
    loop = ToolLoop(ToolRegistry([DOUBLE]))
    request = ReasonRequest(question="Why?", tools=(ToolSpec(name="double"),))
    with pytest.raises(ConfigError, match="also a tool of the service"):
        loop.run(ScriptedAsk(), request, ["double"])


async def test_time_for_all_rounds_is_that_of_the_request() -> None:
    ask = ScriptedAsk(call_of("double", number=1), "Done.")
    request = ReasonRequest(question="Why?", timeout_s=100.0)
    await events_of(ask, [DOUBLE], request, clock=ticks(1.0))
    first, second = (asked.timeout_s for asked in ask.requests)
    assert 90.0 < second < first < 100.0


async def test_time_that_is_over_between_rounds_ends_the_run() -> None:
    ask = ScriptedAsk(call_of("double", number=1), "Done.")
    request = ReasonRequest(question="Why?", timeout_s=5.0)
    with pytest.raises(DeadlineError, match="timeout_s is 5; that was over after 1 rounds"):
        await events_of(ask, [DOUBLE], request, clock=ticks(4.0))


async def test_error_of_asking_reaches_the_caller_as_it_was() -> None:
    async def ask(request: ReasonRequest):
        yield AgentStarted("judger", "judger")
        raise NotFoundError("agent 'judger' is gone.")

    with pytest.raises(NotFoundError, match="is gone"):
        await events_of(ask, [DOUBLE])


async def test_closing_ends_the_tools_that_run() -> None:
    ended: list[str] = []

    async def wait_forever(who: str) -> None:
        """Never ends."""
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(who)

    async def at_once() -> str:
        """Ends at once."""
        return "now"

    tools = [Tool.from_function(wait_forever), Tool.from_function(at_once)]
    ask = ScriptedAsk(
        call_of("wait_forever", who="a") + call_of("wait_forever", who="b") + call_of("at_once")
    )
    loop = ToolLoop(ToolRegistry(tools))
    request = ReasonRequest(question="Why?")
    async with aclosing(loop.run(ask, request, ["wait_forever", "at_once"])) as events:
        async for event in events:
            if isinstance(event, ToolFinished):
                break
    assert sorted(ended) == ["a", "b"]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_cancelling_ends_the_tools_that_run() -> None:
    has_begun, has_ended = asyncio.Event(), asyncio.Event()

    async def wait_forever() -> None:
        """Never ends."""
        has_begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            has_ended.set()

    ask = ScriptedAsk(call_of("wait_forever"))
    running = asyncio.create_task(events_of(ask, [Tool.from_function(wait_forever)]))
    await has_begun.wait()
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    assert has_ended.is_set()


async def test_closing_while_the_model_speaks_closes_the_asking() -> None:
    ask = ScriptedAsk("A long answer without an end.")
    loop = ToolLoop(ToolRegistry([DOUBLE]))
    async with aclosing(loop.run(ask, ReasonRequest(question="Why?"), ["double"])) as events:
        async for event in events:
            if isinstance(event, AnswerDelta):
                break
        assert ask.num_open == 1
    assert ask.num_open == 0


async def test_closing_leaves_a_blocking_tool_behind_at_once() -> None:
    may_end = threading.Event()
    has_begun = asyncio.Event()
    asyncs = asyncio.get_running_loop()

    def block() -> None:
        """Blocks its thread."""
        asyncs.call_soon_threadsafe(has_begun.set)
        may_end.wait()

    running = asyncio.create_task(
        events_of(ScriptedAsk(call_of("block")), [Tool.from_function(block)])
    )
    await has_begun.wait()
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    may_end.set()
