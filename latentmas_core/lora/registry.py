"""Adapters that can be loaded by name alone: the shipped table and the tables of users, in YAML.

adapters:
  - name: my_medical
    path: owner/name                 # of the hub, or a folder
    base_model: Qwen2.5-3B-Instruct
    domain: medical                  # optional, as are description, revision and pinned
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from latentmas_core.config import FrozenModel, Text
from latentmas_core.errors import AdapterError, ConfigError, NotFoundError
from latentmas_core.lora.base_model import is_same_base
from latentmas_core.names import Name
from latentmas_core.validation import validated

_FIELDS = "name, path, base_model and, if wanted, domain, description, revision, pinned"
SHIPPED = Path(__file__).with_name("registry.yaml")


class AdapterEntry(FrozenModel):
    """An adapter that can be had, and the base model that it was made for."""

    name: Name
    path: Text
    base_model: Text
    domain: str = ""
    description: str = ""
    revision: Text | None = None
    pinned: bool = False


class AdapterRegistry:
    """The shipped table with the given files on top: a later entry replaces one of its name."""

    def __init__(self, files: Sequence[Path] = ()) -> None:
        self._files = (SHIPPED, *files)
        self._entries: Mapping[str, AdapterEntry] = {}
        self.reload()

    def reload(self) -> None:
        """Read the files again; raises ConfigError, and the table stays as it was."""
        entries: dict[str, AdapterEntry] = {}
        for path in self._files:
            entries |= read_entries(path)
        self._entries = MappingProxyType(entries)

    def __iter__(self) -> Iterator[AdapterEntry]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, name: str) -> AdapterEntry:
        """Raises NotFoundError that names what is there."""
        entry = self._entries.get(name)
        if entry is None:
            raise NotFoundError(
                f"adapter {name!r} is not in the registry. Known: {', '.join(self._entries)}. Add "
                "it to a registry file, or load it from its path.",
                param="name",
            )
        return entry

    def compatible_with(self, model_name: str) -> dict[str, bool]:
        """Which entries were made for this base model."""
        return {entry.name: is_same_base(entry.base_model, model_name) for entry in self}


def check_base(entry: AdapterEntry, model_name: str) -> None:
    """Raise AdapterError, with both names, for an entry that was made for another base model."""
    if not is_same_base(entry.base_model, model_name):
        raise AdapterError(
            f"adapter {entry.name!r} was made for base model {entry.base_model!r}; this one is "
            f"{model_name!r}. Load it where its base model is served.",
            param="name",
        )


def read_entries(path: Path) -> dict[str, AdapterEntry]:
    """The entries of one file by name; ConfigError names the file and what is wrong in it."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"adapter registry {str(path)!r} cannot be read: {error.strerror}. Check the path.",
            param="registries",
        ) from error
    except (yaml.YAMLError, ValueError) as error:  # bytes that are no text, a date that is none
        raise ConfigError(
            f"adapter registry {str(path)!r} is not valid YAML: {error}. Correct the file.",
            param="registries",
        ) from error
    listed = document.get("adapters") if isinstance(document, dict) else None
    if not isinstance(listed, list) or set(document) != {"adapters"}:
        raise ConfigError(
            f"adapter registry {str(path)!r} must hold one key, 'adapters', with a list of "
            f"entries that have {_FIELDS}. Correct the file.",
            param="registries",
        )
    entries: dict[str, AdapterEntry] = {}
    for index, fields in enumerate(listed):
        entry = _entry(path, index, fields)
        if entry.name in entries:
            raise ConfigError(
                f"adapter registry {str(path)!r} has {entry.name!r} twice. Rename one.",
                param="registries",
            )
        entries[entry.name] = entry
    return entries


def _entry(path: Path, index: int, fields: Any) -> AdapterEntry:
    where = f"adapter registry {str(path)!r}, entry {index + 1}"
    if not isinstance(fields, dict):
        raise ConfigError(
            f"{where} is {fields!r}; it must be a mapping with {_FIELDS}. Correct it.",
            param="registries",
        )
    try:
        return validated(AdapterEntry, fields)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.message} Correct it.", param="registries") from None
