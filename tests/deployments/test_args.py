"""The arguments of the application: everything wrong stops the start and is named."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from deployments.args import AppArgs
from latentmas_core.errors import PipelineError

REPO = Path(__file__).parents[2]
THINKERS = {"name": "thinkers", "agents": ["planner", "critic"]}
DECIDERS = {"name": "deciders", "agents": ["refiner", "judger"]}


def make_args(**overrides):
    return AppArgs.model_validate({"groups": [THINKERS, DECIDERS]} | overrides)


def deciders_with(**overrides):
    return [THINKERS, DECIDERS | overrides]


@pytest.mark.parametrize(
    "wrong",
    [
        {"nonsense": 1},
        {"engine": {"nonsense": 1}},
        {"groups": deciders_with(nonsense=1)},
        {"groups": deciders_with(engine={"nonsense": 1})},
        {"agents": [{"name": "poet", "role": "rhymes", "nonsense": 1}]},
        {"pipelines": [{"name": "p", "nodes": [{"name": "judger"}], "nonsense": 1}]},
        {"pipelines": [{"name": "p", "nodes": [{"name": "judger", "nonsense": 1}]}]},
    ],
    ids=["args", "engine", "group", "engine of a group", "agent", "pipeline", "node"],
)
def test_unknown_key_anywhere_is_named(wrong):
    with pytest.raises(ValidationError, match="nonsense"):
        make_args(**wrong)


def test_wrong_engine_option_of_a_group_names_the_group_and_the_field():
    with pytest.raises(ValidationError, match=r"'deciders'.*block_size") as caught:
        make_args(groups=deciders_with(engine={"block_size": 0}))
    assert "thinkers" not in str(caught.value).partition("[type=")[0]


def test_group_that_hosts_an_unknown_agent_is_refused():
    with pytest.raises(ValidationError, match="'deciders' hosts unknown agent 'poet'; known are"):
        make_args(groups=deciders_with(agents=["judger", "poet"]))


def test_declared_agent_can_be_hosted():
    args = make_args(
        groups=deciders_with(agents=["judger", "poet"]),
        agents=[{"name": "poet", "role": "rhymes"}],
    )
    assert args.agents_of(args.groups[1])["poet"].role == "rhymes"


def test_declared_agent_of_a_shipped_name_replaces_it():
    args = make_args(agents=[{"name": "judger", "role": "says yes"}])
    assert args.agents_of(args.groups[1])["judger"].role == "says yes"


def test_pipeline_with_an_agent_that_nobody_hosts_is_refused():
    nodes = [{"name": "math"}, {"name": "judger", "after": ["math"]}]
    with pytest.raises(ValidationError, match="'sums' needs agent 'math', which no group hosts"):
        make_args(pipelines=[{"name": "sums", "nodes": nodes}])


def test_pipeline_that_is_no_dag_is_refused():
    nodes = [{"name": "planner", "after": ["judger"]}, {"name": "judger", "after": ["planner"]}]
    with pytest.raises(PipelineError, match="'loop' has a cycle: "):
        make_args(pipelines=[{"name": "loop", "nodes": nodes}])


def test_shipped_pipelines_are_offered_where_their_agents_are_hosted():
    assert set(make_args().offered_pipelines) == {"hierarchical", "sequential"}
    experts = {"name": "experts", "agents": ["medical", "math", "coder"]}
    everyone = make_args(groups=[THINKERS, DECIDERS, experts])
    assert set(everyone.offered_pipelines) == {"hierarchical", "sequential", "parallel"}


def test_sequential_walks_the_hosted_agents_and_the_judger_speaks():
    sequential = make_args().offered_pipelines["sequential"]
    assert sequential.agents == ("planner", "critic", "refiner", "judger")


def test_declared_pipeline_is_offered():
    nodes = [{"name": "planner"}, {"name": "judger", "after": ["planner"]}]
    args = make_args(pipelines=[{"name": "short", "nodes": nodes}])
    assert args.offered_pipelines["short"].speaker.agent == "judger"


def test_engine_options_of_a_group_go_before_the_common_ones():
    args = make_args(
        engine={"block_size": 8, "max_num_seqs": 4},
        groups=deciders_with(engine={"block_size": 32}),
    )
    thinkers, deciders = (args.engine_of(group) for group in args.groups)
    assert (thinkers.block_size, deciders.block_size) == (8, 32)
    assert (thinkers.max_num_seqs, deciders.max_num_seqs) == (4, 4)


def test_engine_computes_with_the_threads_of_its_group_unless_it_says_otherwise():
    groups = [THINKERS | {"num_cpus": 2}, DECIDERS | {"engine": {"num_threads": 3}}]
    args = make_args(groups=groups)
    assert [args.engine_of(group).num_threads for group in args.groups] == [2, 3]
    args = make_args(groups=groups, engine={"num_threads": 4})
    assert [args.engine_of(group).num_threads for group in args.groups] == [4, 3]


def test_latent_steps_above_the_engines_limit_name_both():
    with pytest.raises(ValidationError, match=r"latent_steps is 9 .*max_latent_steps.* is 8\."):
        make_args(latent_steps=9, engine={"max_latent_steps": 8})


def test_latent_steps_above_the_limit_of_one_group_are_refused_too():
    with pytest.raises(ValidationError, match=r"latent_steps is 9 .*'deciders' is 8\."):
        make_args(latent_steps=9, groups=deciders_with(engine={"max_latent_steps": 8}))


def test_latent_steps_of_a_hosted_agent_above_the_limit_are_refused():
    thoughtful = {"name": "judger", "role": "final decision", "latent_steps": 9}
    with pytest.raises(ValidationError, match=r"latent_steps is 9 for agent 'judger'.* is 8\."):
        make_args(agents=[thoughtful], latent_steps=0, engine={"max_latent_steps": 8})


def test_config_in_the_repository_is_valid_local_and_has_two_groups():
    config = yaml.safe_load((REPO / "serve_config.yaml").read_text())
    (application,) = config["applications"]
    args = AppArgs.model_validate(application["args"])
    assert [group.name for group in args.groups] == ["thinkers", "deciders"]
    assert sum(group.num_cpus * group.max_replicas for group in args.groups) <= 2
    assert set(args.offered_pipelines) == {"hierarchical", "sequential", "parallel"}
    assert config["http_options"]["host"] == "127.0.0.1"
    assert application["import_path"] == "deployments.app:build_app"
