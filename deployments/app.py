"""Builds the application out of serve_config.yaml's ``args``: the only place that binds.

Serve reads the annotation of ``build_app`` to validate the args, so it must not become a string:
no ``from __future__ import annotations`` here.
"""

from ray.serve import Application

from cluster.config import GroupConfig
from deployments.agent_group import AgentGroup
from deployments.args import AppArgs
from deployments.ingress import Ingress


def build_app(args: AppArgs) -> Application:
    """An ingress over one deployment per group."""
    groups = {group.name: _bind_group(group, args) for group in args.groups}
    ingress = Ingress.options(  # type: ignore[attr-defined]
        max_ongoing_requests=args.max_ongoing_requests, ray_actor_options={"num_cpus": 0}
    )
    application: Application = ingress.bind(args, groups)
    return application


def _bind_group(group: GroupConfig, args: AppArgs) -> Application:
    deployment = AgentGroup.options(  # type: ignore[attr-defined]
        name=group.name,
        num_replicas=group.min_replicas,
        max_ongoing_requests=group.max_ongoing_requests,
        max_queued_requests=group.max_queued_requests,
        ray_actor_options={
            "num_cpus": group.num_cpus,
            "num_gpus": group.num_gpus,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(group.num_threads)}},
        },
    )
    application: Application = deployment.bind(
        args.engine_of(group), args.agents_of(group), args.latent_steps, args.adapters
    )
    return application
