"""What a stream tells of tools."""

from deployments.api.streaming import AS_EVENTS, MEDIA_TYPE, describe
from latentmas_core.events import ToolFinished, ToolStarted
from latentmas_core.result import ToolCallTrace

TRACE = ToolCallTrace(
    call_id="call01000",
    round=1,
    name="calculator",
    arguments={"expression": "6 * 7"},
    text="42",
    latency_ms=1.5,
)


def test_call_of_a_tool_is_two_events_of_one_id() -> None:
    started = ToolStarted(TRACE.call_id, TRACE.round, TRACE.name, TRACE.arguments)
    common = {
        "call_id": "call01000",
        "round": 1,
        "name": "calculator",
        "arguments": {"expression": "6 * 7"},
    }
    assert describe(started) == ("tool.started", common)
    told = common | {"text": "42", "is_error": False, "latency_ms": 1.5}
    assert describe(ToolFinished(TRACE)) == ("tool.finished", told)


def test_openapi_names_the_events_of_tools() -> None:
    of_runs, _ = AS_EVENTS["content"][MEDIA_TYPE]["schema"]["anyOf"]
    names = of_runs["properties"]["event"]["enum"]
    assert {"tool.started", "tool.finished"} <= set(names)
    assert len(names) == len(set(names))
