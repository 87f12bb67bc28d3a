"""Writes what is kept of runs as tables of a Markdown page, between two marks."""

from collections.abc import Iterable, Iterator, Sequence

from benchmarks.measure import Comparison, Measurement
from benchmarks.suite.results import Result, ResultsFolder
from benchmarks.table import notes_of, number_text, same_ids_text, unit_text
from latentmas_core.errors import ConfigError

BEGIN = "<!-- tables of `python -m benchmarks.suite`: written by it, not by hand -->"
END = "<!-- end of the tables -->"
TITLES = ("command", "commit", "what", "ours", "baseline", "ratio", "bar", "same answers", "others")
LOAD_TITLES = (
    "command",
    "commit",
    "clients, mode",
    "answers",
    "errors",
    "p50, p90, p99",
    "req/s",
    "tokens read, written, latent steps",
)


def with_tables(page: str, folders: Sequence[ResultsFolder]) -> str:
    """``page`` with new tables between its marks; ConfigError if it has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ConfigError(
            f"the page has no line {BEGIN!r} with a line {END!r} behind it. Put both where the "
            "tables shall be.",
            param="page",
        )
    blocks = [block for folder in folders for block in _blocks(folder)]
    tables = "\n\n".join(blocks) or "No run is kept yet."
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


def _blocks(folder: ResultsFolder) -> Iterator[str]:
    """What stands apart by empty lines; nothing for a folder without results."""
    results = folder.results
    if not results:
        return
    yield f"### {folder.path.name}"
    yield "\n".join(f"- {_origin(result)}" for result in results)
    yield "\n".join(table(TITLES, (row for result in results for row in _rows(result))))
    loads = [row for result in results for row in _load_rows(result)]
    if loads:
        yield "\n".join(table(LOAD_TITLES, loads))
    notes = [f"- {note}" for result in results for note in _notes(result)]
    if notes:
        yield "\n".join(notes)


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A Markdown table, a line each."""
    yield _line(titles)
    yield "|---" * len(titles) + "|"
    yield from map(_line, rows)


def _line(cells: Sequence[str]) -> str:
    texts = (" ".join(cell.replace("|", "\\|").split()) for cell in cells)
    return "| " + " | ".join(texts) + " |"


def _origin(result: Result) -> str:
    """With what and how it was measured."""
    machine, versions = result.machine, result.versions
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    device = f"{machine['gpu']} beside " if machine["gpu"] else ""
    report = result.report or {}
    told = [
        f"`{result.part}`: {device}{machine['cpu']}, {machine['num_cores']} cores, "
        f"{machine['memory_gib']:.0f} GiB; {packages}",
        f"load average {machine['load_average']:.1f} before, took {result.duration_s:.0f} s",
    ]
    if report:
        rounds = f", {report['num_rounds']} round(s)" if "num_rounds" in report else ""
        told.insert(1, f"{report['model']}, {report['num_threads']} thread(s){rounds}")
    return "; ".join(told)


def _rows(result: Result) -> Iterator[Sequence[str]]:
    source = _source(result)
    for measurement in result.measurements:
        yield (*source, *_cells(measurement))
    if result.report is None:
        yield (*source, "everything", "failed", "", "", "", "", "")


def _source(result: Result) -> tuple[str, str]:
    return f"`{result.command.removeprefix('python -m benchmarks.')}`", str(result.at)


def _cells(measurement: Measurement) -> tuple[str, ...]:
    what = f"{measurement.what}, {measurement.dtype}"
    if not isinstance(measurement, Comparison):
        return (what, "failed" if measurement.is_failure else "left out", "", "", "", "", "")
    ours, baseline = measurement.ours, measurement.baseline
    unit = unit_text(measurement.unit)
    foreign = measurement.foreign_cores
    return (
        what,
        f"{ours.side} {number_text(ours.median)} {unit}",
        f"{baseline.side} {number_text(baseline.median)} {unit}",
        f"{measurement.ratio:.3g}",
        _bar(measurement),
        same_ids_text(measurement),
        "" if foreign is None else f"{foreign:.1f}",
    )


def _bar(comparison: Comparison) -> str:
    if comparison.bar is None:
        return ""
    return f"{comparison.bar}{'' if comparison.is_bar_met else ', missed'}"


def _load_rows(result: Result) -> Iterator[Sequence[str]]:
    for load in result.loads:
        usage = load["usage"]
        yield (
            *_source(result),
            f"{load['num_clients']}, {load['mode']}",
            str(len(load["latencies_s"])),
            str(len(load["errors"])),
            ", ".join(f"{load[name]:.2f}" for name in ("p50_s", "p90_s", "p99_s")) + " s",
            f"{load['requests_per_s']:.3f}",
            f"{usage['prompt_tokens']}, {usage['completion_tokens']}, {usage['latent_steps']}",
        )


def _notes(result: Result) -> Iterator[str]:
    if result.failure is not None:
        yield f"`{result.part}` failed: {result.failure}"
    for note in notes_of(result.measurements):
        yield f"`{result.part}`: {note}"
