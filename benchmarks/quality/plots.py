"""The plots of a report: what accuracy costs, how latencies spread, who writes, what steps do."""

import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from benchmarks.quality import drawing
from benchmarks.quality.drawing import BOTTOM, HEIGHT, LEFT, TOP, Scale, colour
from benchmarks.quality.scaling import Curve
from benchmarks.quality.significance import Interval
from benchmarks.quality.summary import AgentTokens, Summary

_THOUGHT, _WRITTEN = 0.4, 1.0  # how opaque


class _Point(NamedTuple):
    x: float
    accuracy: float
    interval: Interval


def accuracy_plot(
    summaries: Sequence[Summary], *, title: str, unit: str, cost: Callable[[Summary], float]
) -> str:
    """A mark per method with its interval of 95 %; right is dearer, up is better."""
    across, up = drawing.from_zero([*map(cost, summaries)]), drawing.shares()
    points = [_Point(across(cost(one)), one.accuracy, one.interval) for one in summaries]
    parts = [*drawing.axis_up(up), *drawing.axis_across(across, unit)]
    for index, point in enumerate(points):
        parts += _whisker(point, up, index)
    for index, point in enumerate(points):  # on top of all whiskers
        parts.append(drawing.mark(point.x, up(point.accuracy), index))
    return drawing.svg(title, parts, [one.method for one in summaries])


def latency_plot(summaries: Sequence[Summary], *, title: str) -> str:
    """A stroke per question, a row per method, the median as a bar."""
    across = drawing.from_zero([value for one in summaries for value in one.latency_s])
    parts = [*drawing.axis_across(across, "seconds from the question to its answer")]
    for index, one in enumerate(summaries):
        y = _row(index, len(summaries))
        reach = min(10.0, 0.4 * _row_height(len(summaries)))
        parts.append(drawing.mark(LEFT / 2, y, index))
        for value in one.latency_s:
            x = across(value)
            parts.append(drawing.rectangle(x - 1, y - reach, 2, 2 * reach, colour(index), _THOUGHT))
        if one.latency_s:
            x = across(statistics.median(one.latency_s))
            parts.append(
                drawing.rectangle(x - 2, y - 1.3 * reach, 4, 2.6 * reach, colour(index), _WRITTEN)
            )
    return drawing.svg(title, parts, [one.method for one in summaries])


def agents_plot(tokens: Sequence[AgentTokens], *, title: str) -> str:
    """A bar per method in the order of its agents: what each wrote, and paler what it thought."""
    methods = list(dict.fromkeys(one.method for one in tokens))
    whole = max(methods, key=lambda name: sum(one.method == name for one in tokens))
    in_order = sorted(tokens, key=lambda one: one.method != whole)  # all agents, first to last
    agents = list(dict.fromkeys(one.agent for one in in_order))
    sums = [sum(_num_steps(one) for one in tokens if one.method == name) for name in methods]
    across = drawing.from_zero(sums)
    parts = [*drawing.axis_across(across, "output tokens per question, latent steps paler")]
    for index, method in enumerate(methods):
        room = _row_height(len(methods))
        high = min(18.0, 0.35 * room)
        y = _row(index, len(methods)) + 0.25 * room
        parts.append(drawing.text(LEFT, y - high / 2 - 3, method))
        reached = 0.0
        for one in (one for one in tokens if one.method == method):
            fill = colour(agents.index(one.agent))
            for amount, opacity in ((one.output_tokens, _WRITTEN), (one.latent_steps, _THOUGHT)):
                x, width = across(reached), across(amount) - across(0.0)
                parts.append(drawing.rectangle(x, y - high / 2, width, high, fill, opacity))
                reached += amount
    return drawing.svg(title, parts, agents)


def steps_plot(curves: Sequence[Curve], *, title: str) -> str:
    """Accuracy with its interval over the number of latent steps of each agent that thinks."""
    across = drawing.from_zero([steps for curve in curves for steps, _ in curve.points])
    up = drawing.shares()
    parts = [*drawing.axis_up(up), *drawing.axis_across(across, "latent steps per agent")]
    for index, curve in enumerate(curves):
        points = [_Point(across(n), one.accuracy, one.interval) for n, one in curve.points]
        for point in points:
            parts += _whisker(point, up, index)
        parts += _path([(point.x, up(point.accuracy)) for point in points], index)
    return drawing.svg(title, parts, [curve.name for curve in curves])


def steps_cost_plot(
    curves: Sequence[Curve], *, title: str, unit: str, cost: Callable[[Summary], float]
) -> str:
    """What a question costs over the number of latent steps of each agent that thinks."""
    across = drawing.from_zero([steps for curve in curves for steps, _ in curve.points])
    highest = max([*(cost(one) for curve in curves for _, one in curve.points), 1e-9])
    up = Scale(0.0, 1.1 * highest, HEIGHT - BOTTOM, TOP)
    parts = [*drawing.axis_up(up, "g"), *drawing.axis_across(across, "latent steps per agent")]
    for index, curve in enumerate(curves):
        parts += _path([(across(steps), up(cost(one))) for steps, one in curve.points], index)
    return drawing.svg(f"{title} ({unit})", parts, [curve.name for curve in curves])


def _num_steps(one: AgentTokens) -> float:
    return one.output_tokens + one.latent_steps


def _row_height(num_rows: int) -> float:
    return (HEIGHT - TOP - BOTTOM) / num_rows


def _row(index: int, num_rows: int) -> float:
    """The middle of a row."""
    return TOP + (index + 0.5) * _row_height(num_rows)


def _whisker(point: _Point, up: Scale, index: int) -> list[str]:
    low, high = (up(edge) for edge in point.interval)
    return [
        drawing.line((point.x, low), (point.x, high), colour(index), width=2),
        *(
            drawing.line((point.x - 4, y), (point.x + 4, y), colour(index), width=2)
            for y in (low, high)
        ),
    ]


def _path(points: Sequence[tuple[float, float]], index: int) -> list[str]:
    joins = [drawing.line(a, b, colour(index), width=2) for a, b in pairwise(points)]
    return [*joins, *(drawing.mark(x, y, index) for x, y in points)]
