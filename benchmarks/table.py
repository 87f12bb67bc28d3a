"""Writes measurements as lines of text. Knows nothing of how they were taken."""

from collections.abc import Iterator, Sequence

from benchmarks.measure import Comparison, Measurement, Missing

_LINE = "{what:<34}{ours:>14}  {baseline:<45}{ratio:>7}  {bar:<8}{holds:<7}{same_ids:<10}{others}"
_TITLES = _LINE.format(
    what="what",
    ours="ours",
    baseline="baseline",
    ratio="ratio",
    bar="bar",
    holds="holds",
    same_ids="same ids",
    others="others took",
)


def table_lines(measured: Sequence[Measurement]) -> Iterator[str]:
    """A block per dtype; figures are medians, the ratio is ours / baseline."""
    for dtype in dict.fromkeys(measurement.dtype for measurement in measured):
        yield ""
        yield dtype
        yield _TITLES
        for measurement in measured:
            if measurement.dtype == dtype:
                yield _line(measurement)
    yield ""
    yield from (f"  {note}" for note in notes_of(measured))


def _line(measurement: Measurement) -> str:
    if isinstance(measurement, Missing):
        return f"{measurement.what:<34}{'failed' if measurement.is_failure else 'left out':>14}"
    ours, baseline = measurement.ours, measurement.baseline
    return _LINE.format(
        what=measurement.what,
        ours=f"{number_text(ours.median)} {unit_text(measurement.unit)}",
        baseline=f"{number_text(baseline.median)} {unit_text(measurement.unit)}  {baseline.side}",
        ratio=f"{measurement.ratio:.3f}",
        bar="" if measurement.bar is None else str(measurement.bar),
        holds={None: "", True: "yes", False: "NO"}[measurement.is_bar_met],
        same_ids=same_ids_text(measurement),
        others=others_text(measurement),
    ).rstrip()


def notes_of(measured: Sequence[Measurement]) -> Iterator[str]:
    """What the lines include, each note once behind all lines it is of; why lines are missing."""
    lines_of_note: dict[str, list[str]] = {}
    for measurement in measured:
        if isinstance(measurement, Missing):
            lines_of_note.setdefault(measurement.reason, [])
        elif measurement.note:
            sides = f"{measurement.ours.side} / {measurement.baseline.side}"
            line = f"{measurement.what} / {sides}"
            lines = lines_of_note.setdefault(measurement.note, [])
            if line not in lines:
                lines.append(line)
    for note, lines in lines_of_note.items():
        yield f"{'; '.join(lines)}: {note}" if lines else note


def same_ids_text(comparison: Comparison) -> str:
    """How many answers have the same tokens on both sides; empty where none were compared."""
    agreement = comparison.agreement
    if agreement is None:
        return ""
    return f"{agreement.num_identical}/{agreement.num_answers}"


def others_text(comparison: Comparison) -> str:
    """What other programs took meanwhile."""
    cores = comparison.foreign_cores
    return "" if cores is None else f"{cores:.1f} cores"


def unit_text(unit: str) -> str:
    """Short, for a column."""
    return {"tokens/s": "tok/s", "requests/s": "req/s", "tokens": "tok"}.get(unit, unit)


def number_text(value: float) -> str:
    """Three digits of it, or all in front of the point."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
