"""One misspelt key in each section of serve_config.yaml is refused by its name, before any start.

Both by `latentmas validate` and by the check of `make serve`.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from tests.deployments.full_config import full_config
from tests.deployments.validating import ROOMY, validate

# Where the key stands, as the message has to say it, and how it is misspelt.
MISSPELT = {
    "proxy_location": "proxy_locations",
    "applications": "aplications",
    "http_options": "http_option",
    "http_options.request_timeout_s": "request_timeout",
    "grpc_options.port": "prot",
    "logging_config.log_level": "loglevel",
    "tracing_config.enabled": "enable",
    "controller_options.runtime_env": "runtime_envs",
    "applications[0].import_path": "import_pth",
    "applications[0].args": "arg",
    "applications[0].runtime_env.env_vars": "env_var",
    "applications[0].logging_config.encoding": "encodings",
    "applications[0].autoscaling_policy.policy_kwargs.ratios": "ratio",
    "applications[0].args.latent_steps": "latent_step",
    "applications[0].args.groups": "group",
    "applications[0].args.engine.kv_cache_bytes": "kv_cache_byte",
    "applications[0].args.engine.lora.max_lora_rank": "max_rank",
    "applications[0].args.groups[0].num_cpus": "num_cpu",
    "applications[0].args.groups[1].scaling.max_replicas": "max_replica",
    "applications[0].args.groups[1].engine.max_num_seqs": "max_num_seq",
    "applications[0].args.adapters.admin": "admins",
    "applications[0].args.conversations.max_turns": "max_turn",
    "applications[0].args.adapters.load[0].path": "paths",
    "applications[0].args.agents[0].temperature": "temprature",
    "applications[0].args.agents[1].instructions.latent": "latents",
    "applications[0].args.pipelines[0].nodes": "node",
    "applications[0].args.pipelines[0].nodes[1].after": "afters",
    "applications[0].deployments[0].max_queued_requests": "max_queued_request",
    "applications[0].deployments[0].autoscaling_config.max_replicas": "max_replica",
    "applications[0].deployments[0].autoscaling_config.policy.policy_kwargs": "policy_kwarg",
    "applications[0].deployments[0].autoscaling_config.policy.policy_kwargs.target_kv_usage": (
        "target_kv_usag"
    ),
    "applications[0].deployments[0].ray_actor_options.num_cpus": "num_cpu",
    "applications[0].deployments[0].ray_actor_options.runtime_env.env_vars": "envs",
    "applications[0].deployments[0].request_router_config.initial_backoff_s": "initial_backoff",
    "applications[0].deployments[0].request_router_config.request_router_kwargs.max_lead": (
        "max_leadd"
    ),
    "applications[0].deployments[0].backpressure_config.status_code": "status",
    "applications[0].deployments[0].logging_config.log_level": "log_levels",
    "applications[0].deployments[0].user_config.latent_steps": "latent_step",
    "applications[0].deployments[0].user_config.adapters.load": "loads",
    "applications[0].deployments[1].max_ongoing_requests": "max_ongoing_request",
}


def misspell(config: Any, place: str, misspelt: str) -> None:
    """Rename the key that ``place`` leads to."""
    *parents, key = place.replace("[", ".[").split(".")
    for part in parents:
        config = config[int(part[1:-1])] if part.startswith("[") else config[part]
    config[misspelt] = config.pop(key)


@pytest.fixture(scope="module")
def launch() -> Iterator[ModuleType]:
    """The program behind `make serve`; what it sets in the environment is not for other tests."""
    before = dict(os.environ)
    try:
        from deployments import launch

        yield launch
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    return tmp_path / "serve_config.yaml"


def test_the_config_that_is_misspelt_here_is_valid_as_it_is(config_path):
    config_path.write_text(yaml.safe_dump(full_config()))
    result = validate(config_path, *ROOMY)
    assert (result.exit_code, result.stderr) == (0, "")


@pytest.mark.parametrize(("place", "misspelt"), MISSPELT.items(), ids=MISSPELT)
def test_misspelt_key_is_refused_by_its_name_and_place(place, misspelt, config_path, launch):
    config = full_config()
    misspell(config, place, misspelt)
    config_path.write_text(yaml.safe_dump(config))
    parent, _, key = place.rpartition(".")
    told = f"{parent}.{misspelt}: unknown key {misspelt!r}. Did you mean {key!r}?".lstrip(".")
    result = validate(config_path, *ROOMY)
    assert result.exit_code == 1
    assert told in result.stderr
    with pytest.raises(SystemExit) as stopped:
        launch._check(config_path)
    assert told in str(stopped.value)


def test_serve_alone_starts_with_most_of_these_misspelt():
    """Why they are checked here: Serve drops keys that it does not know."""
    taken = [place for place, misspelt in MISSPELT.items() if serve_takes(place, misspelt)]
    assert len(taken) > len(MISSPELT) / 2


def serve_takes(place: str, misspelt: str) -> bool:
    config = full_config()
    misspell(config, place, misspelt)
    try:
        ServeDeploySchema.model_validate(config)
    except ValueError:
        return False
    return True
