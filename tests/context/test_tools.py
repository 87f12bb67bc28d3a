"""Tools: how functions become tools, which are refused, and what becomes of their calls."""

import asyncio
import contextvars
import logging
import sys
import threading
from datetime import date
from enum import StrEnum
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from latentmas_core.chat import ToolSpec
from latentmas_core.config import FrozenModel
from latentmas_core.context.tools import Tool, ToolRegistry
from latentmas_core.context.tools.running import run_tool
from latentmas_core.errors import ConfigError, NotFoundError, ToolError

SHORT_S = 0.01


class City(FrozenModel):
    """Not for the model."""

    city: str
    days: Annotated[int, Field(ge=1)] = 1


def forecast(city: City) -> str:
    return f"{city.city} for {city.days}"


FORECAST = Tool("forecast", "Tells the weather.", City, forecast)


async def called(tool: Tool, timeout_s: float = 5.0, max_chars: int = 1000, **arguments):
    return await run_tool(tool, arguments, timeout_s=timeout_s, max_chars=max_chars)


async def said(value: object, max_chars: int = 1000) -> str:
    def give() -> object:
        return value

    result = await called(Tool.from_function(give, description="Gives."), max_chars=max_chars)
    assert not result.is_error
    return result.text


def test_model_is_shown_name_description_and_parameters() -> None:
    assert FORECAST.spec == ToolSpec(
        name="forecast",
        description="Tells the weather.",
        parameters={
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer", "minimum": 1, "default": 1},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
    )


def test_function_becomes_a_tool_by_its_name_docstring_and_annotations() -> None:
    def search(
        json: Annotated[str, Field(description="what to find")],
        _limit: int = 3,
        model_kind: Literal["a", "b"] = "a",
    ) -> str:
        """Finds things."""
        return f"{json} {_limit} {model_kind}"

    tool = Tool.from_function(search)
    assert (tool.name, tool.spec.description) == ("search", "Finds things.")
    assert tool.spec.parameters == {
        "type": "object",
        "properties": {
            "json": {"type": "string", "description": "what to find"},
            "_limit": {"type": "integer", "default": 3},
            "model_kind": {"type": "string", "enum": ["a", "b"], "default": "a"},
        },
        "required": ["json"],
        "additionalProperties": False,
    }
    assert repr(tool) == "Tool('search', timeout_s=10)"


async def test_arguments_reach_the_function_by_name() -> None:
    def join(left: str, *, right: str = "none") -> str:
        """Joins."""
        return f"{left}+{right}"

    tool = Tool.from_function(join)
    assert (await called(tool, left="a")).text == "a+none"
    assert (await called(tool, left="a", right="b")).text == "a+b"


async def test_types_of_json_are_read_strictly_and_dates_from_text() -> None:
    class Colour(StrEnum):
        RED = "red"

    def take(day: date, colour: Colour, sizes: tuple[int, ...]) -> str:
        """Takes."""
        return f"{day:%d.%m.%Y} {colour.name} {sizes}"

    tool = Tool.from_function(take)
    good = {"day": "2026-11-27", "colour": "red", "sizes": [1, 2]}
    assert (await called(tool, **good)).text == "27.11.2026 RED (1, 2)"
    for wrong in ({"day": 5}, {"colour": "blue"}, {"sizes": ["1"]}, {"sizes": 1}, {"day": "soon"}):
        result = await called(tool, **good | wrong)
        assert result.is_error
        assert f"{next(iter(wrong))}" in result.text


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({}, "city: Field required"),
        ({"city": 5}, "city: Input should be a valid string"),
        ({"city": "Paris", "days": "1"}, "days: Input should be a valid integer"),
        ({"city": "Paris", "days": 0}, "days: Input should be greater than or equal to 1"),
        ({"city": "Paris", "country": "France"}, "country: Extra inputs are not permitted"),
        ({"City": "Paris"}, "City: Extra inputs are not permitted"),
    ],
)
async def test_arguments_that_do_not_fit_are_a_result_that_says_so(
    arguments: dict[str, object], problem: str
) -> None:
    result = await called(FORECAST, **arguments)
    assert result.is_error
    assert problem in result.text
    assert result.text.endswith("It takes: city, days.")


@pytest.mark.parametrize("name", ["", "two words", "a.b", "é", "a" * 65, "<tool_call>", 'a"'])
def test_name_that_no_model_can_call_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="name got"):
        Tool(name, "Does it.", City, forecast)


@pytest.mark.parametrize("timeout_s", [0, -1.0, float("inf"), float("nan")])
def test_time_that_is_no_limit_is_refused(timeout_s: float) -> None:
    with pytest.raises(ConfigError, match="timeout_s of tool 'forecast'"):
        Tool("forecast", "Tells.", City, forecast, timeout_s=timeout_s)


def test_parameters_that_would_take_unknown_arguments_are_refused() -> None:
    class Open(BaseModel):
        city: str

    for parameters in (Open, dict, City(city="Paris")):
        with pytest.raises(ConfigError, match="subclass of"):
            Tool("forecast", "Tells.", parameters, forecast)


def positional(city: str, /) -> None: ...
def starred(*cities: str) -> None: ...
def doubly_starred(**cities: str) -> None: ...
def untyped(city) -> None: ...


@pytest.mark.parametrize("function", [positional, starred, doubly_starred, untyped])
def test_parameter_that_a_model_cannot_give_is_refused(function) -> None:
    with pytest.raises(ConfigError, match=r"parameter '(city|cities)' of tool"):
        Tool.from_function(function, description="Does it.")


def test_function_without_a_description_or_with_strange_types_is_refused() -> None:
    with pytest.raises(ConfigError, match="'positional' has no description"):
        Tool.from_function(positional)

    def lost(city: "Nowhere") -> None:  # noqa: F821
        """Is lost."""

    def odd(lock: threading.Thread) -> None:
        """Is odd."""

    with pytest.raises(ConfigError, match="types of tool 'lost' cannot be read"):
        Tool.from_function(lost)
    with pytest.raises(ConfigError, match="parameters of tool 'odd' cannot be written"):
        Tool.from_function(odd)


def test_registry_knows_its_tools_by_name() -> None:
    other = Tool("other", "Does something else.", City, forecast)
    registry = ToolRegistry([FORECAST]).add(other)
    assert registry.names == ("forecast", "other")
    assert registry.get("other") is other
    assert registry.specs() == (FORECAST.spec, other.spec)
    assert registry.specs(["other"]) == (other.spec,)
    assert ToolRegistry([*registry]).names == registry.names


def test_registry_refuses_a_name_twice_and_names_what_it_has() -> None:
    registry = ToolRegistry([FORECAST])
    with pytest.raises(ConfigError, match="'forecast' exists already"):
        registry.add(Tool("forecast", "Again.", City, forecast))
    with pytest.raises(NotFoundError, match=r"'rain' does not exist here\. Known: forecast"):
        registry.get("rain")
    with pytest.raises(NotFoundError, match="Known: none"):
        ToolRegistry().specs(["rain"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is\n", "as it is\n"),
        ("", ""),
        (None, "null"),
        (42, "42"),
        ({"a": [1, 2.5, True, None]}, '{"a": [1, 2.5, true, null]}'),
        (("é", "b"), '["é", "b"]'),
        (City(city="Paris"), '{"city": "Paris", "days": 1}'),
        ([date(2026, 11, 27)], '["2026-11-27"]'),
        ("half \ud800 pair", "half ? pair"),
    ],
    ids=repr,
)
async def test_model_reads_texts_as_they_are_and_all_else_as_json(value, text: str) -> None:
    assert await said(value) == text


@pytest.mark.parametrize("value", ["x" * 10**7, ["x"] * 10**6, {"a": "x" * 10**7}], ids=type)
async def test_result_that_is_huge_is_cut_and_says_so(value) -> None:
    text = await said(value, max_chars=100)
    assert text.endswith("\n[only the first 100 characters]")
    assert len(text) == 100 + len("\n[only the first 100 characters]")


async def test_result_without_an_end_is_read_no_further_than_it_is_shown() -> None:
    class Endless(list):
        def __len__(self) -> int:
            return sys.maxsize

        def __iter__(self):
            while True:
                yield "x"

    assert (await said(Endless([1]), max_chars=20)).startswith('["x", "x", "x", "x",')


def raising(error: BaseException) -> Tool:
    def fail() -> None:
        raise error

    return Tool.from_function(fail, description="Fails.")


def raising_async(error: BaseException) -> Tool:
    async def fail() -> None:
        raise error

    return Tool.from_function(fail, description="Fails.")


@pytest.mark.parametrize("make", [raising, raising_async])
async def test_tool_tells_the_model_what_it_cannot_do(make) -> None:
    assert await called(make(ToolError("there is no such city."))) == (
        "there is no such city.",
        True,
    )


@pytest.mark.parametrize("make", [raising, raising_async])
@pytest.mark.parametrize(
    "error",
    [KeyError("secret"), StopIteration("secret"), RecursionError("secret"), SystemExit("secret"),
     MemoryError("secret"), TimeoutError("secret"), asyncio.CancelledError("secret")],
    ids=repr,
)  # fmt: skip
async def test_tool_that_raises_is_a_result_without_what_the_error_says(make, error) -> None:
    text, is_error = await called(make(error))
    assert is_error
    assert text.startswith("fail ")
    assert "secret" not in text


async def test_error_of_a_tool_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        await called(raising(KeyError("what happened")))
    (record,) = caplog.records
    assert record.message == "tool fail failed"
    assert "what happened" in record.exc_text


@pytest.mark.parametrize("value", [{1j: 2}, 10**5000], ids=["key", "integer"])
async def test_result_that_cannot_be_written_down_is_an_error(value) -> None:
    def give() -> object:
        """Gives."""
        return value

    result = await called(Tool.from_function(give))
    assert (result.is_error, result.text.startswith("give failed with ")) == (True, True)


async def test_async_tool_that_hangs_is_ended() -> None:
    has_ended = asyncio.Event()

    async def hang() -> None:
        """Hangs."""
        try:
            await asyncio.Event().wait()
        finally:
            has_ended.set()

    result = await called(Tool.from_function(hang), timeout_s=SHORT_S)
    assert result == ("hang did not end within 0.01 s.", True)
    assert has_ended.is_set()


async def test_async_tool_that_will_not_be_cancelled_is_left_to_itself(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("latentmas_core.context.tools.running.GRACE_S", SHORT_S)
    may_end = asyncio.Event()

    async def cling() -> None:
        """Does not let go."""
        while not may_end.is_set():
            try:
                await may_end.wait()
            except asyncio.CancelledError:
                continue

    result = await called(Tool.from_function(cling), timeout_s=SHORT_S)
    assert result == ("cling did not end within 0.01 s.", True)
    assert "cling goes on though it was cancelled" in caplog.text
    (left,) = asyncio.all_tasks() - {asyncio.current_task()}
    may_end.set()
    await left


async def test_blocking_tool_that_hangs_is_left_behind_and_blocks_nobody() -> None:
    may_end = threading.Event()

    def hang() -> None:
        """Hangs."""
        may_end.wait()

    tool = Tool.from_function(hang, max_running=2)
    hung = [await called(tool, timeout_s=SHORT_S) for _ in range(2)]
    assert {result.text for result in hung} == {"hang did not end within 0.01 s."}
    refused = await called(tool)
    assert refused == ("hang is busy with 2 calls, which is its limit. Answer without it.", True)
    threads = [thread for thread in threading.enumerate() if thread.name == "tool-hang"]
    assert len(threads) == 2
    assert all(thread.daemon for thread in threads)
    may_end.set()
    for thread in threads:
        thread.join()
    assert await called(tool) == ("null", False)


async def test_blocking_tool_runs_in_a_thread_and_sees_the_variables_of_its_caller() -> None:
    tenant = contextvars.ContextVar("tenant", default="nobody")

    def whose() -> list[object]:
        """Tells for whom it runs."""
        return [tenant.get(), threading.current_thread() is threading.main_thread()]

    tenant.set("acme")
    assert (await called(Tool.from_function(whose))).text == '["acme", false]'


async def test_function_that_returns_something_to_await_is_awaited() -> None:
    async def answer(city: City) -> str:
        return city.city

    class Caller:
        async def __call__(self, city: City) -> str:
            return city.city

    for function in (lambda city: answer(city), Caller()):
        tool = Tool("forecast", "Tells.", City, function)
        assert (await called(tool, city="Paris")).text == "Paris"
