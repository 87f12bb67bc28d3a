"""Who thinks, who writes, how long and with which sampling."""

import pytest

from latentmas_core.agents.config import AgentConfig
from latentmas_core.agents.instructions import Situation
from latentmas_core.pipelines.assignment import assign_speaker, assign_thinker, derive_seed
from latentmas_core.pipelines.spec import NodeSpec
from latentmas_core.request import ReasonRequest

FIRST = NodeSpec(name="first", agent="planner")
LATER = NodeSpec(name="later", agent="planner", after=("first",))


def request(**fields):
    return ReasonRequest(question="Why?", **fields)


def think(node=LATER, *, own_steps=None, **fields):
    agent = AgentConfig.planner(latent_steps=own_steps)
    return assign_thinker(agent, node, request(**fields), default_latent_steps=7)


def speak(node=LATER, *, own_steps=None, **fields):
    return assign_speaker(AgentConfig.judger(latent_steps=own_steps), node, request(**fields))


@pytest.mark.parametrize("handoff", ["kv", "embeddings"])
def test_latent_thinker_writes_nothing_and_hands_over_its_memory(handoff):
    assignment = think(handoff=handoff)
    assert assignment.sampling is None
    assert assignment.keeps_memory
    assert assignment.num_latent_steps == 7


def test_hand_off_by_text_thinks_and_writes():
    assignment = think(handoff="text")
    assert assignment.num_latent_steps == 7
    assert assignment.sampling.max_tokens == 400
    assert not assignment.keeps_memory


def test_text_mode_only_writes():
    assignment = think(mode="text", own_steps=9, latent_steps=8)
    assert assignment.num_latent_steps == 0
    assert assignment.sampling is not None
    assert not assignment.keeps_memory


@pytest.mark.parametrize(
    ("agent_steps", "request_steps", "expected"),
    [(None, None, 7), (3, None, 3), (3, 5, 5), (0, None, 0), (3, 0, 0)],
)
def test_steps_of_the_request_go_before_the_agents_before_the_default(
    agent_steps, request_steps, expected
):
    assignment = think(own_steps=agent_steps, latent_steps=request_steps)
    assert assignment.num_latent_steps == expected


def test_speaker_takes_steps_only_if_its_own_config_says_so():
    assert speak(latent_steps=9).num_latent_steps == 0
    assert speak(own_steps=4, latent_steps=9).num_latent_steps == 4
    assert speak(own_steps=4, mode="text").num_latent_steps == 0


@pytest.mark.parametrize(
    ("node", "fields", "thinks", "speaks"),
    [
        (FIRST, {}, Situation.FIRST, Situation.SINGLE),
        (LATER, {}, Situation.LATENT, Situation.ANSWER),
        (LATER, {"handoff": "embeddings"}, Situation.LATENT, Situation.ANSWER),
        (LATER, {"handoff": "text"}, Situation.TEXT, Situation.TEXT),
        (LATER, {"mode": "text"}, Situation.TEXT, Situation.TEXT),
        (FIRST, {"mode": "single"}, Situation.FIRST, Situation.SINGLE),
    ],
)
def test_situation_follows_from_what_is_handed_over(node, fields, thinks, speaks):
    assert think(node, **fields).situation is thinks
    assert speak(node, **fields).situation is speaks


def test_sampling_is_the_agents_unless_the_request_says_otherwise():
    own = speak().sampling
    assert (own.temperature, own.top_p, own.top_k, own.max_tokens) == (0.2, 0.9, None, 500)
    chosen = speak(temperature=0.0, top_p=0.5, top_k=4, max_tokens=8, ignore_eos=True).sampling
    assert (chosen.temperature, chosen.top_p, chosen.top_k, chosen.max_tokens) == (0.0, 0.5, 4, 8)
    assert chosen.ignore_eos
    assert chosen.is_greedy


def test_stop_strings_end_the_answer_and_nothing_else():
    assert speak(stop=("END",)).sampling.stop == ("END",)
    assert think(mode="text", stop=("END",)).sampling.stop == ()


def test_seeds_differ_between_nodes_and_repeat_between_runs():
    assert think(mode="text", seed=1).sampling.seed == derive_seed(1, "later")
    assert len({derive_seed(seed, node) for seed in (1, 2) for node in ("a", "b")}) == 4
    assert speak().sampling.seed is None
