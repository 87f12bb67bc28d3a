"""A run as tables: the same ones in Markdown and in HTML. Knows no files."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.quality.promises import Promise, promises
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

    @property
    def trimmed(self) -> "Table":
        """Without the columns that have nothing in them, such as times alone where none were."""
        kept = [index for index in range(len(self.columns)) if any(row[index] for row in self.rows)]
        rows = [[row[index] for index in kept] for row in self.rows]
        return self._replace(columns=[self.columns[index] for index in kept], rows=rows)


def run_tables(run: RunFolder) -> list[Table]:
    """Everything that a run found, what matters most first."""
    answers = run.answers()
    more = [_pairs_table(pair_methods(answers)), _details(summarize(answers)), _agents(answers)]
    return [*headline_tables(run), *(table.trimmed for table in more if table.rows)]


def headline_tables(run: RunFolder) -> list[Table]:
    """The methods side by side, and what is promised of them."""
    answers = run.answers()
    tables = [_side_by_side(summarize(answers)), _promises_table(promises(answers))]
    return [table.trimmed for table in tables if table.rows]


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
        f"Energy: {', '.join(config['energy']) or 'not told by this device'}.",
        f"Commit {settings['commit'] or 'unknown'}{state}; "
        + ", ".join(f"{name} {version}" for name, version in config["versions"].items()),
        f"Command: {config['command']}",
    ]


def markdown(
    title: str, lines: Sequence[str], tables: Sequence[Table], pictures: Sequence[str] = ()
) -> str:
    """Headings, paragraphs and tables; ``pictures`` come last."""
    parts = [f"# {title}", *lines]
    for table in tables:
        cells = [table.columns, ["---"] * len(table.columns), *table.rows]
        parts.append(f"## {table.title}\n\n{table.note}")
        parts.append("\n".join(f"| {' | '.join(_escaped(row))} |" for row in cells))
    return "\n\n".join([*parts, *pictures]) + "\n"


def _escaped(row: Sequence[str]) -> list[str]:
    return [cell.replace("|", "\\|") for cell in row]


def _side_by_side(summaries: Sequence[Summary]) -> Table:
    columns = (
        "task", "method", "n", "accuracy", "95 % interval", "output tokens", "relative",
        "latent steps", "time", "relative", "time alone", "relative", "energy",
    )  # fmt: skip
    note = (
        "Means per question; time is its share of what all that were asked with it took, time "
        "alone that of a question without others beside it. Relative: to text agents, or to the "
        "first method where there are none. Interval: Wilson. Energy is that of the whole device."
    )
    rows = []
    for one in summaries:
        of_task = [other for other in summaries if other.task == one.task]
        rows.append(_side_by_side_row(one, _baseline(of_task)))
    return Table("Side by side", note, columns, rows)


def _baseline(summaries: Sequence[Summary]) -> Summary:
    return next((one for one in summaries if one.method == "text"), summaries[0])


def _side_by_side_row(one: Summary, base: Summary) -> list[str]:
    low, high = one.interval
    return [
        one.task,
        one.method,
        str(one.num_questions),
        f"{one.accuracy:.1%}",
        f"{low:.1%} to {high:.1%}",
        f"{one.output_tokens:.0f}",
        _relative(one.output_tokens, base.output_tokens),
        f"{one.latent_steps:.0f}",
        f"{one.time_s:.2f} s",
        _relative(one.time_s, base.time_s),
        _seconds(one.mean_alone_s),
        _relative(one.mean_alone_s, base.mean_alone_s),
        "not told" if one.energy_j is None else f"{one.energy_j:.1f} J",
    ]


def _promises_table(found: Sequence[Promise]) -> Table:
    columns = ("task", "method", "against", "what", "found", "promised", "kept")
    note = "What latent agents need over what text agents need, on the same questions."
    rows = [
        [
            one.task,
            one.method,
            one.against,
            one.what,
            f"{one.ratio:.2f}",
            f"at most {one.limit:.2f}",
            "yes" if one.is_kept else "no",
        ]
        for one in found
    ]
    return Table("What is promised", note, columns, rows)


def _details(summaries: Sequence[Summary]) -> Table:
    columns = (
        "task", "method", "right", "no answer", "cut", "errors", "prompt tokens",
        "latency p50", "p90", "alone p50", "asked alone",
    )  # fmt: skip
    note = (
        "No answer: the text commits to none. Cut: it ran into max_tokens. Latency: from the "
        "question to its answer."
    )
    return Table("Details", note, columns, [_detail_row(one) for one in summaries])


def _detail_row(one: Summary) -> list[str]:
    return [
        one.task,
        one.method,
        str(one.num_right),
        str(one.num_unanswered),
        str(one.num_cut),
        str(one.num_errors),
        f"{one.prompt_tokens:.0f}",
        _seconds(_quantile(one.latency_s, 0.5)),
        _seconds(_quantile(one.latency_s, 0.9)),
        _seconds(_quantile(one.alone_s, 0.5)),
        str(len(one.alone_s) or ""),
    ]


def _quantile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that so many are not above; None of none."""
    return sorted(values)[math.ceil(share * len(values)) - 1] if values else None


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} s"


def _relative(value: float | None, base: float | None) -> str:
    return "" if value is None or not base else f"{value / base:.2f}"


def _pairs_table(pairs: Sequence[Paired]) -> Table:
    columns = (
        "task", "first", "second", "n", "both right", "only first", "only second", "neither",
        "difference", "p", "output tokens", "time", "time alone",
    )  # fmt: skip
    note = (
        "Difference: accuracy of the second less that of the first, on the same questions; p: "
        "McNemar's exact test. Tokens and times: second / first."
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
            _ratio_text(pair.alone_ratio),
        ]
        for pair in pairs
    ]
    return Table("Methods beside each other", note, columns, rows)


def _agents(answers: Sequence[AnswerRow]) -> Table:
    columns = (
        "task",
        "method",
        "agent",
        "adapter",
        "prompt tokens",
        "output tokens",
        "latent steps",
    )
    rows = [
        [
            one.task,
            one.method,
            one.agent,
            one.adapter,
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
