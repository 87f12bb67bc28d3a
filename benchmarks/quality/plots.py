"""Plots as inline SVG: accuracy against what it costs, and how latencies spread."""

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import NamedTuple

from benchmarks.quality.summary import Summary

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 20, 30, 46
# Told apart without colours too: every point is labelled.
COLOURS = ("#0b62a4", "#c2410c", "#157f3b", "#7c3aed", "#a16207", "#be185d")


class Scale(NamedTuple):
    """Values from ``low`` to ``high`` on pixels from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Four to ten round values, 0 among them where the scale starts there."""
        raw = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [index * step for index in range(first, last + 1)]


def accuracy_plot(
    summaries: Sequence[Summary], *, title: str, unit: str, cost: Callable[[Summary], float]
) -> str:
    """A point per method with its interval of 95 %; right is dearer, up is better."""
    across = Scale(0.0, 1.15 * max([*map(cost, summaries), 1e-9]), LEFT, WIDTH - RIGHT)
    up = Scale(0.0, 1.0, HEIGHT - BOTTOM, TOP)
    parts = [*_axes(across, up, title, unit)]
    for index, one in enumerate(summaries):
        colour = COLOURS[index % len(COLOURS)]
        x, y = across(cost(one)), up(one.accuracy)
        low, high = one.interval
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{up(low):.1f}" y2="{up(high):.1f}" '
            f'stroke="{colour}" stroke-width="2"/>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>'
        )
        parts.append(
            _label(
                x, up(high) - 6 - 12 * _num_close(summaries[:index], one, cost), one.method, colour
            )
        )
    return _svg(title, parts)


def latency_plot(summaries: Sequence[Summary], *, title: str) -> str:
    """A mark per question, a row per method, the median as a bar."""
    longest = max([*(value for one in summaries for value in one.latency_s), 1e-9])
    across = Scale(0.0, 1.05 * longest, LEFT + 64, WIDTH - RIGHT)
    parts = [*_ticks_across(across), _caption("latency in s")]
    for index, one in enumerate(summaries):
        colour = COLOURS[index % len(COLOURS)]
        y = TOP + (index + 0.5) * (HEIGHT - TOP - BOTTOM) / len(summaries)
        parts.append(f'<text x="6" y="{y + 4:.1f}" fill="{colour}">{escape(one.method)}</text>')
        parts += [
            f'<line x1="{across(value):.1f}" x2="{across(value):.1f}" y1="{y - 9:.1f}" '
            f'y2="{y + 9:.1f}" stroke="{colour}" stroke-opacity="0.35" stroke-width="2"/>'
            for value in one.latency_s
        ]
        if one.latency_s:
            middle = across(sorted(one.latency_s)[len(one.latency_s) // 2])
            parts.append(
                f'<rect x="{middle - 2:.1f}" y="{y - 14:.1f}" width="4" height="28" '
                f'fill="{colour}"/>'
            )
    return _svg(title, parts)


def _num_close(earlier: Sequence[Summary], one: Summary, cost: Callable[[Summary], float]) -> int:
    """Labels that already stand where this one would."""
    return sum(
        abs(cost(other) - cost(one)) < 0.2 * max(cost(one), 1e-9)
        and abs(other.interval.high - one.interval.high) < 0.06
        for other in earlier
    )


def _axes(across: Scale, up: Scale, title: str, unit: str) -> Iterator[str]:
    for value in up.ticks():
        y = up(value)
        yield (
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.0%}</text>'
        )
    yield from _ticks_across(across)
    yield _caption(unit)


def _ticks_across(across: Scale) -> Iterator[str]:
    for value in across.ticks():
        x = across(value)
        yield (
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#eee"/>'
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value:g}</text>'
        )


def _caption(unit: str) -> str:
    middle = (LEFT + WIDTH - RIGHT) / 2
    return f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">{escape(unit)}</text>'


def _label(x: float, y: float, text: str, colour: str) -> str:
    anchor = "end" if x > WIDTH - 90 else "middle"
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} fill="{colour}">{escape(text)}</text>'


def _svg(title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" '
        f'aria-label="{escape(title)}" font-family="sans-serif" font-size="12">'
        f'<text x="{LEFT}" y="16" font-weight="bold">{escape(title)}</text>{"".join(parts)}</svg>'
    )
