"""The arguments of the application: everything wrong stops the start and is named."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from cluster.problem import problems_of
from deployments.args import WITHOUT_PATHS, AdaptersConfig, AppArgs
from latentmas_core.agents.config import AgentConfig

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
    with pytest.raises(ValidationError, match=r"block_size: of group 'deciders'") as caught:
        make_args(groups=deciders_with(engine={"block_size": 0}))
    assert "thinkers" not in str(caught.value).partition("[type=")[0]


@pytest.mark.parametrize(
    "conversations",
    [
        {"url": "mysql://user:secret@host/name"},
        {"url": "postgresql://user:sec/ret@host:port/name"},
        {"url": ["postgresql://user:secret@host/name"]},
        {"url": "postgresql://user:secret@host/name", "max_turns": 0},
        {"url": "postgresql://user:secret@host/name", "nonsense": 1},
    ],
)
def test_password_of_a_database_is_not_told_with_what_is_wrong(conversations):
    with pytest.raises(ValidationError, match="conversations") as caught:
        make_args(conversations=conversations)
    assert "secret" not in str(caught.value)
    told = [str(problem) for problem in problems_of(caught.value, {})]
    assert not any("secret" in one or "sec/ret" in one for one in told)


def test_password_of_a_database_is_not_printed():
    args = make_args(conversations={"url": "postgresql://user:secret@host/name"})
    assert "secret" not in repr(args)


@pytest.mark.parametrize(
    ("gpus", "num_devices", "share"),
    [
        ({}, 1, None),
        ({"num_gpus": 0.25}, 1, 0.25),
        ({"num_gpus": 0.25, "gpu_memory_share": 0.2}, 1, 0.2),
        ({"num_gpus": 1}, 1, 1.0),
        ({"num_gpus": 4}, 4, 1.0),
        ({"num_gpus": 2, "gpu_memory_share": 0.5}, 2, 0.5),
    ],
)
def test_engine_takes_the_cards_of_its_group_and_its_share_of_them(gpus, num_devices, share):
    args = make_args(groups=deciders_with(**gpus))
    engine = args.engine_of(args.groups[1])
    assert (engine.num_devices, engine.device_memory_share) == (num_devices, share)
    assert args.engine_of(args.groups[0]).num_devices == 1


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
    with pytest.raises(ValidationError, match=r"pipelines\.0\n.*'loop' has a cycle: "):
        make_args(pipelines=[{"name": "loop", "nodes": nodes}])


def test_every_broken_pipeline_and_agent_is_named_not_only_the_first():
    nowhere = [{"name": "judger", "after": ["nobody"]}]
    with pytest.raises(ValidationError) as caught:
        make_args(
            pipelines=[{"name": "one", "nodes": nowhere}, {"name": "two", "nodes": []}],
            agents=[
                {"name": "poet", "role": "rhymes", "instructions": {"first": "", "latent": ""}}
            ],
        )
    told = str(caught.value)
    assert "'one' has node 'judger' after 'nobody'" in told
    assert "'two' has no node" in told
    assert "agents.0" in told


def test_all_that_does_not_go_together_is_told_at_once_with_its_place():
    nodes = [{"name": "math"}, {"name": "judger", "after": ["math"]}]
    with pytest.raises(ValidationError) as caught:
        make_args(
            groups=[
                THINKERS | {"engine": {"block_size": 0, "max_num_seqs": 0}},
                DECIDERS | {"agents": ["judger", "poet"], "resident_adapters": ["mine"]},
            ],
            agents=[{"name": "twin", "role": "a"}, {"name": "twin", "role": "b"}],
            pipelines=[{"name": "sums", "nodes": nodes}],
            latent_steps=200,
        )
    told = str(caught.value)
    for place in (
        "groups[0].engine.block_size: of group 'thinkers' got 0",
        "groups[0].engine.max_num_seqs: of group 'thinkers' got 0",
        "groups[1].agents[0]: latent_steps is 200",
        "groups[1].agents[1]: group 'deciders' hosts unknown agent 'poet'",
        "groups[1].resident_adapters[0]: adapter 'mine' is not loaded at the start",
        "agents[1].name: agent 'twin' is declared twice",
        "pipelines[0].nodes[0]: pipeline 'sums' needs agent 'math'",
    ):
        assert place in told, told


def test_shipped_agent_without_a_role_keeps_what_it_does_not_declare():
    args = make_args(agents=[{"name": "judger", "temperature": 0.9}])
    judger = args.known_agents["judger"]
    assert judger == AgentConfig.judger(temperature=0.9)


def test_new_agent_without_a_role_is_refused():
    with pytest.raises(ValidationError, match=r"agents\.0\.role"):
        make_args(agents=[{"name": "poet", "temperature": 0.9}])


@pytest.mark.parametrize(
    ("adapters", "named"),
    [
        ({"roots": ["/no/such/root"]}, "adapter root '/no/such/root' is no folder here"),
        ({"registries": ["/no/such.yaml"]}, "adapter registry '/no/such.yaml' cannot be read"),
        ({"load": [{"name": "mine", "path": "/no/adapter"}]}, "adapter path '/no/adapter' is no f"),
        ({"load": [{"name": "mine", "path": "./mine"}]}, "adapter path './mine' is no folder"),
        ({"load": [{"name": "mine", "path": "a/b/c"}]}, "adapter path 'a/b/c' is no folder"),
    ],
)
def test_path_of_adapters_that_is_not_there_is_refused_by_name(adapters, named):
    with pytest.raises(ValidationError, match=named):
        make_args(adapters=adapters)
    args = AppArgs.model_validate(
        {"groups": [THINKERS], "adapters": adapters}, context=WITHOUT_PATHS
    )
    assert args.adapters != AdaptersConfig()


def test_adapter_root_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValidationError, match="is no folder here"):
        make_args(adapters={"roots": [tmp_path / "file"]})


def test_paths_that_are_there_are_taken_and_the_hub_is_not_asked(tmp_path):
    registry = tmp_path / "registry.yaml"
    registry.write_text("adapters: []")
    load = [{"name": "mine", "path": str(tmp_path)}, {"name": "far", "path": "owner/name"}]
    args = make_args(
        adapters={"roots": [tmp_path], "registries": [registry], "load": [*load, "coder_7b"]}
    )
    assert args.adapters.loaded_names == ("mine", "far", "coder_7b")


def test_resident_adapter_that_is_loaded_is_taken(tmp_path):
    args = make_args(
        groups=deciders_with(resident_adapters=["mine"]),
        adapters={"load": [{"name": "mine", "path": str(tmp_path)}]},
    )
    assert args.groups[1].resident_adapters == ("mine",)


def test_shipped_pipelines_are_offered_where_their_agents_are_hosted():
    assert set(make_args().offered_pipelines) == {"hierarchical", "sequential", "chat"}
    experts = {"name": "experts", "agents": ["medical", "math", "coder"]}
    everyone = make_args(groups=[THINKERS, DECIDERS, experts])
    assert set(everyone.offered_pipelines) == {"hierarchical", "sequential", "parallel", "chat"}


def test_sequential_walks_the_hosted_agents_and_the_judger_speaks():
    sequential = make_args().offered_pipelines["sequential"]
    assert sequential.agents == ("planner", "critic", "refiner", "judger")


def test_assistant_is_hosted_where_the_default_pipeline_speaks_without_being_told():
    args = make_args()
    assert args.group_of["assistant"] == "deciders"
    assert [list(args.agents_of(group)) for group in args.groups] == [
        ["planner", "critic"],
        ["refiner", "judger", "assistant"],
    ]
    assert args.offered_pipelines["chat"].agents == ("assistant",)


def test_assistant_follows_the_speaker_of_a_declared_default_pipeline():
    nodes = [{"name": "judger"}, {"name": "critic", "after": ["judger"]}]
    args = make_args(pipelines=[{"name": "hierarchical", "nodes": nodes}])
    assert args.group_of["assistant"] == "thinkers"


def test_assistant_lives_in_the_first_group_where_nobody_hosts_that_speaker():
    args = make_args(groups=[THINKERS, {"name": "experts", "agents": ["math"]}])
    assert args.group_of["assistant"] == "thinkers"


def test_assistant_that_is_told_where_to_live_lives_there():
    args = make_args(groups=[THINKERS | {"agents": ["planner", "assistant"]}, DECIDERS])
    assert args.group_of["assistant"] == "thinkers"
    assert "assistant" not in args.agents_of(args.groups[1])
    assert "assistant" not in args.offered_pipelines["sequential"].agents


def test_assistant_can_be_changed_in_one_field():
    args = make_args(agents=[{"name": "assistant", "max_tokens": 7}])
    assistant = args.agents_of(args.groups[1])["assistant"]
    assert (assistant.max_tokens, assistant.system_prompt) == (7, "")
    assert "assistant" not in args.offered_pipelines["sequential"].agents


def test_agent_of_the_operators_own_by_that_name_is_one_like_any_other():
    own = {"name": "assistant", "role": "helps"}
    args = make_args(groups=[THINKERS | {"agents": ["planner", "assistant"]}], agents=[own])
    assert args.agents_of(args.groups[0])["assistant"].role == "helps"
    assert args.offered_pipelines["sequential"].agents == ("planner", "assistant")


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
    assert set(args.offered_pipelines) == {"hierarchical", "sequential", "parallel", "chat"}
    assert config["http_options"]["host"] == "127.0.0.1"
    assert application["import_path"] == "deployments.app:build_app"
