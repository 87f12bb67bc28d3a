"""Builds the application out of serve_config.yaml's ``args``: the only place that binds.

Serve reads the annotation of ``build_app`` to validate the args, so it must not become a string:
no ``from __future__ import annotations`` here.
"""

import warnings
from typing import Any

from ray.serve import Application
from ray.serve.config import (
    AutoscalingConfig,
    AutoscalingPolicy,
    BackpressureConfig,
    RequestRouterConfig,
)

from cluster.config import GroupConfig, ScalingConfig
from cluster.routing import DEFAULT_MAX_LEAD
from deployments.agent_group import AgentGroup
from deployments.api.errors import RETRY_AFTER_S
from deployments.args import AppArgs
from deployments.group_setup import GroupSetup
from deployments.ingress import Ingress
from latentmas_core.config import EngineConfig
from latentmas_core.pipelines.stage_worker import Roster

HEALTH_CHECK_PERIOD_S = 5.0
# A check that finds the engine stuck says so after its own timeout: it has to be heard.
HEALTH_CHECK_MARGIN_S = 10.0
ROUTING_STATS_PERIOD_S = 1.0
# Loads are averages over this many reports: a single one may fall between two requests.
REPORTS_PER_LOOK_BACK = 5


def build_app(args: AppArgs) -> Application:
    """An ingress over one deployment per group."""
    groups = {group.name: _bind_group(group, args) for group in args.groups}
    ingress = Ingress.options(  # type: ignore[attr-defined]
        max_ongoing_requests=args.max_ongoing_requests,
        max_queued_requests=args.max_queued_requests,
        backpressure_config=BackpressureConfig(retry_after_s=RETRY_AFTER_S),
        graceful_shutdown_timeout_s=max(group.drain_timeout_s for group in args.groups),
        ray_actor_options={"num_cpus": 0},
    )
    application: Application = ingress.bind(args, groups)
    return application


def _bind_group(group: GroupConfig, args: AppArgs) -> Application:
    engine = args.engine_of(group)
    deployment = AgentGroup.options(  # type: ignore[attr-defined]
        name=group.name,
        user_config={},  # so that a replica is told its config when it starts, even if it is empty
        num_replicas=None if group.scaling else group.min_replicas,
        autoscaling_config=_autoscaling_config(group.scaling) if group.scaling else None,
        request_router_config=_router_config(engine),
        max_ongoing_requests=group.max_ongoing_requests,
        max_queued_requests=group.max_queued_requests,
        graceful_shutdown_timeout_s=group.drain_timeout_s,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=engine.stall_timeout_s + HEALTH_CHECK_MARGIN_S,
        ray_actor_options={
            "num_cpus": group.num_cpus,
            "num_gpus": group.num_gpus,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(group.num_threads)}},
        },
    )
    setup = GroupSetup(
        engine=engine,
        roster=Roster(args.agents_of(group), args.latent_steps),
        adapters=args.adapters,
        resident_adapters=group.resident_adapters,
    )
    application: Application = deployment.bind(setup)
    return application


def _autoscaling_config(scaling: ScalingConfig) -> AutoscalingConfig:
    with warnings.catch_warnings():
        # Serve deprecates metrics_interval_s for environment variables that 2.60 does not read.
        warnings.filterwarnings("ignore", message="The `metrics_interval_s` field")
        return AutoscalingConfig(
            min_replicas=scaling.min_replicas,
            max_replicas=scaling.max_replicas,
            target_ongoing_requests=scaling.target_ongoing_requests,
            upscale_delay_s=scaling.upscale_delay_s,
            downscale_delay_s=scaling.downscale_delay_s,
            metrics_interval_s=scaling.interval_s,
            look_back_period_s=scaling.interval_s * REPORTS_PER_LOOK_BACK,
            policy=AutoscalingPolicy(  # type: ignore[no-untyped-call]
                policy_function="cluster.autoscaling:KvPressurePolicy",
                policy_kwargs={"target_kv_usage": scaling.target_kv_usage},
            ),
        )


def _router_config(engine: EngineConfig) -> RequestRouterConfig:
    # Half a batch more than elsewhere still starts at once; any more may have to wait.
    max_lead = min(DEFAULT_MAX_LEAD, max(1, engine.max_num_seqs // 2))
    options: dict[str, Any] = {
        "request_router_class": "cluster.routing:ResidencyRouter",
        "request_router_kwargs": {"max_lead": max_lead},
        "request_routing_stats_period_s": ROUTING_STATS_PERIOD_S,
    }
    return RequestRouterConfig(**options)
