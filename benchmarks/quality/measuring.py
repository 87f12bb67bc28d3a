"""A run from its settings to its report: questions, folder, systems, answers."""

import asyncio
import hashlib
import json
import shlex
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from benchmarks.machine import changes_digest, describe_commit, describe_machine, describe_versions
from benchmarks.program import say
from benchmarks.quality import systems
from benchmarks.quality.command_line import PROGRAM
from benchmarks.quality.energy import Meter
from benchmarks.quality.methods import EngineChoice
from benchmarks.quality.progress import shown_progress
from benchmarks.quality.report import headline_tables, markdown
from benchmarks.quality.run_folder import RunFolder, only_writer
from benchmarks.quality.runner import Asking, Batch, System, plan, run_batches
from benchmarks.quality.settings import Settings
from benchmarks.quality.tasks import load_questions, task_names
from benchmarks.quality.written_report import write_report

RUNS = Path("runs") / "quality"


def measure(settings: Settings, arguments: Sequence[str]) -> None:
    """Ask what is not answered yet, write the report, and print what matters most of it.

    ``arguments`` are those that the settings came from. Raises ConfigError for what cannot be
    meant, ModelError and AdapterError for what cannot be loaded.
    """
    methods = settings.expanded_methods()
    limits = settings.limits
    tasks = {
        name: load_questions(task, num_questions=settings.n, seed=limits.seed, data=settings.data)
        for task, name in task_names(settings.tasks).items()
    }
    meters = systems.meters_for(settings.device)
    config = {
        **_config_of(settings, [method.name for method in methods], arguments),
        "energy": [meter.source for meter in meters],
    }
    batches = plan(
        tasks, methods, concurrency=settings.concurrency, num_alone=min(settings.alone, settings.n)
    )
    path = settings.run or RUNS / _digest(config["settings"])
    with only_writer(path):
        folder = RunFolder.open(path, config)
        say(f"{path}: {len(folder.answers())} answers are there already")
        _ask_all(settings, list(batches), folder, meters)
        write_report(folder)
    lines = [f"Everything else: {path / 'report.html'}"]
    print(markdown("Side by side", lines, headline_tables(folder)), end="")


def _ask_all(
    settings: Settings, batches: Sequence[Batch], folder: RunFolder, meters: Sequence[Meter]
) -> None:
    def open_system(engine: EngineChoice) -> AbstractContextManager[System]:
        return systems.open_system(settings, engine)

    with shown_progress() as report_progress:
        asking = Asking(
            open_system,
            settings.limits,
            report_progress,
            adapters={a: systems.adapter_name(place) for a, place in settings.adapters.items()},
            meters=meters,
        )
        asyncio.run(run_batches(batches, asking, folder))


def _config_of(
    settings: Settings, methods: Sequence[str], arguments: Sequence[str]
) -> dict[str, Any]:
    """``settings`` decide what the answers are; so do the commit and what differs from it."""
    commit = describe_commit()
    places = {"data", "run", "threads", "sweep"}
    chosen = settings.model_dump(mode="json", exclude=places)
    return {
        "settings": {
            **chosen,
            "methods": list(methods),
            "commit": commit["commit"],
            "changes": changes_digest(),
        },
        "is_modified": commit["is_modified"],
        "machine": describe_machine() | {"gpu": systems.gpu_name(settings.device)},
        "versions": describe_versions(),
        "command": shlex.join([*PROGRAM.split(), *arguments]),
    }


def _digest(settings: dict[str, Any]) -> str:
    """The same command, the same folder: so a run that was killed goes on."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
