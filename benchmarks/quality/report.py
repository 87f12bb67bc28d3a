"""A run as tables: the same ones in Markdown and in HTML. Knows no files."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.quality.run_folder import AnswerRow, RunFolder
from benchmarks.quality.summary import (
    Paired,
    Summary,
    agent_tokens,
    pair_methods,
    pair_rows,
    summarize,
)


class Table(NamedTuple):
    """``note`` says how to read it."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def run_tables(answers: Sequence[AnswerRow]) -> list[Table]:
    """Everything that a run found."""
    return [
        _methods_table(summarize(answers)),
        _pairs_table(pair_methods(answers)),
        _agents(answers),
    ]


def compare_tables(first: RunFolder, second: RunFolder) -> list[Table]:
    """Two runs, method by method, on the questions that are in both."""
    answers = (first.answers(), second.answers())
    keys = dict.fromkeys((row.task, row.method) for row in answers[0])
    pairs = [
        pair
        for key in keys
        for lots in [[[r for r in rows if (r.task, r.method) == key] for rows in answers]]
        for names in [(f"{first.path.name}: {key[1]}", f"{second.path.name}: {key[1]}")]
        if (pair := pair_rows(*lots, names=names)) is not None
    ]
    changed = _settings_table(first.config["settings"], second.config["settings"])
    return [changed, _pairs_table(pairs)]


def described(config: dict[str, Any]) -> list[str]:
    """What was run, on what, and how to run it again."""
    settings, machine = config["settings"], config["machine"]
    limits = ", ".join(f"{name} {value}" for name, value in settings["limits"].items())
    state = " with changes that are not committed" if config["is_modified"] else ""
    return [
        f"Model {settings['model']} on {machine['gpu'] or machine['cpu']} "
        f"({machine['num_cores']} cores), {settings['device']}, {settings['dtype']}, "
        f"{settings['concurrency']} questions at a time.",
        f"The same for every method: {limits}.",
        f"Commit {settings['commit'] or 'unknown'}{state}; "
        + ", ".join(f"{name} {version}" for name, version in config["versions"].items()),
        f"Command: {config['command']}",
    ]


def markdown(title: str, lines: Sequence[str], tables: Sequence[Table]) -> str:
    """Headings, paragraphs and tables."""
    parts = [f"# {title}", *lines]
    for table in tables:
        cells = [table.columns, ["---"] * len(table.columns), *table.rows]
        parts.append(f"## {table.title}\n\n{table.note}")
        parts.append("\n".join(f"| {' | '.join(_escaped(row))} |" for row in cells))
    return "\n\n".join(parts) + "\n"


def _escaped(row: Sequence[str]) -> list[str]:
    return [cell.replace("|", "\\|") for cell in row]


def _methods_table(summaries: Sequence[Summary]) -> Table:
    columns = (
        "task", "method", "n", "right", "accuracy", "95 % interval", "no answer", "cut", "errors",
        "prompt tokens", "output tokens", "latent steps", "time", "latency p50", "p90",
    )  # fmt: skip
    note = (
        "Tokens and time are means per question; time is the question's share of its batch. "
        "Interval: Wilson. No answer: the text commits to none. Cut: it ran into max_tokens."
    )
    return Table("Methods", note, columns, [_method_row(one) for one in summaries])


def _method_row(one: Summary) -> list[str]:
    low, high = one.interval
    latencies = one.latency_s or (0.0,)
    return [
        one.task,
        one.method,
        str(one.num_questions),
        str(one.num_right),
        f"{one.accuracy:.1%}",
        f"{low:.1%} to {high:.1%}",
        str(one.num_unanswered),
        str(one.num_cut),
        str(one.num_errors),
        f"{one.prompt_tokens:.0f}",
        f"{one.output_tokens:.0f}",
        f"{one.latent_steps:.0f}",
        f"{one.time_s:.2f} s",
        f"{statistics.median(latencies):.2f} s",
        f"{sorted(latencies)[int(0.9 * (len(latencies) - 1))]:.2f} s",
    ]


def _pairs_table(pairs: Sequence[Paired]) -> Table:
    columns = (
        "task", "first", "second", "n", "both right", "only first", "only second", "neither",
        "difference", "p", "output tokens", "time",
    )  # fmt: skip
    note = (
        "Difference: accuracy of the second less that of the first, on the same questions; p: "
        "McNemar's exact test. Output tokens and time: second / first."
    )
    rows = [
        [
            pair.task,
            pair.first,
            pair.second,
            str(pair.num_questions),
            str(pair.num_both),
            str(pair.num_only_first),
            str(pair.num_only_second),
            str(pair.num_neither),
            f"{100 * pair.difference:+.1f} points",
            f"{pair.p_value:.3f}",
            _ratio_text(pair.output_ratio),
            _ratio_text(pair.time_ratio),
        ]
        for pair in pairs
    ]
    return Table("Methods beside each other", note, columns, rows)


def _agents(answers: Sequence[AnswerRow]) -> Table:
    columns = ("task", "method", "agent", "prompt tokens", "output tokens", "latent steps")
    rows = [
        [
            one.task,
            one.method,
            one.agent,
            f"{one.prompt_tokens:.0f}",
            f"{one.output_tokens:.0f}",
            f"{one.latent_steps:.0f}",
        ]
        for one in agent_tokens(answers)
    ]
    return Table("Tokens per agent", "Means per question.", columns, rows)


def _settings_table(first: dict[str, Any], second: dict[str, Any]) -> Table:
    names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    rows = [[name, str(first.get(name)), str(second.get(name))] for name in names]
    return Table(
        "Settings that differ", "All others are the same.", ("setting", "first", "second"), rows
    )


def _ratio_text(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"
