"""The builder as Serve calls it: its arguments are validated, and its options reach the actors."""

import pytest
from pydantic import ValidationError
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve._private.build_app import build_app as build_serve_app

from deployments.api.errors import RETRY_AFTER_S
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


def test_who_finds_the_queue_full_is_told_when_to_come_back():
    ingress = deployments_of(ARGS)["Ingress"]
    assert ingress.backpressure_config.retry_after_s == RETRY_AFTER_S


def test_fixed_number_of_replicas_does_not_scale():
    thinkers = deployments_of(ARGS)["thinkers"]._deployment_config
    assert (thinkers.num_replicas, thinkers.autoscaling_config) == (3, None)


def test_scaling_reaches_the_deployment_with_its_policy():
    scaling = {
        "min_replicas": 0,
        "max_replicas": 5,
        "target_ongoing_requests": 7,
        "target_kv_usage": 0.6,
        "upscale_delay_s": 2,
        "downscale_delay_s": 30,
        "interval_s": 0.5,
    }
    group = {"name": "thinkers", "agents": ["planner"], "scaling": scaling}
    config = deployments_of({"groups": [group]})["thinkers"]._deployment_config.autoscaling_config
    assert (config.min_replicas, config.max_replicas, config.target_ongoing_requests) == (0, 5, 7)
    assert (config.upscale_delay_s, config.downscale_delay_s) == (2, 30)
    assert config.metrics_interval_s < config.look_back_period_s < config.downscale_delay_s
    assert config.policy.get_policy().__name__ == "KvPressurePolicy"
    assert config.policy.policy_kwargs == {"target_kv_usage": 0.6}


def test_calls_are_routed_by_what_replicas_hold():
    routers = [
        deployments_of(ARGS)[name]._deployment_config.request_router_config
        for name in ("thinkers", "deciders")
    ]
    assert {router.get_request_router_class().__name__ for router in routers} == {"ResidencyRouter"}
    # Half of the batch of each engine.
    assert [router.request_router_kwargs for router in routers] == [
        {"max_lead": 4},
        {"max_lead": 2},
    ]


def test_replicas_may_finish_their_work_before_they_end():
    groups = [ARGS["groups"][0] | {"drain_timeout_s": 7}, ARGS["groups"][1]]
    deployments = deployments_of(ARGS | {"groups": groups})
    timeouts = {
        name: deployment._deployment_config.graceful_shutdown_timeout_s
        for name, deployment in deployments.items()
    }
    assert timeouts == {"thinkers": 7, "deciders": 60, "Ingress": 60}


def test_stuck_engine_has_time_to_say_so_before_its_health_check_is_over():
    engine = ARGS["engine"] | {"stall_timeout_s": 120}
    config = deployments_of(ARGS | {"engine": engine})["thinkers"]._deployment_config
    assert config.health_check_timeout_s > 120


def test_replica_is_given_its_own_engine_options_and_agents():
    (setup,) = deployments_of(ARGS)["deciders"].init_args
    assert (setup.engine.max_num_seqs, setup.engine.num_threads) == (4, 1)
    assert list(setup.roster.agents) == ["judger", "assistant"]
    assert setup.roster.default_latent_steps == 4
    assert setup.adapters == AdaptersConfig()
