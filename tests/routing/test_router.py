"""Which pipeline a question gets, from what is there, and what is said of that."""

import pytest

from latentmas_core.errors import NotFoundError
from latentmas_core.pipelines.builtin import builtin_pipelines
from latentmas_core.pipelines.spec import PipelineSpec
from latentmas_core.request import ReasonRequest
from latentmas_core.routing.domains import Domain
from latentmas_core.routing.router import Router

ALL = ("planner", "critic", "refiner", "medical", "math", "coder", "judger")
MEDICAL = "Which antibiotic is given for pneumonia?"
MATH = "Find the derivative of x^2 + 3x."
CODE = "Why does my Python function raise a KeyError?"
REASONING = "All cats are mammals. Can we conclude that some mammals are cats?"
GENERAL = "Who wrote The Old Man and the Sea?"
MEDICAL_MATH = "A patient needs 5 mg of insulin per 10 kg; calculate the dosage: 5 * 72 / 10 = ?"
THREE = f"{MEDICAL} {MATH} {CODE}"


def route(question, agents=ALL, pipelines=None, **fields):
    known = builtin_pipelines(agents) if pipelines is None else pipelines
    return Router(known, agents).route(ReasonRequest(question=question, pipeline="auto", **fields))


@pytest.mark.parametrize(
    ("question", "domain", "expert"),
    [
        (MEDICAL, Domain.MEDICAL, "medical"),
        (MATH, Domain.MATH, "math"),
        (CODE, Domain.CODE, "coder"),
    ],
)
def test_one_clear_domain_gets_its_expert_and_the_judger(question, domain, expert):
    chosen = route(question)
    assert [(node.agent, node.after) for node in chosen.spec.nodes] == [
        (expert, ()),
        ("judger", (expert,)),
    ]
    assert (chosen.decision.domain, chosen.decision.experts) == (domain, (expert,))
    assert chosen.decision.pipeline == chosen.spec.name == f"auto.{expert}"
    assert chosen.request.pipeline == chosen.spec.name


@pytest.mark.parametrize("question", [GENERAL, REASONING])
def test_general_and_reasoning_get_the_default_pipeline(question):
    chosen = route(question)
    assert chosen.spec == builtin_pipelines()["hierarchical"]
    assert chosen.decision.experts == ("planner", "critic", "refiner")


def test_several_domains_get_their_experts_at_the_same_time():
    chosen = route(MEDICAL_MATH)
    assert {chosen.decision.domain, *chosen.decision.other_domains} == {"medical", "math"}
    assert [(node.agent, node.after) for node in chosen.spec.nodes] == [
        ("medical", ()),
        ("math", ()),
        ("judger", ("medical", "math")),
    ]


def test_pipeline_that_is_there_is_taken_before_one_is_made():
    assert route(THREE).spec == builtin_pipelines()["parallel"]
    clinic = PipelineSpec.chain("clinic", ("medical", "judger"))
    assert route(MEDICAL, pipelines={"clinic": clinic}).spec is clinic


def test_same_experts_are_the_same_pipeline_whichever_is_clearer():
    assert route(f"{MATH} {CODE} {CODE} SQL").spec.name == "auto.math.coder"
    assert route(f"{CODE} {MATH} 12 * 7 algebra").spec.name == "auto.math.coder"


def test_reason_names_the_words_that_decided_and_what_answers():
    decision = route(MEDICAL).decision
    assert (
        decision.reason == "antibiotic, pneumonia speak for medical; pipeline auto.medical answers."
    )
    assert decision.evidence == ("antibiotic", "pneumonia")
    assert "taken as general" in route(GENERAL).decision.reason


def test_expert_that_is_not_there_is_done_without_and_that_is_said():
    without = tuple(agent for agent in ALL if agent != "medical")
    chosen = route(MEDICAL, without)
    assert chosen.decision.domain is Domain.MEDICAL
    assert chosen.spec.name == chosen.decision.pipeline == "hierarchical"
    assert "medical would fit, but is not there" in chosen.decision.reason
    assert route(MEDICAL_MATH, without).decision.experts == ("math",)


def test_without_a_judger_the_expert_answers():
    chosen = route(MEDICAL, ("medical", "planner"))
    assert (chosen.spec.agents, chosen.decision.experts) == (("medical",), ("medical",))


def test_without_the_default_pipeline_another_that_can_run_is_taken():
    assert route(GENERAL, ("math", "judger")).spec.name == "sequential"


def test_nothing_to_choose_among_is_an_error():
    with pytest.raises(NotFoundError, match="Add agents") as caught:
        route(GENERAL, ())
    assert caught.value.param == "pipeline"


def test_in_mode_single_the_expert_answers_alone():
    chosen = route(MEDICAL_MATH, mode="single")
    assert chosen.spec.agents == chosen.decision.experts == (chosen.decision.domain.value,)
    assert route(GENERAL, mode="single").decision.experts == ("judger",)


def test_adapters_of_agents_that_are_not_chosen_have_nothing_to_do():
    chosen = route(MEDICAL, adapters={"medical": "mine", "math": "other"})
    assert chosen.request.adapters == {"medical": "mine"}
    with pytest.raises(NotFoundError, match="'poet'") as caught:
        route(MEDICAL, adapters={"poet": "mine"})
    assert caught.value.param == "adapters"


def test_same_question_is_always_decided_alike():
    assert len({route(THREE).decision.model_dump_json() for _ in range(5)}) == 1
