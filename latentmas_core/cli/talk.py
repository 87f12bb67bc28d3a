"""Talk: a conversation with a backend, and how its next question is asked."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from latentmas_core.chat import ChatMessage
from latentmas_core.cli.backend import Backend, ServiceError, find_pipeline
from latentmas_core.cli.flags import AskFlags
from latentmas_core.cli.remote import PIPELINE_PREFIX
from latentmas_core.events import AnswerDone, Event
from latentmas_core.request import Mode

CHAT = "chat"


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

    @property
    def fields(self) -> dict[str, Any]:
        """Those of a request that say the same as they do here."""
        names = ("pipeline", "mode", "latent_steps", "temperature", "max_tokens", "system_prompt")
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value is not None}


class Talk:
    """``history`` holds whole turns only: a question whose answer did not come leaves no trace."""

    def __init__(self, backend: Backend, settings: AskSettings) -> None:
        self.backend = backend
        self.settings = settings
        self.history: list[ChatMessage] = []

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

    def _remember(self, question: str, answer: str) -> None:
        self.history.append(ChatMessage(role="user", content=question))
        self.history.append(ChatMessage(role="assistant", content=answer))

    def _events(self, question: str) -> Generator[Event, None, None]:
        fields = {"question": question, **self.settings.fields}
        if self.settings.adapter is not None:
            agents = find_pipeline(self.backend, self.settings.pipeline).agents
            fields["adapters"] = dict.fromkeys(agents, self.settings.adapter)
        if self.history:
            fields["history"] = [
                message.model_dump(exclude_defaults=True) for message in self.history
            ]
        yield from self.backend.stream(fields)


def begin_talk(backend: Backend, flags: AskFlags) -> Talk:
    """A talk as the flags say. Raises LatentMASError for what there is not."""
    settings = AskSettings(
        pipeline=flags.pipeline,
        mode=flags.mode,
        latent_steps=flags.latent_steps,
        temperature=flags.temperature,
        max_tokens=flags.max_tokens,
        system_prompt=flags.system_prompt,
    )
    talk = Talk(backend, settings)
    backend.open()
    if flags.endpoint is not None and flags.model is not None:
        talk.choose_model(flags.model)
    if flags.lora_adapter is not None:
        talk.choose_adapter(flags.lora_adapter)
    return talk
