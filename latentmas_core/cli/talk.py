"""Talk: a conversation with a backend, and how its next question is asked."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from latentmas_core.chat import ChatMessage
from latentmas_core.cli.backend import Backend, ServiceError, find_pipeline
from latentmas_core.cli.flags import AskFlags
from latentmas_core.cli.rag import as_field
from latentmas_core.cli.remote import PIPELINE_PREFIX
from latentmas_core.context.conversations.names import new_id
from latentmas_core.context.documents.document import DocumentInput
from latentmas_core.events import AnswerDone, Event
from latentmas_core.request import Mode

CHAT = "chat"

_SAME_IN_REQUESTS = (
    *("pipeline", "mode", "latent_steps", "temperature", "max_tokens", "system_prompt"),
    "conversation_id",
)


@dataclass(frozen=True)
class AskSettings:
    """How questions are asked; None: as the backend does by itself."""

    pipeline: str | None = None
    mode: Mode | None = None
    latent_steps: int | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    system_prompt: str | None = None
    adapter: str | None = None
    documents: tuple[DocumentInput, ...] = ()
    enable_tools: bool = False
    conversation_id: str | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """What they are in a request; ``adapter`` depends on the agents, and is not among them."""
        given = {name: getattr(self, name) for name in _SAME_IN_REQUESTS}
        fields = {name: value for name, value in given.items() if value is not None}
        if self.documents:
            fields["documents"] = as_field(self.documents)
        if self.enable_tools:
            fields["enable_tools"] = True
        return fields


class Talk:
    """``history`` holds whole turns only: a question whose answer did not come leaves no trace.

    With a ``conversation_id`` the backend keeps what is said, and the documents that came with it:
    the history stays empty, and a document is sent once.
    """

    def __init__(self, backend: Backend, settings: AskSettings) -> None:
        self.backend = backend
        self.settings = settings
        self.history: list[ChatMessage] = []
        self._num_kept = 0  # of the documents

    def ask(self, question: str) -> Generator[Event, None, None]:
        """The events of the answer; closing them gives it up. Raises LatentMASError."""
        with closing(self._events(question)) as events:
            for event in events:
                if isinstance(event, AnswerDone):
                    self._remember(question, event.result.final_answer)
                yield event

    def choose_pipeline(self, name: str) -> None:
        self.settings = replace(self.settings, pipeline=find_pipeline(self.backend, name).name)

    def choose_mode(self, mode: Mode) -> None:
        self.settings = replace(self.settings, mode=mode)

    def choose_adapter(self, wanted: str | None) -> None:
        """For all agents; loaded first where that is possible. None: each agent's own again."""
        name = None if wanted is None else self.backend.ready_adapter(wanted)
        self.settings = replace(self.settings, adapter=name)

    def choose_model(self, name: str) -> None:
        """One of a service's models: a pipeline, an adapter or the base, as OpenAI's clients do."""
        models = {model.name: model for model in self.backend.models()}
        if name not in models:
            raise ServiceError(
                f"model {name!r} does not exist there; there are {', '.join(models)}."
            )
        if models[name].kind == "pipeline":
            self.choose_pipeline(name.removeprefix(PIPELINE_PREFIX))
            return
        self.choose_pipeline(CHAT)
        if models[name].kind == "adapter":
            self.choose_adapter(name)

    def messages(self) -> list[ChatMessage]:
        """What was said so far, wherever it is kept."""
        if self.settings.conversation_id is None:
            return list(self.history)
        return self.backend.messages(self.settings.conversation_id)

    def begin_anew(self) -> str | None:
        """Forget what was said or, where it is kept, begin another conversation; its id then."""
        self.history.clear()
        if self.settings.conversation_id is not None:
            self.go_on_with(new_id())
        return self.settings.conversation_id

    def go_on_with(self, conversation_id: str) -> None:
        """Let the backend keep what is said, in this conversation."""
        self.history.clear()
        self._num_kept = 0
        self.settings = replace(self.settings, conversation_id=conversation_id)

    def add_documents(self, documents: tuple[DocumentInput, ...]) -> None:
        self.settings = replace(self.settings, documents=self.settings.documents + documents)

    def drop_documents(self) -> None:
        """Send none any more; what a conversation keeps stays with it."""
        self._num_kept = 0
        self.settings = replace(self.settings, documents=())

    def _remember(self, question: str, answer: str) -> None:
        if self.settings.conversation_id is not None:
            self._num_kept = len(self.settings.documents)
            return
        self.history.append(ChatMessage(role="user", content=question))
        self.history.append(ChatMessage(role="assistant", content=answer))

    def _events(self, question: str) -> Generator[Event, None, None]:
        new = replace(self.settings, documents=self.settings.documents[self._num_kept :])
        fields = {"question": question, **new.fields}
        if self.settings.adapter is not None:
            agents = find_pipeline(self.backend, self.settings.pipeline).agents
            fields["adapters"] = dict.fromkeys(agents, self.settings.adapter)
        if self.history:
            fields["history"] = [
                message.model_dump(exclude_defaults=True) for message in self.history
            ]
        yield from self.backend.stream(fields)


def begin_talk(
    backend: Backend, flags: AskFlags, documents: tuple[DocumentInput, ...] = ()
) -> Talk:
    """A talk as the flags say. Raises LatentMASError for what there is not."""
    conversation_id = flags.session_id
    if conversation_id is None and flags.session_path is not None:
        conversation_id = new_id()
    settings = AskSettings(
        pipeline=flags.pipeline,
        mode=flags.mode,
        latent_steps=flags.latent_steps,
        temperature=flags.temperature,
        max_tokens=flags.max_tokens,
        system_prompt=flags.system_prompt,
        documents=documents,
        enable_tools=flags.enable_tools,
        conversation_id=conversation_id,
    )
    talk = Talk(backend, settings)
    backend.open()
    if flags.endpoint is not None and flags.model is not None:
        talk.choose_model(flags.model)
    if flags.lora_adapter is not None:
        talk.choose_adapter(flags.lora_adapter)
    return talk
