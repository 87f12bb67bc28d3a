"""The shipped tools: units, dates and search, as a model calls them."""

from datetime import UTC, datetime
from typing import NamedTuple

import pytest

from latentmas_core.context.tools import document_search_tool, shipped_tools
from latentmas_core.context.tools.running import ToolResult, run_tool

NOW = datetime(2026, 11, 27, 23, 30, tzinfo=UTC)


@pytest.fixture(scope="module")
def registry():
    return shipped_tools(clock=lambda: NOW)


@pytest.fixture
def call(registry):
    async def called(name: str, **arguments: object) -> ToolResult:
        return await run_tool(registry.get(name), arguments, timeout_s=30.0, max_chars=1000)

    return called


def test_registry_is_new_each_time_and_named(registry) -> None:
    assert registry.names == (
        "calculator",
        "convert_units",
        "today",
        "add_days",
        "days_between",
        "weekday",
    )
    assert shipped_tools() is not shipped_tools()


async def test_calculator_answers_and_refuses_as_a_result(call) -> None:
    assert await call("calculator", expression="2 ** 10") == ("1024", False)
    text, is_error = await call("calculator", expression="__import__('os')")
    assert is_error
    assert text.startswith("character 12 is")
    assert (await call("calculator", expression="9**9**9")).is_error
    assert (await call("calculator", code="1")).is_error


@pytest.mark.parametrize(
    ("value", "from_unit", "to_unit", "text"),
    [
        (25, "degC", "degF", "25 degC = 77 degF"),
        (0, "°C", "kelvin", "0 °C = 273.15 kelvin"),
        (-40, "°F", "celsius", "-40 °F = -40 celsius"),
        (100, "km/h", "m/s", "100 km/h = 27.7777777778 m/s"),
        (3, "km per hour", "m/min", "3 km per hour = 50 m/min"),
        (1, "kWh", "J", "1 kWh = 3600000 J"),
        (1, "kg*m^2/s^2", "joule", "1 kg*m^2/s^2 = 1 joule"),
        (2, "m**2", "cm ^ 2", "2 m**2 = 20000 cm ^ 2"),
        (1, "m * s^-1", "m/s", "1 m * s^-1 = 1 m/s"),
        (5, "µm", "mm", "5 µm = 0.005 mm"),
        (20, "%", "dimensionless", "20 % = 0.2 dimensionless"),
        (1, "gallon", "liter", "1 gallon = 3.785411784 liter"),
    ],
)
async def test_units_are_converted(call, value, from_unit, to_unit, text) -> None:
    result = await call("convert_units", value=value, from_unit=from_unit, to_unit=to_unit)
    assert result == (text, False)


@pytest.mark.parametrize(
    ("value", "from_unit", "to_unit", "problem"),
    [
        (1, "m", "s", "'m', which is meter, cannot become"),
        (1, "C", "F", "Temperatures are degC, degF and kelvin"),
        (1, "USD", "EUR", "'USD' is not defined"),
        (1, "degC*m", "degF*m", "cannot become"),
        (1, "m**9**9**9", "m", "cannot be read"),
        (1, "m^99", "m", "cannot be read"),
        (1, "*".join(["m"] * 9), "m", "cannot be read"),
        (1, "m" * 81, "m", "at most 80 characters"),
        (1, "/m", "m", "cannot be read"),
        (1, "m m", "m", "cannot be read"),
        (1, "2*m", "m", "cannot be read"),
        (1, "", "m", "at least 1 character"),
        (1, " ", "m", "cannot be read"),
        (1, "(m)", "m", "cannot be read"),
        (1, "__import__('os')", "m", "cannot be read"),
        (1, "__class__", "m", "not defined"),
        (1, "m.__class__", "m", "cannot be read"),
        (1e308, "km", "m", "too large"),
        (1e308, "km^9", "m^9", "too large"),
        ("1", "km", "m", "value: Input should be a valid number"),
        (float("inf"), "km", "m", "value"),
    ],
)
async def test_unit_that_cannot_be_converted_is_an_error(
    call, value, from_unit, to_unit, problem
) -> None:
    text, is_error = await call("convert_units", value=value, from_unit=from_unit, to_unit=to_unit)
    assert is_error
    assert problem in text


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("today", {}, "2026-11-27 (Friday), 23:30 in UTC"),
        ("today", {"timezone": "Europe/Paris"}, "2026-11-28 (Saturday), 00:30 in Europe/Paris"),
        ("today", {"timezone": "US/Hawaii"}, "2026-11-27 (Friday), 13:30 in US/Hawaii"),
        ("add_days", {"date": "2024-02-28", "days": 2}, "2024-03-01 (Friday)"),
        ("add_days", {"date": "2024-03-01", "days": -1.0}, "2024-02-29 (Thursday)"),
        (
            "days_between",
            {"start": "2023-12-25", "end": "2024-12-25"},
            "366 days from 2023-12-25 (Monday) to 2024-12-25 (Wednesday)",
        ),
        (
            "days_between",
            {"start": "2024-01-02", "end": "2024-01-01"},
            "-1 days from 2024-01-02 (Tuesday) to 2024-01-01 (Monday)",
        ),
        ("weekday", {"date": "1969-07-20"}, "Sunday"),
    ],
)
async def test_calendar_is_right(call, name, arguments, text) -> None:
    assert await call(name, **arguments) == (text, False)


@pytest.mark.parametrize(
    ("name", "arguments", "problem"),
    [
        ("today", {"timezone": "Mars/Base"}, "'Mars/Base' is unknown"),
        ("today", {"timezone": "../../etc/passwd"}, "is unknown"),
        ("today", {"timezone": "/etc/passwd"}, "is unknown"),
        ("today", {"timezone": "Europe"}, "is unknown"),
        ("today", {"timezone": "a\x00b"}, "is unknown"),
        ("today", {"timezone": ""}, "at least 1 character"),
        ("weekday", {"date": "2023-02-29"}, "date"),
        ("weekday", {"date": "tomorrow"}, "date"),
        ("weekday", {"date": 20230201}, "date"),
        ("add_days", {"date": "9999-12-31", "days": 1}, "outside the years 1 to 9999"),
        ("add_days", {"date": "2024-01-01", "days": 10**30}, "outside the years 1 to 9999"),
        ("add_days", {"date": "2024-01-01", "days": 1.5}, "days"),
        ("add_days", {"date": "2024-01-01", "days": 1, "hours": 1}, "hours: Extra"),
    ],
)
async def test_what_is_in_no_calendar_is_an_error(call, name, arguments, problem) -> None:
    text, is_error = await call(name, **arguments)
    assert is_error
    assert problem in text


class Found(NamedTuple):
    text: str
    source: str


async def test_search_quotes_passages_below_their_sources() -> None:
    asked: list[tuple[str, int]] = []

    def search(query: str, max_passages: int) -> list[Found]:
        asked.append((query, max_passages))
        return [Found("Paris is in France.", "cities.md"), Found("\nIt\n\nrains.\n", "a\nb.md")] * 3

    tool = document_search_tool(search)
    result = await run_tool(
        tool, {"query": "paris", "max_passages": 2}, timeout_s=5.0, max_chars=1000
    )
    assert result.text == "cities.md:\n> Paris is in France.\n\na b.md:\n> It\n>\n> rains."
    await run_tool(tool, {"query": "rain"}, timeout_s=5.0, max_chars=1000)
    assert asked == [("paris", 2), ("rain", 4)]


async def test_search_that_finds_nothing_says_so_and_its_bounds_hold() -> None:
    tool = document_search_tool(lambda query, max_passages: [])
    for arguments, text in (
        ({"query": "x"}, "Nothing was found"),
        ({"query": ""}, "query"),
        ({"query": "x" * 1001}, "query"),
        ({"query": "x", "max_passages": 11}, "max_passages"),
    ):
        result = await run_tool(tool, arguments, timeout_s=5.0, max_chars=1000)
        assert text in result.text
