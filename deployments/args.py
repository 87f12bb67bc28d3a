"""The ``args`` of serve_config.yaml: what the application is built from, validated at once.

Validated where the application is built: on the head of the cluster, or by ``latentmas validate``.
What is found on disk is checked there too, unless the validation's context says otherwise.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WrapValidator,
)

from cluster.config import GroupConfig, GroupsConfig
from cluster.problem import Problem, problems_of
from deployments.access import AccessConfig
from deployments.api.keys import read_keys
from deployments.context import ServiceContext, tools_of
from latentmas_core.agents.assistant import ASSISTANT, assistant_agent
from latentmas_core.agents.config import AgentConfig, default_agents
from latentmas_core.agents.presets import PRESETS, preset_values
from latentmas_core.config import EngineConfig, FrozenModel
from latentmas_core.context.conversations.config import ConversationsConfig
from latentmas_core.errors import ConfigError, LatentMASError
from latentmas_core.lora.library import AdapterSource
from latentmas_core.lora.registry import read_entries
from latentmas_core.names import Name
from latentmas_core.pipelines.builtin import CHAT, builtin_pipelines, chat_pipeline
from latentmas_core.pipelines.spec import PipelineSpec
from latentmas_core.request import DEFAULT_PIPELINE
from latentmas_core.routing.domains import AUTO
from latentmas_core.validation import validated

WITHOUT_PATHS = {"checks_paths": False}  # a context: the paths are those of another machine


def _checks_paths(info: ValidationInfo) -> bool:
    return (info.context or {}).get("checks_paths", True) is True


def _existing_folder(path: Path, info: ValidationInfo) -> Path:
    if _checks_paths(info) and not path.is_dir():
        raise ValueError(f"adapter root {str(path)!r} is no folder here. Make it, or correct it")
    return path


def _readable_registry(path: Path, info: ValidationInfo) -> Path:
    if _checks_paths(info):
        try:
            read_entries(path)
        except ConfigError as error:
            raise ValueError(error.message) from None
    return path


def _existing_source(source: AdapterSource | str, info: ValidationInfo) -> AdapterSource | str:
    """``owner/name`` may be of the hub; whatever else is a path has to be there."""
    path = source.path if isinstance(source, AdapterSource) else "of/the-registry"
    is_of_the_hub = path.count("/") == 1 and path[0] not in "/.~"
    if _checks_paths(info) and not is_of_the_hub and not Path(path).expanduser().is_dir():
        raise ValueError(
            f"adapter path {path!r} is no folder here, and a repository of the hub is called "
            "owner/name. Correct it"
        )
    return source


def _shipped_or_declared(value: Any, validate: Callable[[Any], Any]) -> Any:
    """A shipped name without a role is that agent, with the fields that are given changed."""
    name = value.get("name") if isinstance(value, Mapping) else None
    if isinstance(name, str) and "role" not in value:
        if name in PRESETS:
            value = preset_values(name) | value
        elif name == ASSISTANT:
            value = assistant_agent().model_dump() | value
    return _in_plain_words(value, validate)


def _in_plain_words(value: Any, validate: Callable[[Any], Any]) -> Any:
    """Our own errors as pydantic's, so that it goes on and finds what else is wrong."""
    try:
        return validate(value)
    except LatentMASError as error:
        raise ValueError(error.message) from None


def _readable_keys(access: AccessConfig, info: ValidationInfo) -> AccessConfig:
    if _checks_paths(info) and access.keys_file is not None:
        try:
            read_keys(access.keys_file)
        except ConfigError as error:
            raise ValueError(error.message) from None
    return access


def _importable_tools(context: ServiceContext, info: ValidationInfo) -> ServiceContext:
    if _checks_paths(info):
        try:
            tools_of(context)
        except ConfigError as error:
            raise ValueError(error.message) from None
    return context


AdapterToLoad = Annotated[AdapterSource | Name, AfterValidator(_existing_source)]
Registry = Annotated[Path, AfterValidator(_readable_registry)]
AdapterRoot = Annotated[Path, AfterValidator(_existing_folder)]
CheckedAccess = Annotated[AccessConfig, AfterValidator(_readable_keys)]
CheckedContext = Annotated[ServiceContext, AfterValidator(_importable_tools)]


class AdaptersConfig(FrozenModel):
    """Which adapters a service has, and who may change that while it runs."""

    load: tuple[AdapterToLoad, ...] = ()
    """Loaded by every replica when it starts: names of the registry, or a name with a path."""
    registries: tuple[Registry, ...] = ()
    """YAML files of adapters that can be loaded by their names, on top of the shipped ones; a later
    entry replaces one of its name."""
    admin: bool = False
    """Whether adapters may be loaded and unloaded over HTTP."""
    roots: tuple[AdapterRoot, ...] = ()
    """Folders that clients may load from; links out of them are refused."""
    allow_hub: bool = False
    """Whether clients may load from the hub."""

    @property
    def loaded_names(self) -> tuple[str, ...]:
        return tuple(one.name if isinstance(one, AdapterSource) else one for one in self.load)


class AppArgs(GroupsConfig):
    """Groups, the engine options they share, and agents and pipelines beyond the shipped ones.

    An agent or pipeline of a shipped name replaces it; an agent that is declared without a role
    changes the shipped one only in what it declares. Every agent of every pipeline has to be
    hosted by a group; shipped pipelines whose agents are not hosted are not offered. The assistant,
    for plain chat, is hosted without being told, where the default pipeline's speaker is.
    """

    # The URL of a database may hold a password.
    model_config = ConfigDict(hide_input_in_errors=True)

    engine: EngineConfig = EngineConfig()
    """What all groups' engines have in common; a group's own `engine` goes before it."""
    latent_steps: int = Field(default=15, ge=0)
    """Latent steps of agents that think and do not say how many; at most `max_latent_steps` of
    their engine. More take longer; measure whether they answer better (docs/quality.md)."""
    agents: tuple[Annotated[AgentConfig, WrapValidator(_shipped_or_declared)], ...] = ()
    """Agents beyond the shipped ones, or a shipped one with some of its fields changed."""
    pipelines: tuple[Annotated[PipelineSpec, WrapValidator(_in_plain_words)], ...] = ()
    """Pipelines beyond the shipped ones."""
    adapters: AdaptersConfig = AdaptersConfig()
    """Which LoRA adapters there are, and who may change that while the service runs."""
    access: CheckedAccess = AccessConfig()
    """Keys, limits, and which web pages may call. Set it before others reach the port."""
    conversations: ConversationsConfig | None = None
    """Where conversations are kept; null keeps none, `{}` keeps them in a file of SQLite."""
    context: CheckedContext = ServiceContext()
    """Documents and tools that may belong to a question."""
    max_ongoing_requests: int = Field(default=256, ge=1)
    """Requests that one replica of the ingress works on at a time. Raise it where many clients
    stream for long."""
    max_queued_requests: int = Field(default=1024, ge=1)
    """Requests that wait in front of the ingress, in each proxy; more are refused with 503."""
    request_timeout_s: float = Field(default=540.0, gt=0)
    """The most seconds that a request may take, whatever it says itself. Keep it below
    `http_options.request_timeout_s` of Serve."""
    max_stage_attempts: int = Field(default=4, ge=1)
    """How often a stage is begun whose replica is lost; 1 never tries again."""
    max_transfer_bytes: int | None = Field(default=None, ge=1)
    """Bytes of memory that may be on their way between groups; above it new requests wait. null:
    half of the cluster's object stores."""

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from self._names_that_are_taken()
        yield from self._unknown_agents()
        yield from self._pipelines_without_hosts()
        yield from self._unknown_resident_adapters()
        for i, group in enumerate(self.groups):
            wrong = list(self._engine_problems(group, f"groups[{i}].engine"))
            yield from wrong or self._too_many_steps(group, f"groups[{i}]")

    def _names_that_are_taken(self) -> Iterator[Problem]:
        for kind, declared in (("agent", self.agents), ("pipeline", self.pipelines)):
            names = [one.name for one in declared]
            for i, name in enumerate(names):
                if name in names[:i]:
                    yield Problem(
                        f"{kind}s[{i}].name",
                        f"{kind} {name!r} is declared twice; names are unique. Rename one",
                    )
        for i, spec in enumerate(self.pipelines):
            if spec.name == AUTO:
                yield Problem(
                    f"pipelines[{i}].name",
                    f"pipeline {AUTO!r} stands for whichever the question chooses. Rename it",
                )

    def _unknown_agents(self) -> Iterator[Problem]:
        known = self.known_agents
        for i, group in enumerate(self.groups):
            for j, agent in enumerate(group.agents):
                if agent not in known:
                    yield Problem(
                        f"groups[{i}].agents[{j}]",
                        f"group {group.name!r} hosts unknown agent {agent!r}; known are "
                        f"{', '.join(sorted(known))}. Declare it under agents",
                    )

    def _pipelines_without_hosts(self) -> Iterator[Problem]:
        for i, spec in enumerate(self.pipelines):
            for j, node in enumerate(spec.nodes):
                if node.agent not in self.group_of:
                    yield Problem(
                        f"pipelines[{i}].nodes[{j}]",
                        f"pipeline {spec.name!r} needs agent {node.agent!r}, which no group hosts. "
                        "Add it to the agents of a group",
                    )

    def _unknown_resident_adapters(self) -> Iterator[Problem]:
        loaded = self.adapters.loaded_names
        for i, group in enumerate(self.groups):
            for j, name in enumerate(group.resident_adapters):
                if name not in loaded:
                    yield Problem(
                        f"groups[{i}].resident_adapters[{j}]",
                        f"adapter {name!r} is not loaded at the start; loaded are "
                        f"{', '.join(loaded) or 'none'}. Add it to adapters.load",
                    )

    def _engine_problems(self, group: GroupConfig, path: str) -> Iterator[Problem]:
        values = self._engine_values(group)
        try:
            EngineConfig.model_validate(values)
        except ValidationError as error:
            for problem in problems_of(error, values, path=path):
                yield Problem(problem.path, f"of group {group.name!r} {problem.message}")

    def _too_many_steps(self, group: GroupConfig, path: str) -> Iterator[Problem]:
        limit = self.engine_of(group).max_latent_steps
        known = self.known_agents
        for j, name in enumerate(group.agents):
            own = known[name].latent_steps if name in known else None
            steps = self.latent_steps if own is None else own
            if steps > limit:
                yield Problem(
                    f"{path}.agents[{j}]",
                    f"latent_steps is {steps} for agent {name!r}; max_latent_steps of the engine "
                    f"of group {group.name!r} is {limit}. Lower it or raise that",
                )

    @property
    def known_agents(self) -> dict[str, AgentConfig]:
        shipped = (*default_agents(), assistant_agent())
        return {agent.name: agent for agent in (*shipped, *self.agents)}

    @property
    def group_of(self) -> dict[str, str]:
        """Maps each agent, the assistant too, to the name of the group that hosts it."""
        told = super().group_of
        return {ASSISTANT: self._assistants_group(told)} | told

    def _assistants_group(self, told: Mapping[str, str]) -> str:
        specs = builtin_pipelines() | {spec.name: spec for spec in self.pipelines}
        return told.get(specs[DEFAULT_PIPELINE].speaker.agent, self.groups[0].name)

    @property
    def offered_pipelines(self) -> dict[str, PipelineSpec]:
        """The pipelines whose agents are all hosted."""
        told = super().group_of
        # The assistant is nobody's turn in a sequence, unless it is an agent of the operator's own.
        own = {agent.name for agent in self.agents}
        hosted = [a for a in self.known_agents if a in told and (a != ASSISTANT or a in own)]
        shipped = {
            name: spec
            for name, spec in builtin_pipelines(hosted).items()
            if all(node.agent in told for node in spec.nodes)
        }
        shipped[CHAT] = chat_pipeline()
        return shipped | {spec.name: spec for spec in self.pipelines}

    def agents_of(self, group: GroupConfig) -> dict[str, AgentConfig]:
        """Those that a group hosts, the assistant behind those that it is told of."""
        known = self.known_agents
        is_told = ASSISTANT in group.agents or self.group_of[ASSISTANT] != group.name
        names = group.agents if is_told else (*group.agents, ASSISTANT)
        return {name: known[name] for name in names}

    def engine_of(self, group: GroupConfig) -> EngineConfig:
        """The common engine options with the group's own on top."""
        return validated(EngineConfig, self._engine_values(group))

    def _engine_values(self, group: GroupConfig) -> dict[str, Any]:
        place: dict[str, Any] = {"num_threads": group.num_threads}
        if group.num_gpus > 0:
            place["num_devices"] = max(1, int(group.num_gpus))
            place["device_memory_share"] = group.device_memory_share
        return place | self.engine.model_dump(exclude_unset=True) | group.engine
