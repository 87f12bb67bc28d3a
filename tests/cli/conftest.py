"""Where questions go in these tests: a tiny model in this process, or a service on a socket."""

import asyncio
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner, Result

from deployments.access import DEFAULT_TENANT
from deployments.api.access import Access
from latentmas_core import EngineConfig, LatentMASSystem, NotFoundError
from latentmas_core.agents.assistant import ASSISTANT, assistant_agent
from latentmas_core.cli import flags
from latentmas_core.cli.app import build_app
from latentmas_core.cli.local import LocalBackend
from latentmas_core.context.conversations.config import ConversationsConfig
from latentmas_core.context.conversations.conversations import Conversations
from latentmas_core.context.request import AskRequest
from latentmas_core.engine.engine import Engine
from latentmas_core.pipelines.builtin import CHAT, chat_pipeline
from latentmas_core.pipelines.plan import plan
from tests.deployments.fake_reasoner import RESULT
from tests.deployments.keys import make_access, make_app
from tests.deployments.page.scripted import ScriptedReasoner, serving
from tests.lora.adapters import make_adapter

SHORT = ("--max-tokens", "4", "--latent-steps", "2", "--temperature", "0")


def run_cli(*arguments: str, stdin: str | bytes | None = None) -> Result:
    """The program in this process; standard output and standard error apart."""
    return CliRunner().invoke(build_app(), arguments, input=stdin)


class CliReasoner(ScriptedReasoner):
    """Offers plain chat too, and refuses what it does not offer."""

    def __init__(self) -> None:
        super().__init__()
        self.pipelines[CHAT] = chat_pipeline()
        self.plans[CHAT] = plan(chat_pipeline(), {ASSISTANT: "deciders"})

    async def check(self, request):
        if request.pipeline not in self.pipelines:
            raise NotFoundError(f"pipeline {request.pipeline!r} is not offered here.")


class Service(NamedTuple):
    """``reasoner`` does as it is told and keeps what it was asked."""

    reasoner: CliReasoner
    url: str


async def keep(config: ConversationsConfig, conversation_id: str, *questions: str) -> None:
    """Fill a conversation of a database, as answers of a service do."""
    conversations = Conversations(config)
    for question in questions:
        async with conversations.turn(DEFAULT_TENANT, conversation_id, question) as turn:
            await turn.finish(RESULT)
    await conversations.close()


@pytest.fixture(scope="session")
def running_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """It keeps one conversation, "kept"."""
    path = tmp_path_factory.mktemp("service") / "conversations.db"
    config = ConversationsConfig(url=f"sqlite:///{path}")
    asyncio.run(keep(config, "kept", "One?", "Two?"))
    reasoner = CliReasoner()
    app = make_app(reasoner, Access(), conversations=Conversations(config))
    with serving(app) as url:
        yield Service(reasoner, url)


@pytest.fixture
def service(running_service: Service) -> Iterator[Service]:
    """Open to everyone; one adapter is loaded."""
    running_service.reasoner.reset()
    running_service.reasoner.adapters.listed = [
        {"name": "mine", "states": {"thinkers": ["ready", "absent"], "deciders": ["ready"]}}
    ]
    yield running_service
    running_service.reasoner.reset()


@pytest.fixture(scope="session")
def locked_service() -> Iterator[Service]:
    """It asks for a key."""
    reasoner = CliReasoner()
    with serving(make_app(reasoner, make_access())) as url:
        yield Service(reasoner, url)


class RecordingSystem(LatentMASSystem):
    """Keeps what it is asked."""

    requests: list[AskRequest]

    def stream(self, question: str, **options: Any):
        events = super().stream(question, **options)
        chosen = options["pipeline"]
        name = chosen if isinstance(chosen, str) else chosen.name
        named = options | {"question": question, "pipeline": name}
        self.requests.append(AskRequest(**named))
        return events


class LocalPlace(NamedTuple):
    """``opened``: the models that were to be opened; ``requests``: what was asked of them."""

    opened: list[str | None]
    requests: list[AskRequest]


@pytest.fixture(scope="session")
def tiny_engine(tiny_llama: Path) -> Iterator[Engine]:
    config = EngineConfig(
        model_name=str(tiny_llama), device="cpu", kv_cache_bytes=2**24, num_threads=1
    )
    with Engine(config) as engine:
        yield engine


@pytest.fixture
def user_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where conversations are kept that are told no other place."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "user"))
    return tmp_path / "user" / "latentmas" / "conversations.db"


@pytest.fixture
def local(
    tiny_engine: Engine, user_data: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LocalPlace]:
    """The program without --endpoint: on a tiny model that is there already."""
    place = LocalPlace([], [])

    def opens(model_name: str | None, conversations: ConversationsConfig) -> LatentMASSystem:
        place.opened.append(model_name)
        system = RecordingSystem.from_engine(tiny_engine, conversations=conversations)
        system.requests = place.requests
        return system.add_default_agents().add_agent(assistant_agent())

    monkeypatch.setattr(flags, "LocalBackend", partial(LocalBackend, opens=opens))
    yield place
    with LatentMASSystem.from_engine(tiny_engine) as system:
        for adapter in system.adapters:
            system.unload_lora(adapter.name)


@pytest.fixture(scope="session")
def adapter_folder(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapters") / "mine", tiny_llama, rank=4)


class Place(NamedTuple):
    """Somewhere to ask: flags that lead there, and what was asked there."""

    name: str
    flags: tuple[str, ...]
    requests: list[AskRequest]

    def ask(self, *arguments: str, stdin: str | None = None) -> Result:
        return run_cli(*arguments, *self.flags, stdin=stdin)

    def ask_well(self, *arguments: str, stdin: str | None = None) -> Result:
        result = self.ask(*arguments, stdin=stdin)
        assert result.exit_code == 0, result.output
        return result

    def asked(self) -> AskRequest:
        """The last question that came there."""
        return self.requests[-1]


@pytest.fixture(params=["local", "remote"])
def place(request: pytest.FixtureRequest) -> Place:
    if request.param == "local":
        return Place("local", (), request.getfixturevalue("local").requests)
    service = request.getfixturevalue("service")
    return Place("remote", ("--endpoint", service.url), service.reasoner.requests)


def read_json(result: Result) -> Any:
    """Standard output as a JSON parser reads it: nothing may stand around it."""
    return json.loads(result.stdout)
