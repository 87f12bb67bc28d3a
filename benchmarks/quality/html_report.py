"""The report as one HTML file that needs nothing else: tables, and plots inside it."""

from collections.abc import Sequence
from html import escape

from benchmarks.quality.plots import accuracy_plot, latency_plot
from benchmarks.quality.report import Table
from benchmarks.quality.summary import Summary

_STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.6rem; border-bottom: 1px solid #ddd; text-align: right; }
th, td:nth-child(-n+2), th:nth-child(-n+2) { text-align: left; }
.scroll { overflow-x: auto; }
svg { max-width: 100%; height: auto; }
"""


def html(
    title: str, lines: Sequence[str], tables: Sequence[Table], summaries: Sequence[Summary]
) -> str:
    """The plots of each task, then the tables."""
    parts = [f"<h1>{escape(title)}</h1>", *(f"<p>{escape(line)}</p>" for line in lines)]
    for task in dict.fromkeys(one.task for one in summaries):
        parts.append(f"<h2>{escape(task)}</h2>")
        parts += _plots([one for one in summaries if one.task == task])
    parts += [_table(table) for table in tables]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _plots(summaries: Sequence[Summary]) -> list[str]:
    return [
        accuracy_plot(
            summaries,
            title="Accuracy against output tokens",
            unit="output tokens per question",
            cost=lambda one: one.output_tokens,
        ),
        accuracy_plot(
            summaries,
            title="Accuracy against time",
            unit="seconds per question",
            cost=lambda one: one.time_s,
        ),
        latency_plot(summaries, title="Latency of each question"),
    ]


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows
    )
    return (
        f"<h2>{escape(table.title)}</h2><p>{escape(table.note)}</p>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
