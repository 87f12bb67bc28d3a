"""``latentmas bench``: the quality programs of the repository, which no wheel holds."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

PROGRAM = "benchmarks.quality"
ANY_OPTIONS = {"ignore_unknown_options": True, "help_option_names": []}

bench = typer.Typer(
    no_args_is_help=True, help="Measure methods beside each other, in a clone of the repository."
)


@bench.command(context_settings=ANY_OPTIONS, add_help_option=False)
def quality(
    arguments: Annotated[
        list[str] | None, typer.Argument(help=f"Those of python -m {PROGRAM}.")
    ] = None,
) -> None:
    """Ask the same questions by several methods, and say what came of it."""
    _become(arguments or ["--help"])


@bench.command(context_settings=ANY_OPTIONS, add_help_option=False)
def compare(
    runs: Annotated[list[str] | None, typer.Argument(help="Folders of two runs.")] = None,
) -> None:
    """Hold two runs side by side."""
    _become(["compare", *(runs or ["--help"])])


def _become(arguments: Sequence[str]) -> None:
    """The program takes over this process, its exit status and its signals."""
    if not Path(*PROGRAM.split(".")).is_dir():
        sys.exit(
            f"{Path.cwd()} holds no {PROGRAM.replace('.', '/')}: latentmas bench runs the programs "
            "of the repository. Clone it, go to its root and try again."
        )
    os.execv(sys.executable, [sys.executable, "-m", PROGRAM, *arguments])
