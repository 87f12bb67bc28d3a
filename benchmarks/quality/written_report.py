"""The report of a run as files: report.md with plots/*.svg, and report.html, which needs no others.

The plots of both are the same.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.quality.html_report import html
from benchmarks.quality.plots import (
    accuracy_plot,
    agents_plot,
    latency_plot,
    steps_cost_plot,
    steps_plot,
)
from benchmarks.quality.report import described, markdown, run_tables
from benchmarks.quality.run_folder import RunFolder
from benchmarks.quality.scaling import curves
from benchmarks.quality.summary import AgentTokens, Summary, agent_tokens, summarize

TITLE = "Quality of the methods"


class Plot(NamedTuple):
    """``name`` is that of its file, without the task."""

    task: str
    name: str
    title: str
    drawing: str  # SVG


def write_report(folder: RunFolder) -> None:
    """report.md, report.html and the plots, in the folder of the run."""
    answers = folder.answers()
    lines, tables = described(folder.config), run_tables(folder)
    plots = plots_of(
        summarize(answers),
        agent_tokens(answers),
        default_steps=folder.config["settings"]["limits"]["latent_steps"],
    )
    (folder.path / "plots").mkdir(exist_ok=True)
    for plot in plots:
        (folder.path / _file_of(plot)).write_text(plot.drawing, encoding="utf-8")
    pictures = [f"![{plot.task}: {plot.title}]({_file_of(plot)})" for plot in plots]
    text = markdown(TITLE, lines, tables, pictures)
    (folder.path / "report.md").write_text(text, encoding="utf-8")
    drawings: dict[str, list[str]] = {}
    for plot in plots:
        drawings.setdefault(plot.task, []).append(plot.drawing)
    page = html(TITLE, lines, tables, drawings)
    (folder.path / "report.html").write_text(page, encoding="utf-8")


def plots_of(
    summaries: Sequence[Summary], tokens: Sequence[AgentTokens], *, default_steps: int
) -> list[Plot]:
    """Four of each task, and three more where methods differ in their latent steps alone."""
    found: list[Plot] = []
    for task in dict.fromkeys(one.task for one in summaries):
        of_task = [one for one in summaries if one.task == task]
        agents = [one for one in tokens if one.task == task]
        found += _plots_of_methods(task, of_task, agents)
        found += _plots_of_steps(task, of_task, default_steps)
    return found


def _plots_of_methods(
    task: str, summaries: Sequence[Summary], agents: Sequence[AgentTokens]
) -> list[Plot]:
    by_tokens, by_time = "Accuracy against output tokens", "Accuracy against time"
    spread, writers = "Latency of each question", "Tokens per agent"
    tokens_plot = accuracy_plot(
        summaries,
        title=by_tokens,
        unit="output tokens per question",
        cost=lambda s: s.output_tokens,
    )
    time_plot = accuracy_plot(
        summaries, title=by_time, unit="seconds per question", cost=lambda s: s.time_s
    )
    return [
        Plot(task, "accuracy-tokens", by_tokens, tokens_plot),
        Plot(task, "accuracy-time", by_time, time_plot),
        Plot(task, "latency", spread, latency_plot(summaries, title=spread)),
        # Nobody wrote anything where every question failed.
        *([Plot(task, "agents", writers, agents_plot(agents, title=writers))] if agents else []),
    ]


def _plots_of_steps(task: str, summaries: Sequence[Summary], default_steps: int) -> list[Plot]:
    found = curves(summaries, default_steps=default_steps)
    if not found:
        return []
    right, written, time = (f"{what} by latent steps" for what in ("Accuracy", "Output", "Time"))
    tokens_plot = steps_cost_plot(
        found, title=written, unit="tokens per question", cost=lambda s: s.output_tokens
    )
    time_plot = steps_cost_plot(found, title=time, unit="s per question", cost=lambda s: s.time_s)
    return [
        Plot(task, "steps-accuracy", right, steps_plot(found, title=right)),
        Plot(task, "steps-tokens", written, tokens_plot),
        Plot(task, "steps-time", time, time_plot),
    ]


def _file_of(plot: Plot) -> str:
    task = re.sub(r"[^A-Za-z0-9]+", "-", plot.task).strip("-")
    return f"plots/{task}-{plot.name}.svg"
