"""A Ray cluster of several nodes on this machine, and what can befall it."""

import os
import signal
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import ray
from ray import serve
from ray._private.internal_api import node_stats
from ray.cluster_utils import Cluster
from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, ServeDeploySchema

from tests.deployments.service import Service

STORE_BYTES = 2**27
HEAD = "head"
ANSWER_S = 10.0
# Ray keeps what is smaller with its owner, out of the stores.
INLINED_BYTES = 100 * 1024
START_S = 180.0


class Nodes:
    """A head that runs the ingress, and nodes that run replicas; each can be lost."""

    def __init__(self, *names: str, num_cpus: float) -> None:
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "resources": {HEAD: 1},
                "object_store_memory": STORE_BYTES,
                "include_dashboard": False,
                "node_ip_address": _loopback_address(0),
            },
        )
        self._num_cpus = num_cpus
        self._num_added = 0
        self._nodes: dict[str, Any] = {}
        for name in names:
            self.add(name)

    @property
    def address(self) -> str:
        address: str = self._cluster.address
        return address

    def add(self, name: str) -> None:
        self._num_added += 1
        self._nodes[name] = self._cluster.add_node(
            num_cpus=self._num_cpus,
            resources={name: 1},
            object_store_memory=STORE_BYTES,
            node_ip_address=_loopback_address(self._num_added),
        )

    def lose(self, name: str) -> None:
        """As a power cut does it."""
        self._cluster.remove_node(self._nodes.pop(name), allow_graceful=False)

    def shutdown(self) -> None:
        self._cluster.shutdown()

    def references(self, *deployments: str) -> list[str]:
        """The large objects that replicas of these deployments refer to."""
        pids = {process.pid for name in deployments for process in replicas_of(name)}
        return [
            f"{worker.pid}: {ref.object_id.hex()}, {ref.object_size} bytes"
            for stats in self._stats()
            for worker in stats.core_workers_stats
            for ref in worker.object_refs
            if worker.pid in pids and ref.object_size >= INLINED_BYTES
        ]

    def _stats(self) -> list[Any]:
        return [
            node_stats(node["NodeManagerAddress"], node["NodeManagerPort"])
            for node in ray.nodes()
            if node["Alive"]
        ]


def make_args(model: Path, groups: list[dict[str, Any]], **args: Any) -> dict[str, Any]:
    """Arguments of an application on a tiny model."""
    engine = {
        "model_name": str(model),
        "device": "cpu",
        "dtype": "float32",
        "kv_cache_bytes": 2**25,
        "has_prefix_cache": False,  # so that all blocks are free when nobody asks
    }
    return {"engine": engine, "latent_steps": 3, "groups": groups} | args


def deploy(
    args: dict[str, Any], port: int, user_configs: dict[str, dict[str, Any]] | None = None
) -> None:
    """As ``serve deploy`` does it; the ingress stays on the head. ``user_configs`` by group."""
    on_head = {"num_cpus": 0, "resources": {HEAD: 0.01}}
    overrides = [{"name": "Ingress", "ray_actor_options": on_head}]
    overrides += [
        {"name": group, "user_config": config} for group, config in (user_configs or {}).items()
    ]
    application = {
        "name": Service.NAME,
        "route_prefix": "/",
        "import_path": "deployments.app:build_app",
        "args": args,
        "deployments": overrides,
    }
    config = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [application],
    }
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config))


def wait_until_ready(service: Service) -> None:
    """Until the last deployed config is applied and every group answers."""

    def is_ready() -> bool:
        application = serve.status().applications[Service.NAME]
        if application.status is not ApplicationStatus.RUNNING:
            return False
        try:
            return service.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    service.wait_until(is_ready, timeout_s=START_S, says=serve.status)


def _loopback_address(number: int) -> str:
    """Each node has its own. Not 127.0.0.1: Ray would look for a cluster of that address on the
    interfaces that other machines see."""
    return f"127.0.0.{number + 2}"


class Process(NamedTuple):
    """Where a replica runs."""

    pid: int
    node_id: str


def replicas_of(deployment: str) -> list[Process]:
    """The processes of a deployment's replicas that answer."""
    begin = f"SERVE_REPLICA::{Service.NAME}#{deployment}#"
    names = [
        actor["name"]
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if actor["name"].startswith(begin)
    ]
    found = []
    for name in names:
        try:
            replica = ray.get_actor(name, namespace="serve")
            pid, _, _, node_id, *_ = ray.get(replica.is_allocated.remote(), timeout=ANSWER_S)
        except (ValueError, RayError):  # it died since it was listed
            continue
        found.append(Process(pid, node_id))
    return found


def kill_9(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
