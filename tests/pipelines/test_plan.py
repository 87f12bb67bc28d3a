"""Plans: neighbours of one group become one stage, and nothing else does."""

import pytest

from latentmas_core.errors import NotFoundError
from latentmas_core.latent.memory import MergeRule
from latentmas_core.pipelines.builtin import builtin_pipelines
from latentmas_core.pipelines.plan import plan
from latentmas_core.pipelines.spec import PipelineSpec
from latentmas_core.request import Mode
from tests.pipelines.test_spec import make_spec

HIERARCHICAL = builtin_pipelines()["hierarchical"]
PARALLEL = builtin_pipelines()["parallel"]


def plan_of(spec, groups=None):
    return plan(spec, groups or dict.fromkeys(spec.agents, "one"))


def names(laid_out):
    return [stage.name for stage in laid_out.stages]


def test_chain_in_one_group_is_one_stage():
    laid_out = plan_of(HIERARCHICAL)
    (stage,) = laid_out.stages
    assert [node.agent for node in stage.nodes] == ["planner", "critic", "refiner", "judger"]
    assert stage.is_speaking
    assert stage.speaker == HIERARCHICAL.speaker
    assert laid_out.num_hops == 0


def test_chain_over_two_groups_is_cut_where_the_group_changes():
    groups = {"planner": "a", "critic": "a", "refiner": "b", "judger": "b"}
    laid_out = plan_of(HIERARCHICAL, groups)
    assert names(laid_out) == ["planner+critic", "refiner+judger"]
    assert laid_out.stages[1].parents == ("planner+critic",)
    assert [stage.is_speaking for stage in laid_out.stages] == [False, True]
    assert laid_out.num_hops == 1


def test_chain_that_alternates_between_groups_is_never_fused():
    groups = {"planner": "a", "critic": "b", "refiner": "a", "judger": "b"}
    assert len(plan_of(HIERARCHICAL, groups).stages) == 4
    assert plan_of(HIERARCHICAL, groups).num_hops == 3


def test_parallel_experts_stay_apart_even_in_one_group():
    laid_out = plan_of(PARALLEL)
    assert names(laid_out) == ["medical", "math", "coder", "judger"]
    assert laid_out.stages[-1].parents == ("medical", "math", "coder")
    assert laid_out.num_hops == 0


def test_branches_are_fused_inside_but_not_at_their_ends():
    spec = make_spec(root=(), a=("root",), a2=("a",), b=("root",), end=("a2", "b"), last=("end",))
    laid_out = plan_of(spec)
    assert sorted(names(laid_out)) == ["a+a2", "b", "end+last", "root"]
    assert laid_out.stages[0].name == "root"
    assert laid_out.stages[-1].name == "end+last"
    assert laid_out.stages[-1].parents == ("a+a2", "b")


def test_stages_come_parents_first_whatever_the_declaration():
    spec = make_spec(d=("c", "b"), c=("b",), b=("a",), a=())
    laid_out = plan_of(spec)
    seen = set()
    for stage in laid_out.stages:
        assert seen.issuperset(stage.parents)
        seen.add(stage.name)


def test_ancestors_are_all_that_lead_there_once_and_in_order():
    laid_out = plan_of(make_spec(a=(), b=("a",), c=("a",), d=("b", "c"), e=("d", "a")))
    last = laid_out.stages[-1]
    assert [stage.name for stage in laid_out.ancestors_of(last)] == names(laid_out)[:-1]
    assert laid_out.ancestors_of(laid_out.stages[0]) == ()


def test_speaker_alone_reads_nothing():
    alone = plan_of(PARALLEL).in_mode(Mode.SINGLE)
    (stage,) = alone.stages
    assert (stage.name, stage.parents, stage.nodes[0].after) == ("judger", (), ())
    assert stage.speaker is stage.nodes[0]
    assert alone.pipeline == "parallel"


def test_merge_rule_of_the_pipeline_reaches_its_stages():
    spec = PipelineSpec.parallel("p", ["a", "b"], "c", merge=MergeRule.CONSECUTIVE)
    assert {stage.merge for stage in plan_of(spec).stages} == {MergeRule.CONSECUTIVE}


def test_agent_without_a_group_is_named():
    with pytest.raises(NotFoundError, match=r"no group hosts agent 'refiner'. Hosted: planner"):
        plan(HIERARCHICAL, {"planner": "a", "critic": "a"})
