"""Agents: the shipped numbers, overrides, and what is refused."""

import pickle

import pytest
from pydantic import ValidationError

from latentmas_core.agents.config import LORA_TARGETS, AgentConfig, default_agents
from latentmas_core.agents.instructions import Instructions, Situation
from latentmas_core.agents.presets import PRESETS
from latentmas_core.errors import ConfigError, NotFoundError

PRODUCT_TABLE = [
    ("planner", "problem decomposition", 32, 0.7, 400),
    ("critic", "reasoning evaluation", 32, 0.5, 350),
    ("refiner", "solution refinement", 48, 0.6, 450),
    ("judger", "final decision", 64, 0.2, 500),
    ("medical", "clinical expertise", 64, 0.4, 600),
    ("math", "quantitative reasoning", 48, 0.3, 500),
    ("coder", "code generation", 64, 0.4, 800),
]


@pytest.mark.parametrize(("name", "role", "rank", "temperature", "max_tokens"), PRODUCT_TABLE)
def test_preset_has_the_numbers_of_the_product(name, role, rank, temperature, max_tokens):
    agent = getattr(AgentConfig, name)()
    assert (agent.name, agent.role) == (name, role)
    assert (agent.lora_rank, agent.lora_alpha) == (rank, 2 * rank)
    assert (agent.temperature, agent.top_p, agent.max_tokens) == (temperature, 0.9, max_tokens)
    assert agent.lora_targets == LORA_TARGETS
    assert agent.latent_steps is None


def test_default_agents_are_all_presets_in_order():
    assert [agent.name for agent in default_agents()] == list(PRESETS)
    assert list(PRESETS)[: len(PRODUCT_TABLE)] == [row[0] for row in PRODUCT_TABLE]


def test_preset_keeps_its_words_under_another_name():
    renamed = AgentConfig.critic(name="sceptic", temperature=0.0, latent_steps=3)
    assert (renamed.name, renamed.temperature, renamed.latent_steps) == ("sceptic", 0.0, 3)
    assert renamed.instructions == AgentConfig.critic().instructions


def test_agent_of_the_users_own_needs_only_name_and_role():
    agent = AgentConfig(name="poet", role="rhymes")
    assert "{role}" in agent.system_prompt
    assert agent.instructions.template_for(Situation.FIRST) == "{question}"


def test_unknown_preset_names_the_known_ones():
    with pytest.raises(NotFoundError, match=r"'wizard' does not exist.*planner, critic"):
        AgentConfig.preset("wizard")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"temprature": 1.0}, "unknown field 'temprature'.*temperature"),
        ({"temperature": 3.0}, r"temperature got 3.0: .*less than or equal to 2"),
        ({"latent_steps": 513}, "latent_steps got 513: .*512"),
        ({"max_tokens": 0}, "max_tokens got 0"),
        ({"name": "a b"}, "name got 'a b'"),
        ({"role": ""}, "role got ''"),
    ],
)
def test_wrong_override_is_named_with_its_value_and_limit(overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        AgentConfig.planner(**overrides)
    assert caught.value.param == next(iter(overrides))


def test_wrong_field_in_the_constructor_is_refused():
    with pytest.raises(ValidationError):
        AgentConfig(name="poet", role="rhymes", top_p=0.0)


def test_agent_travels_by_pickle():
    agent = AgentConfig.coder(latent_steps=4)
    assert pickle.loads(pickle.dumps(agent)) == agent


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ({"first": "Think."}, r"lack \{question\}"),
        ({"text": "{question}"}, r"lack \{transcript\}"),
        ({"single": "{transcript}"}, r"lack \{question\}"),
        ({"latent": "  "}, "'latent' is empty"),
    ],
)
def test_instructions_that_hide_what_matters_are_refused(templates, message):
    complete = {"first": "{question}", "latent": "Go on.", "text": "{transcript} {question}"}
    with pytest.raises(ConfigError, match=message):
        Instructions.model_validate(complete | templates)
