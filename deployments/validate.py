"""``latentmas validate``: what is wrong with a Serve config file, or what it will look like."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.placement import Node

if TYPE_CHECKING:
    from deployments.check import Report

THIS_MACHINE = "this machine"
NODE_FORM = "cpus=32,gpus=8,count=2"
MAX_PER_NODE = 100_000

ConfigFile = Annotated[
    Path, typer.Argument(exists=True, dir_okay=False, help="A Serve config file.")
]
NodeTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--node",
        metavar=NODE_FORM,
        help="A machine of the cluster; may be repeated. Without it, this machine is the cluster.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
WithoutPaths = Annotated[
    bool, typer.Option("--no-paths", help="The folders and files it names are elsewhere.")
]


def validate(
    config: ConfigFile,
    nodes: NodeTexts = None,
    as_json: AsJson = False,
    without_paths: WithoutPaths = False,
) -> None:
    """Check a Serve config file and print the plan: what sits where, and how pipelines run.

    Exit status 0: valid. 1: refused, with every problem on standard error. 2: wrong usage.
    """
    cluster = parse_nodes(nodes) if nodes else [this_machine()]
    # Modules that the file names (own tools, policies) are found where `serve run` finds them.
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    # Ray takes seconds to import: not before --help, and not before wrong options are refused.
    from deployments.check import check_file
    from deployments.plan_text import plan_lines

    report = check_file(config, cluster, checks_paths=not without_paths)
    for warning in report.warnings:
        typer.echo(f"warning: {warning}", err=True)
    for problem in report.problems:
        typer.echo(f"{config}: {problem}", err=True)
    if as_json:
        typer.echo(json.dumps(as_plain(config, cluster, report), indent=2))
    elif report.is_valid:
        typer.echo("\n".join(plan_lines(str(config), cluster, report)))
    if not report.is_valid:
        raise typer.Exit(1)


def this_machine(*, min_cpus: int = 1) -> Node:
    """The CPUs and GPUs that Ray finds here."""
    import torch

    num_cpus = max(min_cpus, os.cpu_count() or 1)
    return Node(THIS_MACHINE, num_cpus, torch.cuda.device_count())


def parse_nodes(texts: Sequence[str]) -> list[Node]:
    """``cpus=32,gpus=8,count=2`` is two nodes; BadParameter for what cannot be read so."""
    nodes: list[Node] = []
    for text in texts:
        values = _node_values(text)
        for _ in range(int(values["count"])):
            nodes.append(Node(f"node {len(nodes) + 1}", values["cpus"], int(values["gpus"])))
    return nodes


def _node_values(text: str) -> dict[str, float]:
    values = {"cpus": 0.0, "gpus": 0.0, "count": 1.0}
    given: set[str] = set()
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        if name not in values or name in given:
            raise typer.BadParameter(f"{text!r} is not of the form {NODE_FORM}; see {part!r}.")
        given.add(name)
        values[name] = _number(text, name, number)
    if "cpus" not in given:
        raise typer.BadParameter(f"{text!r} lacks cpus; the form is {NODE_FORM}.")
    return values


def _number(text: str, name: str, number: str) -> float:
    is_whole = number.isdecimal()
    has_form = is_whole or (name == "cpus" and number.replace(".", "", 1).isdecimal())
    if not has_form or float(number) > MAX_PER_NODE:
        kind = "a number" if name == "cpus" else "a whole number"
        raise typer.BadParameter(
            f"{name} of {text!r} is {number!r}; it must be {kind} up to {MAX_PER_NODE}."
        )
    return float(number)


def as_plain(config: Path, cluster: Sequence[Node], report: "Report") -> dict[str, Any]:
    """The report as JSON has it; the plan is there once all is valid."""
    return {
        "config": str(config),
        "is_valid": report.is_valid,
        "problems": [asdict(problem) for problem in report.problems],
        "warnings": [asdict(warning) for warning in report.warnings],
        "nodes": [asdict(node) for node in cluster],
        "applications": [asdict(one) for one in report.applications] if report.is_valid else [],
    }
