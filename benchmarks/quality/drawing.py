"""Parts of plots as inline SVG: scales, axes, marks with numbers, and the legend that names them.

Marks carry the numbers of the legend, so that a plot can be read without colours.
"""

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 460, 290  # of a plot without its legend
LEFT, RIGHT, TOP, BOTTOM = 52, 22, 32, 46
COLOURS = ("#0b62a4", "#c2410c", "#157f3b", "#7c3aed", "#a16207", "#be185d", "#0f766e", "#57534e")
_CHARACTER, _ROW = 7.0, 20.0  # about as wide and as high as text of 13 pixels needs


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


def from_zero(values: Sequence[float]) -> Scale:
    """Across the plot, with some room behind the largest."""
    return Scale(0.0, 1.1 * max([*values, 1e-9]), LEFT, WIDTH - RIGHT)


def shares() -> Scale:
    """Up the plot, from 0 to all."""
    return Scale(0.0, 1.0, HEIGHT - BOTTOM, TOP)


def colour(index: int) -> str:
    """Of a line; they come round again."""
    return COLOURS[index % len(COLOURS)]


def axis_across(scale: Scale, unit: str) -> Iterator[str]:
    """Ticks and unit below the drawing."""
    for value in scale.ticks():
        x = scale(value)
        yield line((x, TOP), (x, HEIGHT - BOTTOM), "#e5e7eb")
        yield text(x, HEIGHT - BOTTOM + 16, f"{value:g}", anchor="middle")
    yield text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, unit, anchor="middle")


def axis_up(scale: Scale, form: str = ".0%") -> Iterator[str]:
    """Ticks on the left."""
    for value in scale.ticks():
        y = scale(value)
        yield line((LEFT, y), (WIDTH - RIGHT, y), "#e5e7eb")
        yield text(LEFT - 11, y + 4, format(value, form), anchor="end")


def mark(x: float, y: float, index: int) -> str:
    """The circle of the legend's entry ``index``, with its number."""
    number = f'<text x="{x:.1f}" y="{y + 3.5:.1f}" text-anchor="middle" font-size="10"'
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="7.5" fill="{colour(index)}"/>'
        f'{number} fill="#fff">{index + 1}</text>'
    )


def line(
    start: tuple[float, float], end: tuple[float, float], stroke: str, *, width: float = 1.0
) -> str:
    """From one point to another, in pixels."""
    return (
        f'<line x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" '
        f'stroke="{stroke}" stroke-width="{width:g}"/>'
    )


def text(x: float, y: float, words: str, *, anchor: str = "start") -> str:
    """Words at a point, in pixels."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def rectangle(x: float, y: float, width: float, height: float, fill: str, opacity: float) -> str:
    """Its corner at the top left, in pixels."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
        f'fill="{fill}" fill-opacity="{opacity:g}"/>'
    )


def svg(title: str, parts: Sequence[str], legend: Sequence[str]) -> str:
    """The drawing, and below it what the marks stand for."""
    entries, num_rows = _legend(legend)
    height = HEIGHT + num_rows * _ROW
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" '
        f'width="{WIDTH}" height="{height:g}" role="img" aria-label="{escape(title)}" '
        'font-family="system-ui, sans-serif" font-size="13" fill="#1f2937">'
        f'<rect width="{WIDTH}" height="{height:g}" fill="#fff"/>'
        f'<text x="8" y="18" font-weight="bold">{escape(title)}</text>'
        f"{''.join([*parts, *entries])}</svg>"
    )


def _legend(names: Sequence[str]) -> tuple[list[str], int]:
    """Entries side by side as far as they fit, and the number of rows."""
    entries, x, row = [], 16.0, 0
    for index, name in enumerate(names):
        width = 34.0 + _CHARACTER * len(name)
        if x > 16.0 and x + width > WIDTH:
            x, row = 16.0, row + 1
        y = HEIGHT + 6 + row * _ROW
        entries += [mark(x, y, index), text(x + 13, y + 4, name)]
        x += width
    return entries, row + 1
