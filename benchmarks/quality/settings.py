"""Everything that a run may be told, by a file of configuration and by the command line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from benchmarks.program import DEFAULT_MODEL
from benchmarks.quality.methods import ADAPTERS, Limits, Method, swept
from benchmarks.quality.tasks import DATA_FOLDER
from latentmas_core.config import FrozenModel, Text
from latentmas_core.errors import ConfigError
from latentmas_core.validation import validated


class Settings(FrozenModel):
    """What to ask whom, how often, and where answers are kept.

    ``adapters`` maps agents to adapters: a name of the registry (``registries`` are files with
    more of them), a folder, or ``owner/name`` of the hub. ``sweep`` maps fields of latent methods
    to values. ``concurrency`` questions are asked at a time; ``alone`` questions of each task are
    asked once more, one at a time. ``threads`` of torch: all cores, if left out.
    """

    tasks: tuple[Text, ...] = Field(min_length=1)
    methods: tuple[Text, ...] = Field(default=("single", "text", "latent"), min_length=1)
    sweep: dict[str, tuple[int | str, ...]] = Field(default_factory=dict)
    adapters: dict[Text, Text] = Field(default_factory=dict)
    registries: tuple[Path, ...] = ()
    n: int = Field(default=50, ge=1)
    concurrency: int = Field(default=25, ge=1)
    alone: int = Field(default=0, ge=0)
    data: Path = DATA_FOLDER
    run: Path | None = None
    model: Text = DEFAULT_MODEL
    device: Text = "auto"
    dtype: Text = "auto"
    threads: int | None = Field(default=None, ge=1)
    limits: Limits = Limits()

    def expanded_methods(self) -> list[Method]:
        """Raises ConfigError for what cannot be meant, adapters without any among it."""
        methods = swept(self.methods, self.sweep)
        wanting = [method.name for method in methods if method.adapters and not self.adapters]
        if wanting:
            raise ConfigError(
                f"method {wanting[0]!r} needs adapters, and none are given. Say which: --adapters "
                "AGENT=NAME,...",
                param=ADAPTERS,
            )
        return methods


def settings_of(given: Mapping[str, Any]) -> Settings:
    """What the command line says on top of the file that it names as ``config``.

    Fields of the limits stand beside the others on the command line, under ``limits`` in the file.
    Raises ConfigError that names the field.
    """
    options = dict(given)
    file: Path | None = options.pop("config", None)
    fields = {} if file is None else _read_yaml(file)
    limits = fields.pop("limits", None) or {}
    if not isinstance(limits, dict):
        raise ConfigError(
            f"limits of {file} is {limits!r}; it must be a mapping such as "
            "{max_tokens: 256}. Correct the file.",
            param="limits",
        )
    limits |= {name: options.pop(name) for name in Limits.model_fields if name in options}
    return validated(Settings, fields | options | {"limits": validated(Limits, limits)})


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"configuration {file} cannot be read: {error}. Correct the path or the file.",
            param="config",
        ) from None
    if not isinstance(content, dict):
        raise ConfigError(
            f"configuration {file} holds no mapping. Write one, as in configs/headline.yaml.",
            param="config",
        )
    return content


def names(text: str) -> Sequence[str]:
    """``a,b`` as a list, without empty ones and repetitions."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def pairs(text: str) -> dict[str, str]:
    """``a=x,b=y`` as a mapping; ValueError for what is no pair."""
    return dict(_pair(part) for part in names(text))


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = (part.strip() for part in text.partition("="))
    if not (name and equals and value):
        raise ValueError(f"{text!r} is no NAME=VALUE")
    return name, value
