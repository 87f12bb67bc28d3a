"""Tools of the calendar. What time it is, an injected clock says."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field

from latentmas_core.config import FrozenModel, JsonInt, Text
from latentmas_core.context.tools.tool import Tool
from latentmas_core.errors import ToolError

Clock = Callable[[], datetime]
Day = Annotated[date, Field(description="YYYY-MM-DD")]


class TimeZone(FrozenModel):
    """Where it is asked from."""

    timezone: Annotated[Text, Field(description="for example Europe/Paris")] = "UTC"


class DayAndDistance(FrozenModel):
    """A day, and how far another is from it."""

    date: Day
    days: Annotated[JsonInt, Field(description="negative for earlier days")]


class TwoDays(FrozenModel):
    """Two days of the calendar."""

    start: Day
    end: Day


class OneDay(FrozenModel):
    """A day of the calendar."""

    date: Day


def utc_now() -> datetime:
    """The clock that tools read unless they are given another."""
    return datetime.now(UTC)


def date_tools(clock: Clock = utc_now) -> tuple[Tool, ...]:
    """``clock`` returns the time with its time zone."""

    def today(asked: TimeZone) -> str:
        now = clock().astimezone(_zone(asked.timezone))
        return f"{_day(now.date())}, {now:%H:%M} in {asked.timezone}"

    return (
        Tool("today", "Tells today's date, weekday and the time.", TimeZone, today),
        Tool("add_days", "Tells the date some days after or before another.", DayAndDistance, _add),
        Tool("days_between", "Counts the days from one date to another.", TwoDays, _between),
        Tool("weekday", "Tells the day of the week of a date.", OneDay, lambda d: f"{d.date:%A}"),
    )


def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC  # known where there is no database of zones, too
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ToolError(
            f"timezone {name!r} is unknown. Use a name such as Europe/Paris, or UTC."
        ) from None


def _add(asked: DayAndDistance) -> str:
    try:
        return _day(asked.date + timedelta(days=asked.days))
    except OverflowError:
        raise ToolError(
            f"{asked.days} days from {asked.date} is outside the years 1 to 9999. Use fewer days."
        ) from None


def _between(asked: TwoDays) -> str:
    return f"{(asked.end - asked.start).days} days from {_day(asked.start)} to {_day(asked.end)}"


def _day(day: date) -> str:
    return f"{day.isoformat()} ({day:%A})"
