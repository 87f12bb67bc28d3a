"""LatentMASSystem: the whole product in one process. Thin: it validates, plans and passes on."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import cached_property
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Protocol, Self

from latentmas_core.agents.config import AgentConfig, default_agents
from latentmas_core.background import BackgroundLoop
from latentmas_core.config import EngineConfig
from latentmas_core.context.answerer import Answerer
from latentmas_core.context.config import ContextConfig
from latentmas_core.context.conversations.config import ConversationsConfig
from latentmas_core.context.conversations.conversations import Conversations
from latentmas_core.context.documents.chunking import token_spans_of
from latentmas_core.context.reading import Reading
from latentmas_core.context.request import AskRequest
from latentmas_core.context.tools import Tool, ToolRegistry, shipped_tools
from latentmas_core.engine.engine import Engine
from latentmas_core.engine.stats import EngineStats
from latentmas_core.errors import ConfigError
from latentmas_core.events import Event
from latentmas_core.local_reasoning import LocalReasoning
from latentmas_core.lora.library import AdapterInfo, AdapterLibrary, AdapterSource, LibraryEngine
from latentmas_core.lora.merge_options import MergeOptions
from latentmas_core.lora.registry import AdapterRegistry
from latentmas_core.pipelines.builtin import BUILTIN_NAMES, builtin_pipelines
from latentmas_core.pipelines.choice import PipelineChoice, find_pipeline
from latentmas_core.pipelines.executor import result_of
from latentmas_core.pipelines.spec import PipelineSpec
from latentmas_core.pipelines.stage_worker import Roster, StageWorker
from latentmas_core.pipelines.turn_engine import TurnEngine
from latentmas_core.request import DEFAULT_PIPELINE, Mode
from latentmas_core.result import Result
from latentmas_core.routing.domains import AUTO
from latentmas_core.validation import validated

DEFAULT_LATENT_STEPS = 15
DEFAULT_CONTEXT = ContextConfig()


class SystemEngine(TurnEngine, LibraryEngine, Protocol):
    """What a system needs of an engine."""

    async def stats(self) -> EngineStats: ...

    def close(self) -> None: ...


class LatentMASSystem:
    """Agents that think together on one engine. Usable from any thread, beside any event loop.

    ``model_name``, ``device``, ``dtype``, ``quantization``, ``latent_realign`` and
    ``max_loaded_adapters`` go before ``engine_config``, which says everything else; left out, they
    are as it says, by default the embedded model, "auto", "auto", None, True and 20.
    ``latent_steps`` holds for agents whose config does not say. ``registries`` are YAML files with
    adapters beside those that are shipped. ``context`` says what may be done with documents and
    tools, ``conversations`` where conversations are kept; without it none are.

    Raises ConfigError for options that cannot be meant, ModelError for a model that cannot be run.
    """

    def __init__(
        self,
        model_name: str | None = None,
        *,
        device: str | None = None,
        dtype: str | None = None,
        quantization: str | None = None,
        latent_steps: int = DEFAULT_LATENT_STEPS,
        latent_realign: bool | None = None,
        max_loaded_adapters: int | None = None,
        registries: Sequence[Path | str] = (),
        engine_config: EngineConfig | None = None,
        context: ContextConfig = DEFAULT_CONTEXT,
        conversations: ConversationsConfig | None = None,
    ) -> None:
        registry = AdapterRegistry([Path(path) for path in registries])
        config = _merged(
            engine_config or EngineConfig(),
            model_name=model_name,
            device=device,
            dtype=dtype,
            quantization=quantization,
            latent_realign=latent_realign,
        )
        if max_loaded_adapters is not None:
            lora = config.lora.model_dump() | {"max_loaded_adapters": max_loaded_adapters}
            config = _merged(config, lora=lora)
        _check_latent_steps(latent_steps, config.max_latent_steps)
        engine = Engine(config)
        self._assemble(engine, latent_steps, registry, context, conversations, owns_engine=True)

    @classmethod
    def from_engine(
        cls,
        engine: SystemEngine,
        *,
        latent_steps: int = DEFAULT_LATENT_STEPS,
        registries: Sequence[Path | str] = (),
        context: ContextConfig = DEFAULT_CONTEXT,
        conversations: ConversationsConfig | None = None,
    ) -> Self:
        """A system on an engine that is already there and stays the caller's to close."""
        system = cls.__new__(cls)
        registry = AdapterRegistry([Path(path) for path in registries])
        system._assemble(engine, latent_steps, registry, context, conversations, owns_engine=False)
        return system

    def _assemble(
        self,
        engine: SystemEngine,
        latent_steps: int,
        registry: AdapterRegistry,
        context: ContextConfig,
        conversations: ConversationsConfig | None,
        *,
        owns_engine: bool,
    ) -> None:
        self._engine = engine
        self._library = AdapterLibrary(engine, registry)
        self._owns_engine = owns_engine
        self._agents: dict[str, AgentConfig] = {}
        self._added_pipelines: dict[str, PipelineSpec] = {}
        self._worker = StageWorker(engine, Roster(self._agents, latent_steps))
        self._tools = shipped_tools()
        self._conversations = None if conversations is None else Conversations(conversations)
        self._answerer = Answerer(context, self._tools, self._conversations)
        self._background = BackgroundLoop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what still runs, then close the engine if this system made it."""
        kept = self._conversations
        self._background.close(last=None if kept is None else kept.close)
        if self._owns_engine:
            self._engine.close()

    @property
    def agents(self) -> Mapping[str, AgentConfig]:
        return MappingProxyType(self._agents)

    @property
    def pipelines(self) -> Mapping[str, PipelineSpec]:
        """What ``pipeline`` may name; the built-in ones need agents of their names."""
        return MappingProxyType(builtin_pipelines(self._agents) | self._added_pipelines)

    def add_agent(self, agent: AgentConfig) -> Self:
        """Make an agent known; raises ConfigError if its name is taken."""
        if agent.name in self._agents:
            raise ConfigError(
                f"agent {agent.name!r} exists already. Give this one another name.", param="agent"
            )
        self._agents[agent.name] = agent
        return self

    def add_default_agents(self) -> Self:
        """Add the shipped agents; one that was added before under such a name stays."""
        for agent in default_agents():
            self._agents.setdefault(agent.name, agent)
        return self

    def add_pipeline(self, spec: PipelineSpec) -> Self:
        """Make a pipeline known by its name; its agents are looked up when it runs."""
        if spec.name in (*BUILTIN_NAMES, AUTO) or spec.name in self._added_pipelines:
            raise ConfigError(
                f"pipeline {spec.name!r} exists already. Give this one another name.",
                param="pipeline",
            )
        self._added_pipelines[spec.name] = spec
        return self

    def add_tool(self, tool: Tool) -> Self:
        """Make a tool known, for requests that enable it; ConfigError if its name is taken."""
        self._tools.add(tool)
        return self

    @property
    def tools(self) -> ToolRegistry:
        """What ``enable_tools`` may name: the shipped tools and those that were added."""
        return self._tools

    def load_external_lora(
        self, name: str, hf_path: str, *, revision: str | None = None, pinned: bool = False
    ) -> Self:
        """Make a LoRA adapter known by ``name``, for agents and for requests.

        ``hf_path`` is a local folder, or ``owner/name`` of the hub, of which ``revision`` may be
        pinned. It is brought to the device when it is used; with ``pinned`` at once, and it stays.
        Raises AdapterError when it is missing, broken, made for another base model, or when the
        name is in use; HubError when the hub does not hand it out.
        """
        fields = {"name": name, "path": str(hf_path), "revision": revision, "pinned": pinned}
        self._background.run(self._library.load(validated(AdapterSource, fields)))
        return self

    def load_from_registry(self, name: str, *, pinned: bool = False) -> Self:
        """Load an adapter of the registry. NotFoundError; AdapterError for another base model."""
        self._background.run(self._library.load_from_registry(name, pinned=pinned))
        return self

    def merge_loras(
        self,
        name: str,
        adapters: Mapping[str, float],
        *,
        output: Path | str,
        options: MergeOptions,
    ) -> Self:
        """Merge loaded adapters, by name and weight, into the new folder ``output``; load it.

        ``options`` say how: ``MergeOptions(MergeMethod.SVD, rank=32)``. Raises NotFoundError for an
        adapter that is not loaded, ConfigError or AdapterError for what cannot be merged.
        """
        self._background.run(self._library.merge(name, adapters, Path(output), options))
        return self

    def unload_lora(self, name: str) -> Self:
        """Forget an adapter; answers under way that use it finish first. NotFoundError."""
        self._background.run(self._library.unload(name))
        return self

    @property
    def adapters(self) -> list[AdapterInfo]:
        """The loaded adapters, and where each is."""
        return self._background.run(self._library.loaded())

    @property
    def registry(self) -> AdapterRegistry:
        """The adapters that can be loaded by name alone."""
        return self._library.registry

    def run(
        self,
        question: str,
        *,
        pipeline: PipelineChoice = DEFAULT_PIPELINE,
        mode: Mode | str = Mode.LATENT,
        **options: Any,
    ) -> Result:
        """Answer ``question``; ``pipeline`` is a name, a spec, or agents to run one by one, or
        "auto": the question's domain then says who answers (``result.routing``).

        ``options`` are the other fields of AskRequest. Raises NotFoundError for an unknown
        pipeline or agent, ConfigError for any other option, ContextLengthError for what does not
        fit, EngineError if the engine cannot serve.
        """
        return self._background.run(self.arun(question, pipeline=pipeline, mode=mode, **options))

    async def arun(
        self,
        question: str,
        *,
        pipeline: PipelineChoice = DEFAULT_PIPELINE,
        mode: Mode | str = Mode.LATENT,
        **options: Any,
    ) -> Result:
        """``run`` for callers with an event loop; cancelling it frees everything."""
        return await _answer(self._begin(question, pipeline, mode, options))

    def stream(
        self,
        question: str,
        *,
        pipeline: PipelineChoice = DEFAULT_PIPELINE,
        mode: Mode | str = Mode.LATENT,
        **options: Any,
    ) -> Iterator[Event]:
        """The events of a run, as they happen; the last is AnswerDone. Wrong input raises at once.

        Closing the iterator ends the run.
        """
        return self._background.iterate(self._begin(question, pipeline, mode, options))

    def astream(
        self,
        question: str,
        *,
        pipeline: PipelineChoice = DEFAULT_PIPELINE,
        mode: Mode | str = Mode.LATENT,
        **options: Any,
    ) -> AsyncGenerator[Event, None]:
        """``stream`` for callers with an event loop."""
        return self._begin(question, pipeline, mode, options)

    def run_many(
        self,
        questions: Sequence[str],
        *,
        pipeline: PipelineChoice = DEFAULT_PIPELINE,
        mode: Mode | str = Mode.LATENT,
        **options: Any,
    ) -> list[Result]:
        """Answer all questions at the same time, batched by the engine; results in their order.

        The first question that fails ends the others, and its error is raised.
        """
        return self._background.run(
            self.arun_many(questions, pipeline=pipeline, mode=mode, **options)
        )

    async def arun_many(
        self,
        questions: Sequence[str],
        *,
        pipeline: PipelineChoice = DEFAULT_PIPELINE,
        mode: Mode | str = Mode.LATENT,
        **options: Any,
    ) -> list[Result]:
        """``run_many`` for callers with an event loop."""
        if isinstance(questions, str):
            raise ConfigError(
                "questions is one string; it must be a list of them. Use run for one question.",
                param="questions",
            )
        begun = [self._begin(question, pipeline, mode, options) for question in questions]
        try:
            async with asyncio.TaskGroup() as group:
                answers = [group.create_task(_answer(one)) for one in begun]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [answer.result() for answer in answers]

    def stats(self) -> EngineStats:
        """What the engine holds and has done."""
        return self._background.run(self._engine.stats())

    def _begin(
        self,
        question: str,
        pipeline: PipelineChoice,
        mode: Mode | str,
        options: Mapping[str, Any],
    ) -> AsyncGenerator[Event, None]:
        """A run that is checked and not started."""
        known = self.pipelines
        is_auto = isinstance(pipeline, str) and pipeline == AUTO
        spec = None if is_auto else find_pipeline(pipeline, known, self._agents)
        name = AUTO if spec is None else spec.name
        fields = {"question": question, "pipeline": name, "mode": mode, **options}
        request = validated(AskRequest, fields)
        reasoning = LocalReasoning(
            self._engine, self._worker, self._agents, known, spec, lambda: self._reading
        )
        return self._answerer.run(reasoning, request)

    @cached_property
    def _reading(self) -> Reading:
        return Reading(token_spans_of(self._engine.tokenizer), self._engine.max_positions)


async def _answer(events: AsyncGenerator[Event, None]) -> Result:
    async with aclosing(events):
        return await result_of(events)


def _merged(base: EngineConfig, **given: Any) -> EngineConfig:
    chosen = {name: value for name, value in given.items() if value is not None}
    return validated(EngineConfig, base.model_dump() | chosen)


def _check_latent_steps(latent_steps: int, max_latent_steps: int) -> None:
    if type(latent_steps) is not int or not 0 <= latent_steps <= max_latent_steps:
        raise ConfigError(
            f"latent_steps is {latent_steps!r}; allowed are 0 to {max_latent_steps}, in whole "
            "steps. Lower it, or raise max_latent_steps in engine_config.",
            param="latent_steps",
        )
