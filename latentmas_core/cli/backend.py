"""What answers the questions of the command line: this process, or a service over HTTP."""

from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from latentmas_core.chat import ChatMessage
from latentmas_core.context.conversations.records import ConversationInfo
from latentmas_core.errors import LatentMASError, NotFoundError
from latentmas_core.events import Event
from latentmas_core.routing.domains import AUTO


class PipelineInfo(NamedTuple):
    """A pipeline that can be asked for; ``is_default``: it runs where a question names none."""

    name: str
    agents: tuple[str, ...]
    description: str
    is_default: bool


class ModelInfo(NamedTuple):
    """Something that ``--model`` may name. ``kind``: base, pipeline or adapter."""

    name: str
    kind: str
    about: str


class LoadedAdapter(NamedTuple):
    """``state`` says where it is: on the device, in host memory or on disk."""

    name: str
    state: str


class KnownAdapter(NamedTuple):
    """An entry of the registry; ``fits``: it was made for the base model that is used."""

    name: str
    base_model: str
    domain: str
    path: str
    fits: bool


class AdapterListing(NamedTuple):
    """What the engine knows, and what the registry offers."""

    loaded: tuple[LoadedAdapter, ...]
    registry: tuple[KnownAdapter, ...]


class Backend(Protocol):
    """Every call may raise LatentMASError; its message is for the user as it is."""

    def open(self) -> None:
        """Be ready to answer; what is wrong with the place is found out here."""

    def stream(self, fields: Mapping[str, Any]) -> Generator[Event, None, None]:
        """Answer one question, given by the fields of a request, ``question`` among them.

        The last event is AnswerDone. Closing the generator ends the run.
        """

    def pipelines(self) -> Sequence[PipelineInfo]: ...

    def models(self) -> Sequence[ModelInfo]: ...

    def adapters(self) -> AdapterListing: ...

    def ready_adapter(self, wanted: str) -> str:
        """The name under which requests may use an adapter, loaded first where that is possible."""

    def conversations(self) -> Sequence[ConversationInfo]:
        """Those that are kept, the last changed first."""

    def messages(self, conversation_id: str) -> list[ChatMessage]:
        """What was said in one of them; nothing in one that has not begun."""

    def close(self) -> None: ...


def known_pipelines(backend: Backend) -> list[PipelineInfo]:
    """Those of a backend, and "auto", which may become any of them."""
    listed = backend.pipelines()
    agents = dict.fromkeys(agent for pipeline in listed for agent in pipeline.agents)
    return [*listed, PipelineInfo(AUTO, tuple(agents), "chosen by the question", is_default=False)]


def find_pipeline(backend: Backend, name: str | None) -> PipelineInfo:
    """By its name, or the one that runs where none is named; NotFoundError says what there is."""
    known = known_pipelines(backend)
    for pipeline in known:
        if pipeline.name == name or (name is None and pipeline.is_default):
            return pipeline
    there_are = ", ".join(pipeline.name for pipeline in known)
    if name is None:
        raise NotFoundError(f"no pipeline is the default here. Name one of {there_are}.")
    raise NotFoundError(f"pipeline {name!r} does not exist here; there are {there_are}.")


class ServiceError(LatentMASError):
    """A service that did not answer, or answered with an error, whose HTTP status is ``status``."""

    def __init__(
        self, message: str, *, param: str | None = None, status: int | None = None
    ) -> None:
        super().__init__(message, param=param)
        self.status = status
