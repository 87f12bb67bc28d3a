"""The report as one HTML file that needs nothing else: tables, and plots inside it."""

import re
from collections.abc import Mapping, Sequence
from html import escape

from benchmarks.quality.report import Table

NUM_FIRST = 2  # tables before the plots
MAX_OPEN_ROWS = 20  # of a table that is not folded up
_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2937; background: #fff;
  max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }
h1 { margin: 0 0 0.5rem; } h2 { margin: 2rem 0 0.25rem; } h3 { margin: 1.5rem 0 0.5rem; }
p { margin: 0.25rem 0; max-width: 90ch; overflow-wrap: anywhere; }
.about { color: #4b5563; font-size: 13px; }
.scroll { overflow-x: auto; margin-top: 0.75rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.35rem 0.7rem; border-bottom: 1px solid #e5e7eb; text-align: right; }
th { white-space: normal; vertical-align: bottom; font-size: 13px; color: #4b5563; }
td { white-space: nowrap; }
td.words, th.words { text-align: left; }
wbr { display: none; }
summary { cursor: pointer; margin-top: 0.5rem; }
@media (max-width: 600px) {
  th, td { padding: 0.3rem 0.4rem; }
  td.words { white-space: normal; min-width: 5rem; }
  wbr { display: inline; }
}
tbody tr:hover { background: #f3f4f6; }
.plots { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); }
svg { width: 100%; max-width: 560px; height: auto; border: 1px solid #e5e7eb; border-radius: 6px; }
"""


def html(
    title: str,
    lines: Sequence[str],
    tables: Sequence[Table],
    plots: Mapping[str, Sequence[str]],
) -> str:
    """``plots``: SVG by task. What matters most comes first: two tables, the plots, the others."""
    drawn = [
        f'<h3>{escape(task)}</h3><div class="plots">{"".join(drawings)}</div>'
        for task, drawings in plots.items()
    ]
    parts = [
        f"<h1>{escape(title)}</h1>",
        *(f'<p class="about">{escape(line)}</p>' for line in lines),
        *map(_table, tables[:NUM_FIRST]),
        *drawn,
        *map(_table, tables[NUM_FIRST:]),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _table(table: Table) -> str:
    kinds = ['class="words"' if is_words else "" for is_words in _are_words(table)]
    head = _cells("th", table.columns, kinds)
    rows = "".join(f"<tr>{_cells('td', row, kinds)}</tr>" for row in table.rows)
    body = (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
    if len(table.rows) > MAX_OPEN_ROWS:
        body = f"<details><summary>{len(table.rows)} rows</summary>{body}</details>"
    return f"<h2>{escape(table.title)}</h2><p>{escape(table.note)}</p>{body}"


def _cells(tag: str, row: Sequence[str], kinds: Sequence[str]) -> str:
    return "".join(
        f"<{tag} {kind}>{_breakable(cell)}</{tag}>" for cell, kind in zip(row, kinds, strict=True)
    )


def _breakable(cell: str) -> str:
    """Names such as ``latent+latent_steps=20`` may go on in the next line."""
    return re.sub(r"([+:=])(?=[a-z0-9])", r"\1<wbr>", escape(cell))


def _are_words(table: Table) -> list[bool]:
    """Columns in which no cell begins as a number does stand on the left."""
    return [
        not any(row[index][:1] in set("0123456789+-") for row in table.rows if row[index])
        for index in range(len(table.columns))
    ]
