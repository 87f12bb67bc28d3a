"""``pipeline="auto"`` in one process: who answers, and where that is said."""

import pytest
from transformers import AutoTokenizer

from latentmas_core import AgentConfig, ConfigError, LatentMASSystem, NotFoundError, PipelineSpec
from latentmas_core.events import AnswerDone, Routed, StageStarted
from tests.pipelines.fake_engine import FakeEngine

MEDICAL = "Which antibiotic is given for pneumonia?"
GENERAL = "Who wrote The Old Man and the Sea?"


@pytest.fixture
def system(tiny_llama):
    engine = FakeEngine(AutoTokenizer.from_pretrained(tiny_llama))
    with LatentMASSystem.from_engine(engine, latent_steps=2) as system:
        yield system.add_default_agents()
    engine.check_idle()


def test_expert_answers_and_the_result_says_why(system):
    result = system.run(MEDICAL, pipeline="auto")
    assert [agent.name for agent in result.agents] == ["medical", "judger"]
    assert result.pipeline == result.routing.pipeline == "auto.medical"
    assert result.routing.experts == ("medical",)
    assert "antibiotic" in result.routing.evidence


def test_decision_is_told_before_anything_starts(system):
    events = list(system.stream(MEDICAL, pipeline="auto"))
    assert isinstance(events[0], Routed)
    assert isinstance(events[1], StageStarted)
    assert isinstance(events[-1], AnswerDone)
    assert events[-1].result.routing == events[0].decision


def test_pipeline_that_was_named_is_not_routed(system):
    assert system.run(MEDICAL).routing is None
    assert not any(isinstance(event, Routed) for event in system.stream(MEDICAL))


def test_every_question_of_many_is_routed_by_itself(system):
    results = system.run_many([MEDICAL, GENERAL], pipeline="auto")
    assert [result.pipeline for result in results] == ["auto.medical", "hierarchical"]


@pytest.mark.parametrize("mode", ["latent", "text", "single"])
def test_routing_works_in_every_mode(system, mode):
    result = system.run(MEDICAL, pipeline="auto", mode=mode)
    names = ["medical"] if mode == "single" else ["medical", "judger"]
    assert [agent.name for agent in result.agents] == names


def test_without_agents_there_is_nothing_to_choose(tiny_llama):
    engine = FakeEngine(AutoTokenizer.from_pretrained(tiny_llama))
    with (
        LatentMASSystem.from_engine(engine) as system,
        pytest.raises(NotFoundError, match="Add agents"),
    ):
        system.run(GENERAL, pipeline="auto")


def test_name_is_taken(system):
    with pytest.raises(ConfigError, match="'auto' exists already"):
        system.add_pipeline(PipelineSpec.chain("auto", ["planner"]))


def test_pipeline_of_the_users_own_with_that_expert_is_taken(system):
    system.add_agent(AgentConfig(name="poet", role="rhymes"))
    system.add_pipeline(PipelineSpec.chain("clinic", ["medical", "judger"]))
    assert system.run(MEDICAL, pipeline="auto").pipeline == "clinic"
