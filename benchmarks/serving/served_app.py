"""The application of serve_config.yaml, and the same agents in one group, ready to be hosted."""

from typing import Any

import yaml

from benchmarks.machine import ROOT
from deployments.args import AppArgs

DTYPE = "float32"


def app_args(model_name: str, num_threads: int, *, is_fused: bool = False) -> AppArgs:
    """As in serve_config.yaml but for the model, fp32, and the cores of each group.

    ``is_fused``: one group hosts all agents.
    """
    (application,) = yaml.safe_load((ROOT / "serve_config.yaml").read_text())["applications"]
    args: dict[str, Any] = application["args"]
    groups = [group | {"num_cpus": num_threads} for group in args["groups"]]
    if is_fused:
        agents = [agent for group in groups for agent in group["agents"]]
        groups = [groups[0] | {"name": "everyone", "agents": agents}]
    engine = args["engine"] | {"model_name": model_name, "dtype": DTYPE}
    return AppArgs.model_validate(args | {"engine": engine, "groups": groups})
