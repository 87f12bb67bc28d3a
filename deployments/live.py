"""What may change while replicas run: Serve's ``user_config`` of a group.

    deployments:
      - name: thinkers
        user_config:
          latent_steps: 12
          agents: {planner: {temperature: 0.2, system_prompt: "..."}}
          adapters: {load: [{name: mine, path: /adapters/mine}]}

Fields of agents that are left out are those of the args. Knows no Ray.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from latentmas_core.agents.config import AgentConfig
from latentmas_core.config import FrozenModel
from latentmas_core.errors import ConfigError
from latentmas_core.lora.library import AdapterSource
from latentmas_core.names import Name
from latentmas_core.pipelines.stage_worker import Roster
from latentmas_core.validation import validated


class LiveAdapters(FrozenModel):
    """Adapters that a group loads besides those of the args."""

    load: tuple[AdapterSource | Name, ...] = ()
    """As `adapters.load` of the args; taken out of it again, an adapter is unloaded."""


class LiveConfig(FrozenModel):
    """What a group has other than the args say."""

    latent_steps: int | None = Field(default=None, ge=0)
    """Latent steps of the group's agents that do not say how many; null: as in the args."""
    agents: dict[Name, dict[str, Any]] = Field(default_factory=dict)
    """Maps agents of the group to the fields of theirs that change; what is left out is as in the
    args."""
    adapters: LiveAdapters = LiveAdapters()
    """What this group loads besides the adapters of the args."""

    def applied_to(self, roster: Roster, *, max_latent_steps: int) -> Roster:
        """A new roster. ConfigError for an agent that is not in it, or a wrong field of one."""
        changed = {name: _changed(roster.agents, name, self.agents[name]) for name in self.agents}
        steps = self.latent_steps
        new = Roster(
            {**roster.agents, **changed},
            roster.default_latent_steps if steps is None else steps,
        )
        for agent in new.agents.values():
            _check_steps(agent, new.default_latent_steps, max_latent_steps)
        return new


def read_live_config(user_config: Mapping[str, Any]) -> LiveConfig:
    """ConfigError names the field that is wrong."""
    return validated(LiveConfig, user_config)


def _changed(
    agents: Mapping[str, AgentConfig], name: str, fields: Mapping[str, Any]
) -> AgentConfig:
    if name not in agents:
        raise ConfigError(
            f"user_config changes agent {name!r}, which this group does not host; it hosts "
            f"{', '.join(agents)}.",
            param=f"agents.{name}",
        )
    if fields.get("name", name) != name:
        raise ConfigError(
            f"user_config renames agent {name!r} to {fields['name']!r}; names of agents stay as "
            "they are while replicas run. Change the args instead.",
            param=f"agents.{name}.name",
        )
    try:
        return validated(AgentConfig, agents[name].model_dump() | dict(fields))
    except ConfigError as error:
        raise ConfigError(
            f"user_config of agent {name!r}: {error.message}", param=f"agents.{name}.{error.param}"
        ) from None


def _check_steps(agent: AgentConfig, default_steps: int, limit: int) -> None:
    steps = default_steps if agent.latent_steps is None else agent.latent_steps
    if steps > limit:
        raise ConfigError(
            f"latent_steps is {steps} for agent {agent.name!r}; max_latent_steps of its engine is "
            f"{limit}. Lower it, or raise that in the args.",
            param="latent_steps",
        )
