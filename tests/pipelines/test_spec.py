"""Pipelines: what they look like, and every way in which they can be wrong."""

import pytest

from latentmas_core.errors import NotFoundError, PipelineError
from latentmas_core.latent.memory import MergeRule
from latentmas_core.pipelines.builtin import builtin_pipelines, sequential_order
from latentmas_core.pipelines.spec import NodeSpec, PipelineSpec


def make_spec(**after):
    """make_spec(a=(), b=("a",)): nodes whose agents are called like them."""
    nodes = [NodeSpec(name=name, agent=name, after=parents) for name, parents in after.items()]
    return PipelineSpec(name="test", nodes=tuple(nodes))


def test_chain_reads_from_one_to_the_next():
    spec = PipelineSpec.chain("c", ["planner", "critic", "judger"])
    assert [node.after for node in spec.nodes] == [(), ("planner",), ("critic",)]
    assert spec.speaker.name == "judger"


def test_agent_may_take_several_turns_of_a_chain():
    spec = PipelineSpec.chain("c", ["planner", "critic", "planner", "planner"])
    assert [node.name for node in spec.nodes] == ["planner", "critic", "planner-2", "planner-3"]
    assert spec.agents == ("planner", "critic")


def test_parallel_experts_are_read_by_the_judger_in_their_order():
    spec = PipelineSpec.parallel("p", ["x", "y"], "z", merge=MergeRule.CONSECUTIVE)
    assert spec.speaker == NodeSpec(name="z", agent="z", after=("x", "y"))
    assert spec.merge is MergeRule.CONSECUTIVE


def test_nodes_come_in_order_whatever_the_order_of_declaration():
    spec = make_spec(d=("b", "c"), c=("a",), b=("a",), a=())
    order = [node.name for node in spec.nodes_in_order]
    assert order[0] == "a"
    assert order[-1] == "d"


def test_node_from_plain_data_is_played_by_the_agent_of_its_name():
    spec = PipelineSpec.from_dict({"name": "p", "nodes": [{"name": "planner"}]})
    assert spec.speaker.agent == "planner"


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ({}, "'test' has no node"),
        ({"a": ("a",)}, "cycle: a -> a"),
        (
            {"a": ("c",), "b": ("a",), "c": ("b",), "d": ("c",)},
            "cycle: (a -> b -> c -> a|b -> c -> a -> b|c -> a -> b -> c)",
        ),
        ({"a": (), "b": ("a",), "c": ("a",)}, r"2 nodes that nobody reads \(b, c\)"),
        ({"a": (), "b": ("a",), "lonely": ()}, r"nobody reads \(b, lonely\)"),
        ({"a": (), "b": ("a", "ghost")}, "'b' after 'ghost', which is no node of it.*a, b"),
        ({"a": (), "b": ("a", "a")}, "'b' 2 times after 'a'"),
    ],
)
def test_graph_that_is_no_dag_with_one_speaker_is_refused_by_name(after, message):
    with pytest.raises(PipelineError, match=message):
        make_spec(**after)


def test_name_used_twice_is_refused():
    node = NodeSpec(name="a", agent="a")
    with pytest.raises(PipelineError, match="2 nodes called 'a'"):
        PipelineSpec(name="test", nodes=(node, node))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "p"}, "'p': field 'nodes' of PipelineSpec is missing"),
        ({"name": "p", "nodes": [], "speaker": "x"}, "unknown field 'speaker'"),
        ({"name": "p", "nodes": [{"name": "a", "afer": []}]}, "afer"),
        ({"name": "p", "nodes": [{"agent": "a"}]}, "nodes.0.name"),
        ({"name": "p", "nodes": ["a"]}, "nodes.0 got 'a'"),
        ({"name": "p", "nodes": [{"name": "a"}], "merge": "mixed"}, "merge got 'mixed'.*reused"),
        ({"name": "p q", "nodes": [{"name": "a"}]}, "name got 'p q'"),
    ],
)
def test_wrong_shape_is_a_pipeline_error_that_names_the_field(values, message):
    with pytest.raises(PipelineError, match=message):
        PipelineSpec.from_dict(values)


def test_unknown_agent_is_refused_with_the_known_ones():
    with pytest.raises(
        NotFoundError, match=r"'test' needs agent 'b'.*Known agents: a, x"
    ) as caught:
        make_spec(a=(), b=("a",)).check_agents(["a", "x"])
    assert caught.value.param == "agent"


def test_builtin_pipelines_are_the_products():
    known = builtin_pipelines(["judger", "planner", "math"])
    names = {name: [node.name for node in spec.nodes] for name, spec in known.items()}
    assert names == {
        "hierarchical": ["planner", "critic", "refiner", "judger"],
        "parallel": ["medical", "math", "coder", "judger"],
        "sequential": ["planner", "math", "judger"],
    }
    assert known["parallel"].speaker.after == ("medical", "math", "coder")


def test_sequential_keeps_the_order_but_lets_the_judger_speak_last():
    assert sequential_order(["b", "judger", "a"]) == ("b", "a", "judger")
    assert "sequential" not in builtin_pipelines()
