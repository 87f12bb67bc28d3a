"""LocalBackend: answers in this process, on an engine that is made when it is first needed."""

import re
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentmas_core.chat import ChatMessage
from latentmas_core.cli.backend import (
    AdapterListing,
    KnownAdapter,
    LoadedAdapter,
    ModelInfo,
    PipelineInfo,
)
from latentmas_core.config import EngineConfig
from latentmas_core.context.conversations.records import ConversationInfo
from latentmas_core.events import Event
from latentmas_core.request import DEFAULT_PIPELINE
from latentmas_core.validation import validated

if TYPE_CHECKING:
    from latentmas_core.context.conversations.config import ConversationsConfig
    from latentmas_core.pipelines.spec import PipelineSpec
    from latentmas_core.system import LatentMASSystem

_NO_PART_OF_A_NAME = re.compile(r"[^A-Za-z0-9_.-]+|^[^A-Za-z0-9]+")


def open_system(model_name: str | None, conversations: "ConversationsConfig") -> "LatentMASSystem":
    """Every shipped agent on one engine. Torch takes seconds to import: not before."""
    from latentmas_core.agents.assistant import assistant_agent
    from latentmas_core.system import LatentMASSystem

    system = LatentMASSystem(model_name, conversations=conversations)
    return system.add_default_agents().add_agent(assistant_agent())


class LocalBackend:
    """``model_name`` is any that LatentMASSystem takes; None is the embedded model."""

    def __init__(
        self,
        model_name: str | None = None,
        *,
        session_path: Path | None = None,
        opens: "Callable[[str | None, ConversationsConfig], LatentMASSystem]" = open_system,
    ) -> None:
        self._model_name = model_name
        self._session_path = session_path
        self._opens = opens
        self._opened: LatentMASSystem | None = None
        self._ready: dict[str, str] = {}  # where each adapter came from, by its name

    def open(self) -> None:
        self._system()

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()

    def stream(self, fields: Mapping[str, Any]) -> Generator[Event, None, None]:
        name = fields.get("pipeline", DEFAULT_PIPELINE)
        yield from self._system().stream(**{**fields, "pipeline": _offered().get(name, name)})

    def pipelines(self) -> tuple[PipelineInfo, ...]:
        return tuple(
            PipelineInfo(name, spec.agents, spec.description, name == DEFAULT_PIPELINE)
            for name, spec in _offered().items()
        )

    def models(self) -> tuple[ModelInfo, ...]:
        """The embedded model, then what the hub's cache holds."""
        from latentmas_core.cli.local_models import local_models

        return tuple(local_models())

    def adapters(self) -> AdapterListing:
        from latentmas_core.lora.registry import AdapterRegistry

        loaded = [] if self._opened is None else self._opened.adapters
        registry = AdapterRegistry()
        fits = registry.compatible_with(self._model_name or EngineConfig().model_name)
        return AdapterListing(
            tuple(LoadedAdapter(one.name, one.state) for one in loaded),
            tuple(
                KnownAdapter(
                    entry.name, entry.base_model, entry.domain, entry.path, fits[entry.name]
                )
                for entry in registry
            ),
        )

    def ready_adapter(self, wanted: str) -> str:
        """``wanted`` is a name of the registry, a folder, or ``owner/name`` of the hub."""
        name = adapter_name(wanted)
        if self._ready.get(name) == wanted:
            return name
        if is_path(wanted):
            self._system().load_external_lora(name, wanted)
        else:
            self._system().load_from_registry(name)
        self._ready[name] = wanted
        return name

    def conversations(self) -> tuple[ConversationInfo, ...]:
        from latentmas_core.cli.local_conversations import kept_conversations

        return kept_conversations(conversations_config(self._session_path))

    def messages(self, conversation_id: str) -> list[ChatMessage]:
        from latentmas_core.cli.local_conversations import kept_messages

        return kept_messages(conversations_config(self._session_path), conversation_id)

    def _system(self) -> "LatentMASSystem":
        if self._opened is None:
            config = conversations_config(self._session_path)
            self._opened = self._opens(self._model_name, config)
        return self._opened


def conversations_config(session_path: Path | None) -> "ConversationsConfig":
    """Those in a file of SQLite, the user's own if none is named."""
    from latentmas_core.context.conversations.config import ConversationsConfig

    if session_path is None:
        return ConversationsConfig()
    path = session_path.expanduser().absolute()
    return validated(ConversationsConfig, {"url": f"sqlite:///{path}"})


def is_path(adapter: str) -> bool:
    """Whether it says where an adapter is, and not only what it is called."""
    return has_separator(adapter) or Path(adapter).is_dir()


def has_separator(adapter: str) -> bool:
    """Whether it is written as a path, of any system."""
    return "/" in adapter or "\\" in adapter


def adapter_name(wanted: str) -> str:
    """What an adapter is called: the last part of where it is, without what no name may have."""
    if not is_path(wanted):
        return wanted
    last = re.split(r"[\\/]", str(Path(wanted).expanduser().absolute()))[-1]
    return _NO_PART_OF_A_NAME.sub("", last) or "adapter"


def _offered() -> "dict[str, PipelineSpec]":
    """As a service offers them: the assistant is nobody's turn in a sequence."""
    from latentmas_core.agents.config import default_agents
    from latentmas_core.pipelines.builtin import CHAT, builtin_pipelines, chat_pipeline

    return builtin_pipelines(agent.name for agent in default_agents()) | {CHAT: chat_pipeline()}
