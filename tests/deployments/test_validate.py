"""What `latentmas validate` refuses and warns of, and how it ends."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from typer.testing import Result

from cluster.config import INGRESS
from deployments.app import build_app
from deployments.ingress import Ingress
from tests.deployments.validating import (
    ROOMY,
    SHIPPED,
    Change,
    accept,
    changed,
    group,
    validate,
    with_args,
    with_group,
    with_override,
)


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """Changes the shipped application's config, and returns what is said against it."""

    def refuse(change: Change, *options: str) -> str:
        result = changed(tmp_path, change, *(options or ROOMY))
        assert result.exit_code == 1, result.output
        assert result.stdout == ""
        return result.stderr

    return refuse


@pytest.fixture
def accepted(tmp_path: Path) -> Callable[..., Result]:
    """Changes the shipped application's config, which stays valid."""
    return partial(accept, tmp_path)


# What is refused


def test_several_wrong_things_are_told_at_once(refused):
    def break_it(application: dict[str, Any]) -> None:
        application["routeprefix"] = "/x"
        application["args"]["engine"]["block_size"] = 0
        group(application)["num_gpus"] = 1.5
        application["args"]["adapters"] = {"roots": ["/no/such/root"]}

    told = refused(break_it)
    for place in (
        "applications[0].routeprefix: ",
        "applications[0].args.engine.block_size: ",
        "applications[0].args.groups[0]: group 'thinkers' has num_gpus 1.5",
        "applications[0].args.adapters.roots[0]: adapter root '/no/such/root'",
    ):
        assert place in told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (with_group(agents=["planner", "poet"]), "hosts unknown agent 'poet'; known are"),
        (with_group(num_gpus=1.2), "'thinkers' has num_gpus 1.2"),
        (
            with_group(scaling={"min_replicas": 3, "max_replicas": 2}),
            "groups[0].scaling: min_replicas is 3 and max_replicas 2",
        ),
        (
            with_args(pipelines=[{"name": "rhyme", "nodes": [{"name": "poet"}]}]),
            "pipelines[0].nodes[0]: pipeline 'rhyme' needs agent 'poet', which no group hosts",
        ),
        (with_args(adapters={"roots": ["/no/root"]}), "adapter root '/no/root' is no folder"),
        (with_args(adapters={"load": ["nowhere"]}), "adapters.load[0]: adapter 'nowhere' is not i"),
        (
            with_args(adapters={"load": ["medical_reasoner"]}),
            "adapters.load[0]: adapter 'medical_reasoner' was made for base model 'Qwen2.5-3B'",
        ),
        (with_group(resident_adapters=["mine"]), "adapter 'mine' is not loaded at the start"),
        (with_group(engine={"max_num_seqs": 0}), "groups[0].engine.max_num_seqs: of group"),
        (with_override(name="deciderz"), "there is no deployment 'deciderz'; there are thinkers"),
        (
            with_override(ray_actor_options={"num_gpus": 0.5}),
            "deployments[0].ray_actor_options.num_gpus: is 0.5 here and 0 in group 'thinkers'",
        ),
        (
            with_override(user_config={"agents": {"judger": {"temperature": 0.1}}}),
            "deployments[0].user_config.agents.judger: user_config changes agent 'judger', which",
        ),
        (
            with_override(user_config={"agents": {"planner": {"temprature": 0.1}}}),
            "unknown field 'temprature'",
        ),
        (with_override(user_config={"latent_steps": -1}), "user_config.latent_steps: got -1"),
        (with_override(user_config={"latent_steps": 900}), "user_config.latent_steps: latent_st"),
    ],
)
def test_wrong_input_is_refused_by_name(change, told, refused):
    assert told in refused(change)


def with_ratios(**ratios: float) -> Change:
    policy = {
        "policy_function": "cluster.autoscaling:PipelineRatioPolicy",
        "policy_kwargs": {"ratios": ratios},
    }
    return lambda application: application.update(autoscaling_policy=policy)


def test_ratio_of_a_group_that_there_is_not_is_refused(refused, accepted):
    accepted(with_ratios(thinkers=2, deciders=1))
    told = refused(with_ratios(thinker=2, deciders=1))
    assert (
        "applications[0].autoscaling_policy.policy_kwargs.ratios: there is no group 'thinker'; "
        "there are thinkers, deciders"
    ) in told


def test_group_with_the_name_of_the_ingress_is_refused(refused):
    told = refused(with_group(name=INGRESS))
    assert "applications[0].args.groups[0]: group 'Ingress' has the name of the deploy" in told


def test_group_that_is_overridden_twice_is_refused(refused):
    doubled = [{"name": "thinkers", "num_replicas": 1}, {"name": "thinkers", "num_replicas": 2}]
    told = refused(lambda application: application.update(deployments=doubled))
    assert "deployments[1].name: 'thinkers' is overridden twice" in told


def test_ingress_may_be_overridden_by_its_name(accepted):
    assert Ingress.name == INGRESS
    accepted(with_override(name=INGRESS, max_ongoing_requests=9))


def test_fractions_that_do_not_fit_the_cards_are_refused(refused):
    told = refused(with_group(num_gpus=0.6, num_replicas=2), "--node", "cpus=8,gpus=1")
    assert "group 'thinkers' asks for 2 x (num_cpus 1, num_gpus 0.6)" in told
    assert "there is room for 1. Left are node 1: 7 CPUs, GPUs 0.4" in told


def test_memory_of_a_card_that_is_promised_twice_is_refused(refused):
    fields = {"num_gpus": 0.25, "gpu_memory_share": 0.6, "num_replicas": 2}
    told = refused(with_group(**fields), "--node", "cpus=8,gpus=1")
    assert "memory of GPU 0 of node 1 is promised 1.2 times (thinkers 1.2)" in told


def test_group_that_could_never_start_is_refused_though_it_starts_with_no_replica(refused):
    scaling = {"min_replicas": 0, "max_replicas": 1}
    told = refused(with_group(scaling=scaling, num_gpus=2), "--node", "cpus=8,gpus=1")
    assert "applications[0].args.groups[0]: group 'thinkers' asks for 1 x" in told


def test_replicas_of_two_applications_share_the_nodes(tmp_path):
    config = yaml.safe_load(SHIPPED.read_text())
    (first,) = config["applications"]
    config["applications"].append(first | {"name": "second", "route_prefix": "/second"})
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(config))
    assert validate(path, "--node", "cpus=4").exit_code == 0
    result = validate(path, "--node", "cpus=3")
    assert result.exit_code == 1
    assert "applications[1].args.groups[1]: group 'second.deciders' asks for" in result.stderr


def test_problems_as_json_stand_on_both_channels(tmp_path):
    result = changed(tmp_path, with_group(num_gpus=1.5), *ROOMY, "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert (told["is_valid"], told["applications"]) == (False, [])
    assert [problem["path"] for problem in told["problems"]] == ["applications[0].args.groups[0]"]
    assert "num_gpus 1.5" in result.stderr


def test_paths_of_another_machine_are_left_alone_on_demand(accepted):
    change = with_args(adapters={"roots": ["/no/root"], "load": ["nowhere"]})
    accepted(change, *ROOMY, "--no-paths")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({"adapters": {"roots": ["/no/root"]}}, "adapter root '/no/root' is no folder here"),
        ({"engines": {}}, "engines"),
        ({"groups": [{"name": "g", "agents": ["poet"]}]}, "hosts unknown agent 'poet'"),
    ],
)
def test_serve_refuses_wrong_args_too_when_it_starts_the_application(args, told):
    """`serve run` alone: it builds the application on the head of the cluster."""
    groups = yaml.safe_load(SHIPPED.read_text())["applications"][0]["args"]["groups"]
    with pytest.raises(ValidationError, match=told):
        call_user_app_builder_with_args_if_necessary(build_app, {"groups": groups} | args)


# What is only said


def test_application_of_another_builder_is_not_understood_and_said_so(accepted):
    result = accepted(lambda application: application.update(import_path="some.module:app"))
    assert "applications[0].import_path: 'some.module:app' is not deployments.app" in result.stderr


def test_device_and_share_of_a_gpu_that_do_not_go_together_are_warnings(accepted):
    assert "holds GPUs that it does not use" in accepted(with_group(num_gpus=0.5)).stderr
    cuda = {"device": "cuda"}
    assert "Ray does not count the card" in accepted(with_group(engine=cuda)).stderr
    several = with_group(engine={"device": "cuda", "num_devices": 4}, num_gpus=2)
    assert "groups[0].engine.num_devices: is 4 and group 'thinkers'" in accepted(several).stderr


def test_room_that_only_packing_finds_is_a_warning_with_the_setting(accepted):
    def change(application: dict[str, Any]) -> None:
        group(application, 0).update(num_gpus=0.5, num_replicas=2)
        group(application, 1).update(num_gpus=1)

    nodes = ("--node", "cpus=8,gpus=1,count=2")
    assert "RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY=1" in accepted(change, *nodes).stderr
    assert "PACK" not in accepted(change, "--node", "cpus=8,gpus=2").stderr


def test_time_limit_above_that_of_serve_is_a_warning(accepted):
    told = "args.request_timeout_s: is 5000 and http_options.request_timeout_s 600: Serve ends"
    assert told in accepted(with_args(request_timeout_s=5000)).stderr
    assert "request_timeout_s" not in accepted(with_args(request_timeout_s=599)).stderr


def test_agent_with_an_adapter_that_is_not_loaded_is_a_warning(accepted):
    result = accepted(with_args(agents=[{"name": "judger", "adapter": {"mine": 1.0, "base": 1}}]))
    assert "agent 'judger' has adapter 'mine', which is not loaded at the start" in result.stderr
    assert "'base'" not in result.stderr


# How it ends


@pytest.mark.parametrize(
    ("node", "told"),
    [
        ("gpus=1", "lacks cpus"),
        ("cpus=x", "must be a number"),
        ("cpus=-1", "must be a number"),
        ("cpus=nan", "must be a number"),
        ("cpus=1,gpus=0.5", "must be a whole number"),
        ("cpus=1,ram=2", "is not of the form"),
        ("cpus=1,cpus=2", "is not of the form"),
        ("cpus=1,count=99999999", "up to"),
        ("", "is not of the form"),
    ],
)
def test_node_that_cannot_be_read_is_wrong_usage(node, told):
    result = validate(SHIPPED, "--node", node)
    assert result.exit_code == 2
    assert told in " ".join(result.stderr.split())


def test_file_that_is_not_there_is_wrong_usage(tmp_path):
    assert validate(tmp_path / "none.yaml").exit_code == 2


def test_file_that_is_no_yaml_is_refused(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("a: [")
    result = validate(path)
    assert result.exit_code == 1
    assert "is not valid YAML" in result.stderr


def test_file_that_serves_nothing_is_a_warning(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("http_options: {host: 127.0.0.1}\napplications: []\n")
    result = validate(path)
    assert result.exit_code == 0
    assert "applications: is empty" in result.stderr


def test_this_machine_is_the_cluster_unless_nodes_are_told():
    result = validate(SHIPPED, "--json")
    (node,) = json.loads(result.stdout)["nodes"]
    assert node["name"] == "this machine"
    assert node["num_cpus"] >= 1
