"""``latentmas``: one program; its commands are entry points of the group ``latentmas.commands``.

So a package adds commands without being imported here; those of this package are there without one.
Modules of commands import what is heavy, or belongs to an extra, when a command runs: ``--help``
needs none of it.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, entry_points, requires

import typer

from latentmas_core.cli.adapters_command import adapters
from latentmas_core.cli.ask_command import ask
from latentmas_core.cli.bench_command import bench
from latentmas_core.cli.chat_command import chat
from latentmas_core.cli.models_command import models

COMMANDS = "latentmas.commands"
PACKAGE = "latentmas"

_OF_AN_EXTRA = re.compile(r"""^(?P<package>[\w-]+).*\bextra\s*==\s*['"](?P<extra>[\w-]+)['"]""")


def build_app() -> typer.Typer:
    """The program with every command that is installed."""
    app = typer.Typer(
        name=PACKAGE, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
    )

    # A program with a single command would otherwise be that command.
    @app.callback()
    def latentmas() -> None:
        """Multi-agent reasoning whose agents hand each other thoughts, not text."""

    app.command("ask")(ask)
    app.command("chat")(chat)
    app.command("models")(models)
    app.add_typer(adapters, name="adapters")
    app.add_typer(bench, name="bench")
    for command in sorted(entry_points(group=COMMANDS), key=lambda command: command.name):
        loaded = command.load()
        if isinstance(loaded, typer.Typer):  # one with commands of its own
            app.add_typer(loaded, name=command.name)
        else:
            app.command(command.name)(loaded)
    return app


def main() -> None:
    """Run the program; what an extra would have brought is a sentence, not a traceback."""
    try:
        build_app()()
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        extra = extra_of(module)
        if extra is None:
            raise
        sys.exit(
            f"This needs {module}, which is not installed. Install it: "
            f"pip install '{PACKAGE}[{extra}]'"
        )


def extra_of(module: str) -> str | None:
    """The extra of this package that brings a top-level module; None if no extra does."""
    try:
        required = requires(PACKAGE) or []
    except PackageNotFoundError:
        return None
    for requirement in required:
        found = _OF_AN_EXTRA.match(requirement)
        if found and found["package"].replace("-", "_").lower() == module.lower():
            return found["extra"]
    return None
