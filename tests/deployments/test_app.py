"""The builder as Serve calls it: its arguments are validated, and its options reach the actors."""

import pytest
from pydantic import ValidationError
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve._private.build_app import build_app as build_serve_app

from deployments.app import build_app
from deployments.args import AdaptersConfig

ARGS = {
    "engine": {"max_num_seqs": 8},
    "latent_steps": 4,
    "max_ongoing_requests": 77,
    "groups": [
        {"name": "thinkers", "agents": ["planner"], "num_cpus": 2, "num_replicas": 3},
        {
            "name": "deciders",
            "agents": ["judger"],
            "num_cpus": 0.5,
            "num_gpus": 0.25,
            "max_ongoing_requests": 16,
            "max_queued_requests": 99,
            "engine": {"max_num_seqs": 4},
        },
    ],
}


def deployments_of(args):
    application = call_user_app_builder_with_args_if_necessary(build_app, args)
    built = build_serve_app(application, name="latentmas")
    return {deployment.name: deployment for deployment in built.deployments}


@pytest.mark.parametrize(
    "wrong",
    [{"htp_options": {}}, {"engine": {"htp_options": {}}}, {"groups": [{"htp_options": 1}]}],
    ids=["args", "engine", "group"],
)
def test_unknown_key_stops_the_start_with_its_name(wrong):
    with pytest.raises(ValidationError, match="htp_options"):
        call_user_app_builder_with_args_if_necessary(build_app, ARGS | wrong)


def test_start_without_groups_is_refused():
    with pytest.raises(ValidationError, match="groups"):
        call_user_app_builder_with_args_if_necessary(build_app, {})


def test_one_deployment_per_group_and_an_ingress():
    assert set(deployments_of(ARGS)) == {"thinkers", "deciders", "Ingress"}


def test_share_of_the_machine_reaches_the_actors():
    deployments = deployments_of(ARGS)
    thinkers, deciders = (deployments[name] for name in ("thinkers", "deciders"))
    assert (thinkers.num_replicas, deciders.num_replicas) == (3, 1)
    assert thinkers.ray_actor_options["num_cpus"] == 2
    assert deciders.ray_actor_options["num_gpus"] == 0.25
    threads = [
        deployment.ray_actor_options["runtime_env"]["env_vars"]["OMP_NUM_THREADS"]
        for deployment in (thinkers, deciders)
    ]
    assert threads == ["2", "1"]
    assert deployments["Ingress"].ray_actor_options["num_cpus"] == 0


def test_limits_of_requests_reach_the_deployments():
    deployments = deployments_of(ARGS)
    deciders = deployments["deciders"]
    assert (deciders.max_ongoing_requests, deciders._deployment_config.max_queued_requests) == (
        16,
        99,
    )
    assert deployments["Ingress"].max_ongoing_requests == 77


def test_replica_is_given_its_own_engine_options_and_agents():
    engine, agents, latent_steps, adapters = deployments_of(ARGS)["deciders"].init_args
    assert (engine.max_num_seqs, engine.num_threads) == (4, 1)
    assert list(agents) == ["judger"]
    assert latent_steps == 4
    assert adapters == AdaptersConfig()
