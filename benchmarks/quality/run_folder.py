"""A run on disk: config.json says what was asked, answers.jsonl holds every raw output.

Rows are only ever appended. A run that was killed goes on where it stopped.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

from filelock import FileLock, Timeout
from pydantic import ValidationError

from benchmarks.quality.grading import Grade, Kind, grade
from latentmas_core.config import FrozenModel
from latentmas_core.errors import ConfigError


class AgentRow(FrozenModel):
    """What one agent did for an answer, on which adapter."""

    name: str
    adapter: str
    adapter_digest: str | None = None
    prompt_tokens: int
    completion_tokens: int
    latent_steps: int
    text: str


class AnswerRow(FrozenModel):
    """An answer as it came. ``error`` says why there is none; it counts as a wrong one.

    ``latency_ms`` is from the question to its answer, beside the others of its batch;
    ``batch_s`` is how long the batch took, of ``batch_size`` questions at a time, and
    ``batch_j`` what the device drew meanwhile, where it tells. ``is_alone``: the question was asked
    once more, without others beside it, for its time; such a row counts for no accuracy.
    """

    task: str
    question_id: str
    method: str
    kind: Kind
    gold: str
    prompt: str
    output: str
    error: str | None = None
    finish_reason: str = "stop"
    agents: tuple[AgentRow, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latent_steps: int = 0
    latency_ms: float = 0.0
    batch_s: float = 0.0
    batch_j: float | None = None
    batch_size: int = 1
    is_alone: bool = False

    @property
    def key(self) -> "AnswerKey":
        return AnswerKey(self.task, self.question_id, self.method, self.is_alone)

    @property
    def time_s(self) -> float:
        """What the answer cost: its share of the batch."""
        return self.batch_s / self.batch_size

    @property
    def energy_j(self) -> float | None:
        """Its share of what the batch drew; None where the device does not tell."""
        return None if self.batch_j is None else self.batch_j / self.batch_size

    @property
    def grade(self) -> Grade:
        return grade(self.output, self.gold, self.kind)


class AnswerKey(NamedTuple):
    """What makes an answer of a run folder unique."""

    task: str
    question_id: str
    method: str
    is_alone: bool


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """No other process writes to the folder meanwhile; ConfigError if one does already.

    The lock ends with its process, however that ends.
    """
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(
            f"another process writes to {path}. Wait for it, end it, or name another folder "
            "with --run.",
            param="run",
        ) from None
    try:
        yield
    finally:
        lock.release()


class RunFolder:
    """One run: its settings, and its answers in the order in which they came."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path = path
        self.config = config

    @classmethod
    def open(cls, path: Path, config: dict[str, Any]) -> Self:
        """A new run, or the one that is there; ConfigError if that one was set up otherwise.

        ``config["settings"]`` has to be the same; the rest describes who began the run.
        """
        file = path / "config.json"
        if file.exists():
            run = cls.read(path)
            run._check_settings(config["settings"])
            run._drop_broken_row()
            return run
        path.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        return cls(path, config)

    @classmethod
    def read(cls, path: Path) -> Self:
        """A run that is there; ConfigError if there is none."""
        try:
            return cls(path, json.loads((path / "config.json").read_text(encoding="utf-8")))
        except (OSError, json.JSONDecodeError) as error:
            raise ConfigError(
                f"{path} is no folder of a run ({error}). Name one that benchmarks.quality wrote.",
                param="run",
            ) from None

    @property
    def answers_path(self) -> Path:
        return self.path / "answers.jsonl"

    def answers(self) -> list[AnswerRow]:
        """All that are complete: a last row that was cut off by a kill is left out.

        Raises ConfigError for a broken row before it.
        """
        if not self.answers_path.exists():
            return []
        # Not splitlines: some of the line ends that it knows stand in JSON as they are.
        *lines, _ = self.answers_path.read_bytes().split(b"\n")
        return [self._row_of(line, number) for number, line in enumerate(lines, start=1)]

    def append(self, rows: Iterable[AnswerRow]) -> None:
        with self.answers_path.open("a", encoding="utf-8") as file:
            file.writelines(row.model_dump_json() + "\n" for row in rows)

    def _row_of(self, line: bytes, number: int) -> AnswerRow:
        try:
            return AnswerRow.model_validate_json(line)
        except ValidationError as error:
            raise ConfigError(
                f"row {number} of {self.answers_path} is no answer of a run "
                f"({error.error_count()} faults). Correct it, or take it out: then the question is "
                "asked again.",
                param="run",
            ) from None

    def _check_settings(self, settings: dict[str, Any]) -> None:
        kept = self.config["settings"]
        names = [name for name in {**kept, **settings} if kept.get(name) != settings.get(name)]
        if names:
            name = names[0]
            raise ConfigError(
                f"{self.path} is a run with {name} {kept.get(name)!r}, not {settings.get(name)!r}. "
                "Give another --run folder, or the same options.",
                param="run",
            )

    def _drop_broken_row(self) -> None:
        """So that the next row does not begin in the middle of one."""
        if not self.answers_path.exists():
            return
        content = self.answers_path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            self.answers_path.write_bytes(whole)
