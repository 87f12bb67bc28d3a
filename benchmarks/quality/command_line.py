"""The options of ``python -m benchmarks.quality``: what is left out is as Settings say."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.program import positive
from benchmarks.quality.methods import BASES, LATENT_FIELDS, Limits
from benchmarks.quality.settings import Settings, names, pairs, settings_of

PROGRAM = "python -m benchmarks.quality"
T = TypeVar("T")


def parsed(arguments: Sequence[str]) -> Settings:
    """Ends the program for what no option is; ConfigError for a value that cannot be meant."""
    given = vars(_parser().parse_args(arguments))
    if "sweep" in given:
        given["sweep"] = {field: values for one in given["sweep"] for field, values in one.items()}
    if not {"tasks", "config"} & set(given):
        _parser().error("say --tasks, or --config with a file that does")
    return settings_of(given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="The same questions by every method, and what came of it.",
        argument_default=argparse.SUPPRESS,
    )
    default = Settings.model_fields
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="YAML with these options; those given here win")
    add("--tasks", type=names, metavar="TASK,...", help="docs/quality.md lists them")
    add("--methods", type=names, metavar="METHOD,...", help=f"of {', '.join(BASES)}")
    add("--sweep", type=_told(_swept_field), action="append", metavar="FIELD=VALUE,...",
        help=f"latent methods with each value; fields: {', '.join(LATENT_FIELDS)}")  # fmt: skip
    add("--adapters", type=_told(pairs), metavar="AGENT=ADAPTER,...",
        help="for methods +adapters: of the registry, a folder, or of the hub")  # fmt: skip
    add("--registries", type=names, metavar="FILE,...", help="more adapters by name")
    for name, what in (
        ("n", "questions per task"),
        ("concurrency", "questions at a time"),
        ("alone", "questions of each task that are asked once more, one at a time"),
        ("threads", "of torch; all cores if left out"),
    ):
        is_count = name != "alone"
        shown = "" if default[name].default is None else f" ({default[name].default})"
        add(f"--{name}", type=positive if is_count else int, help=f"{what}{shown}")
    add("--data", type=Path, help="folder of the tasks gsm8k, medqa and arc")
    add("--run", type=Path, metavar="FOLDER", help="of answers and report (named by settings)")
    for name in ("model", "device", "dtype"):
        add(f"--{name}", help=f"({default[name].default})")
    for name, limit in Limits.model_fields.items():
        add(f"--{name.replace('_', '-')}", type=type(limit.default), help=f"({limit.default})")
    return parser


def _swept_field(text: str) -> dict[str, Any]:
    field, equals, values = text.partition("=")
    if not equals or not names(values):
        raise ValueError(f"{text!r} is no FIELD=VALUE,...")
    return {field: names(values)}


def _told(parse: Callable[[str], T]) -> Callable[[str], T]:
    """argparse repeats the words of this error alone."""

    def parse_or_tell(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse_or_tell
