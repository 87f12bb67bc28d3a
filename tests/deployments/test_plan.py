"""The plan that `latentmas validate` prints: what sits where, and how pipelines run."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml
from typer.testing import Result

from deployments.args import AppArgs
from tests.deployments.validating import (
    REPO,
    ROOMY,
    SHIPPED,
    accept,
    validate,
    with_args,
    with_group,
    with_override,
)


@pytest.fixture
def accepted(tmp_path: Path) -> Callable[..., Result]:
    """Changes the shipped application's config, which stays valid."""
    return partial(accept, tmp_path)


def test_plan_of_the_shipped_config_tells_groups_agents_stages_and_hops():
    result = validate(SHIPPED, "--node", "cpus=2")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        f"{SHIPPED} is valid. Placed on node 1 with 2 CPUs:",
        "",
        "application latentmas at /",
        "  group thinkers: 1 replica of 1 CPU",
        "    agents planner, critic, medical, coder",
        "    replica 1 on node 1",
        "  group deciders: 1 replica of 1 CPU",
        "    agents refiner, math, judger, assistant",
        "    replica 1 on node 1",
        "  pipeline hierarchical: 2 stages, 1 hop",
        "    planner+critic in thinkers",
        "    refiner+judger in deciders; after planner+critic; answers",
        "  pipeline parallel: 4 stages, 2 hops",
        "    medical in thinkers; at the same time as math, coder",
        "    math in deciders; at the same time as medical, coder",
        "    coder in thinkers; at the same time as medical, math",
        "    judger in deciders; after medical, math, coder; answers",
        "  pipeline sequential: 6 stages, 5 hops",
        "    planner+critic in thinkers",
        "    refiner in deciders; after planner+critic",
        "    medical in thinkers; after refiner",
        "    math in deciders; after medical",
        "    coder in thinkers; after math",
        "    judger in deciders; after coder; answers",
        "  pipeline chat: 1 stage, 0 hops",
        "    assistant in deciders; answers",
    ]


def test_documented_plan_is_the_one_that_is_printed():
    page = (REPO / "docs/configuration.md").read_text()
    (shown,) = re.findall(r"cpus=2\nserve_config.yaml (is valid.*?)\n  \.\.\.\n", page, re.S)
    assert len(shown.splitlines()) > 10
    assert shown in validate(SHIPPED, "--node", "cpus=2").stdout


def test_documented_args_are_valid_and_offer_what_they_say():
    page = (REPO / "docs/configuration.md").read_text()
    (text,) = re.findall(r"```yaml\n(args:.*?)```", page, re.S)
    args = AppArgs.model_validate(yaml.safe_load(text)["args"])
    assert set(args.offered_pipelines) == {"hierarchical", "sequential", "rhyme", "chat"}
    assert args.known_agents["judger"].temperature == 0.1


def test_four_slices_of_one_gpu_sit_on_that_gpu():
    result = validate(REPO / "configs/gpu-1.yaml", "--node", "cpus=32,gpus=1")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.count("on node 1, GPU 0 (0.25 of it)") == 4
    assert result.stdout.count("at most 0.23 of the memory of a GPU") == 4


def test_expert_groups_have_a_gpu_each_and_room_to_grow_to_eight():
    result = validate(REPO / "configs/gpu-8.yaml", "--node", "cpus=128,gpus=8", "--json")
    assert (result.exit_code, result.stderr) == (0, "")  # no warning: the most fit, too
    (application,) = json.loads(result.stdout)["applications"]
    groups = application["groups"]
    cards = [seat["cards"] for group in groups for seat in group["seats"]]
    assert sorted(cards) == [[0], [1], [2], [3], [4]]
    assert sum(group["max_replicas"] for group in groups) == 8


def test_seventh_gpu_missing_is_a_warning_at_the_most_replicas_only():
    result = validate(REPO / "configs/gpu-8.yaml", "--node", "cpus=128,gpus=7")
    assert result.exit_code == 0
    assert "with all groups at max_replicas, group " in result.stderr


def test_gpus_missing_for_the_start_are_refused():
    result = validate(REPO / "configs/gpu-8.yaml", "--node", "cpus=128,gpus=4")
    assert result.exit_code == 1
    assert "applications[0].args.groups[4]: group 'judges' asks for 1 x" in result.stderr


def test_replicas_fill_the_nodes_that_are_told():
    result = validate(
        REPO / "configs/gpu-8.yaml", "--node", "cpus=16,gpus=2,count=2", "--node", "cpus=64,gpus=4"
    )
    assert result.exit_code == 0
    assert "Placed on node 1 to node 2 with 16 CPUs and 2 GPUs; node 3 with 64" in result.stdout
    assert "replica 1 on node 2, GPU 1" in result.stdout


def test_plan_as_json_is_one_object_with_the_same_content():
    result = validate(SHIPPED, "--node", "cpus=2", "--json")
    told = json.loads(result.stdout)
    assert (told["is_valid"], told["problems"], told["warnings"]) == (True, [], [])
    assert told["nodes"] == [{"name": "node 1", "num_cpus": 2.0, "num_gpus": 0}]
    (application,) = told["applications"]
    pipelines = {pipeline["name"]: pipeline for pipeline in application["pipelines"]}
    assert pipelines["parallel"]["num_hops"] == 2
    assert pipelines["parallel"]["stages"][1] == {
        "name": "math",
        "group": "deciders",
        "agents": ["math"],
        "after": [],
        "beside": ["medical", "coder"],
        "is_speaking": False,
    }


def test_stages_of_one_chain_are_never_at_the_same_time(accepted):
    nodes = [
        {"name": "planner"},
        {"name": "math", "after": ["planner"]},
        {"name": "critic", "after": ["planner"]},
        {"name": "coder", "after": ["critic"]},
        {"name": "judger", "after": ["math", "coder"]},
    ]
    result = accepted(with_args(pipelines=[{"name": "diamond", "nodes": nodes}]), *ROOMY, "--json")
    pipelines = json.loads(result.stdout)["applications"][0]["pipelines"]
    (diamond,) = [pipeline for pipeline in pipelines if pipeline["name"] == "diamond"]
    beside = {stage["name"]: stage["beside"] for stage in diamond["stages"]}
    assert beside == {
        "planner": [],
        "math": ["critic+coder"],
        "critic+coder": ["math"],
        "judger": [],
    }


def test_shipped_pipeline_without_hosts_is_not_offered_and_says_what_it_needs(accepted):
    result = accepted(with_group(0, agents=["planner", "critic"]))
    assert "  pipeline parallel is not offered: needs medical, coder" in result.stdout
    assert "pipeline hierarchical: 2 stages" in result.stdout


def test_group_of_no_replica_waits_for_its_first_request(accepted):
    result = accepted(with_group(0, scaling={"min_replicas": 0, "max_replicas": 3}))
    assert "group thinkers: 0 to 3 replicas of 1 CPU" in result.stdout
    assert "    no replica until its first request" in result.stdout


def test_number_of_replicas_that_serve_overrides_is_placed(accepted):
    result = accepted(with_override(num_replicas=3))
    assert "group thinkers: 3 replicas of 1 CPU" in result.stdout
    assert "    replica 3 on node 1" in result.stdout
    result = accepted(with_override(autoscaling_config={"min_replicas": 2, "max_replicas": 4}))
    assert "group thinkers: 2 to 4 replicas of 1 CPU" in result.stdout
    result = accepted(with_override(num_replicas="auto"))
    assert "group thinkers: 1 to 100 replicas of 1 CPU" in result.stdout
