"""python -m benchmarks.quality: the same questions by every method, and what came of it.

python -m benchmarks.quality --tasks reasoning-gym:chain_sum,gsm8k --methods single,text,latent
python -m benchmarks.quality compare RUN RUN
"""

import argparse
import asyncio
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_commit, describe_machine, describe_versions
from benchmarks.program import DEFAULT_MODEL, positive, say
from benchmarks.quality.html_report import html
from benchmarks.quality.methods import METHODS, Limits, request_options
from benchmarks.quality.report import compare_tables, described, markdown, run_tables
from benchmarks.quality.run_folder import RunFolder
from benchmarks.quality.runner import plan, run_batches
from benchmarks.quality.summary import summarize
from benchmarks.quality.tasks import DATA_FOLDER, load_questions
from latentmas_core.errors import LatentMASError
from latentmas_core.validation import validated

RUNS = Path("runs") / "quality"
TITLE = "Quality of the methods"


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 2 with a sentence for what cannot be done."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given[:1] == ["compare"]:
            return _compare(given[1:])
        return _measure(_run_parser().parse_args(given), given)
    except LatentMASError as error:
        say(f"ERROR: {error.message}")
        return 2
    except KeyboardInterrupt:
        say("Stopped. The same command goes on from here.")
        return 130


def _compare(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality compare")
    parser.add_argument("runs", nargs=2, type=Path, metavar="RUN", help="folder of a run")
    first, second = (RunFolder.read(path) for path in parser.parse_args(arguments).runs)
    print(markdown("Two runs", [], compare_tables(first, second)), end="")
    return 0


def _run_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--tasks", type=_names, required=True, metavar="TASK,...")
    parser.add_argument("--methods", type=_names, default=["single", "text", "latent"],
                        metavar="METHOD,...", help=f"of {', '.join(METHODS)}")  # fmt: skip
    parser.add_argument("--n", type=positive, default=50, help="questions per task (50)")
    parser.add_argument("--data", type=Path, default=DATA_FOLDER, help="folder of named tasks")
    parser.add_argument("--run", type=Path, metavar="FOLDER", help=f"(one of {RUNS}, by settings)")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=positive, help="of torch (all cores)")
    parser.add_argument("--concurrency", type=positive, default=8, help="questions at a time (8)")
    for name, field in Limits.model_fields.items():
        kind = type(field.default)
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=kind,
            default=field.default,
            help=f"({field.default})",
        )
    return parser


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _measure(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    limits = validated(Limits, {name: getattr(options, name) for name in Limits.model_fields})
    for method in options.methods:
        request_options(method, limits)
    tasks = {
        task: load_questions(task, num_questions=options.n, seed=options.seed, data=options.data)
        for task in options.tasks
    }
    config = _config_of(options, limits, arguments)
    folder = RunFolder.open(options.run or RUNS / _digest(config["settings"]), config)
    batches = list(plan(tasks, options.methods, concurrency=options.concurrency))
    say(f"{folder.path}: {len(folder.answers())} answers are there already")
    asyncio.run(_ask_all(options, batches, limits, folder))
    write_report(folder)
    print((folder.path / "report.md").read_text(encoding="utf-8"), end="")
    return 0


async def _ask_all(
    options: argparse.Namespace, batches: list[Any], limits: Limits, folder: RunFolder
) -> None:
    import torch  # what only compares runs needs no model

    from latentmas_core import LatentMASSystem

    torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
    with LatentMASSystem(options.model, device=options.device, dtype=options.dtype) as system:
        system.add_default_agents()
        await run_batches(system, batches, limits, folder, _say_progress)


def _say_progress(num_done: int, num_all: int) -> None:
    filled = 30 * num_done // num_all
    end = "\n" if num_done == num_all or not sys.stderr.isatty() else ""
    start = "\r" if sys.stderr.isatty() else ""
    bar = f"{start}[{'#' * filled}{'.' * (30 - filled)}] {num_done} of {num_all} answers"
    print(bar, end=end, file=sys.stderr, flush=True)


def write_report(folder: RunFolder) -> None:
    """report.md and report.html in the folder of the run."""
    answers = folder.answers()
    lines, tables = described(folder.config), run_tables(answers)
    (folder.path / "report.md").write_text(markdown(TITLE, lines, tables), encoding="utf-8")
    page = html(TITLE, lines, tables, summarize(answers))
    (folder.path / "report.html").write_text(page, encoding="utf-8")


def _config_of(
    options: argparse.Namespace, limits: Limits, arguments: Sequence[str]
) -> dict[str, Any]:
    """``settings`` decide what the answers are; the commit is one of them."""
    commit = describe_commit()
    return {
        "settings": {
            "tasks": options.tasks,
            "methods": options.methods,
            "n": options.n,
            "model": options.model,
            "device": options.device,
            "dtype": options.dtype,
            "concurrency": options.concurrency,
            "limits": limits.model_dump(),
            "commit": commit["commit"],
        },
        "is_modified": commit["is_modified"],
        "machine": describe_machine(),
        "versions": describe_versions(),
        "command": shlex.join(["python", "-m", "benchmarks.quality", *arguments]),
    }


def _digest(settings: dict[str, Any]) -> str:
    """The same command, the same folder: so a run that was killed goes on."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


if __name__ == "__main__":
    sys.exit(main())
