"""The shipped serve_config.yaml with every section in it that it leaves out."""

import copy
from typing import Any

import yaml

from tests.deployments.validating import SHIPPED

SERVE_SECTIONS = {
    "grpc_options": {"port": 9000},
    "logging_config": {"log_level": "INFO"},
    "tracing_config": {"enabled": False},
    "controller_options": {"runtime_env": {"env_vars": {}}},
}
APPLICATION_SECTIONS = {
    "runtime_env": {"env_vars": {"A": "b"}},
    "logging_config": {"encoding": "JSON"},
    "autoscaling_policy": {
        "policy_function": "cluster.autoscaling:PipelineRatioPolicy",
        "policy_kwargs": {"ratios": {"thinkers": 2, "deciders": 1}},
    },
    "deployments": [
        {
            "name": "thinkers",
            "max_queued_requests": 9,
            "autoscaling_config": {
                "max_replicas": 2,
                "policy": {
                    "policy_function": "cluster.autoscaling:KvPressurePolicy",
                    "policy_kwargs": {"target_kv_usage": 0.5},
                },
            },
            "ray_actor_options": {"num_cpus": 1, "runtime_env": {"env_vars": {"A": "b"}}},
            "request_router_config": {
                "initial_backoff_s": 0.1,
                "request_router_class": "cluster.routing:ResidencyRouter",
                "request_router_kwargs": {"max_lead": 3},
            },
            "backpressure_config": {"status_code": 429},
            "logging_config": {"log_level": "INFO"},
            "user_config": {"latent_steps": 4, "adapters": {"load": []}},
        },
        {"name": "Ingress", "max_ongoing_requests": 8},
    ],
}
ARGS_SECTIONS = {
    "conversations": {"url": "postgresql://user@host/name", "max_turns": 100},
    "adapters": {"admin": False, "load": [{"name": "mine", "path": "owner/mine"}]},
    "agents": [
        {"name": "judger", "temperature": 0.1},
        {
            "name": "poet",
            "role": "rhymes",
            "instructions": {
                "first": "{question}",
                "latent": "think",
                "text": "{transcript} {question}",
            },
        },
    ],
    "pipelines": [{"name": "short", "nodes": [{"name": "planner"}, {"name": "judger"}]}],
}


def full_config() -> dict[str, Any]:
    """The shipped file with every section in it."""
    config: dict[str, Any] = yaml.safe_load(SHIPPED.read_text())
    config |= copy.deepcopy(SERVE_SECTIONS)
    (application,) = config["applications"]
    application |= copy.deepcopy(APPLICATION_SECTIONS)
    application["args"] |= copy.deepcopy(ARGS_SECTIONS)
    application["args"]["engine"]["lora"] = {"max_lora_rank": 64}
    application["args"]["pipelines"][0]["nodes"][1]["after"] = ["planner"]
    deciders = application["args"]["groups"][1]
    deciders |= {"scaling": {"max_replicas": 2}, "engine": {"max_num_seqs": 8}}
    return config
