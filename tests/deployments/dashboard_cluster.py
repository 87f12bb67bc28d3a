"""A Ray with its dashboard in a process of its own, spoken to over Serve's REST API only.

``python -m tests.deployments.dashboard_cluster PORT`` is that process: it ends with its input.
"""

import os
import subprocess
import sys
from typing import Any, Self

import httpx
import ray

from tests.ports import free_port

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
API = "/api/serve/applications/"
TIMEOUT_S = 60.0


class DashboardCluster:
    """Starts the process; ``deploy`` and ``replicas`` are what an operator's tools do."""

    def __init__(self) -> None:
        self._port = free_port()

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(self._port)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started = self._process.stdout.readline()
        assert started == "ready\n", f"the cluster said {started!r}"
        token = os.environ["RAY_AUTH_TOKEN"]
        self._http = httpx.Client(
            base_url=f"http://127.0.0.1:{self._port}",
            headers={"Authorization": f"Bearer {token}"},
            timeout=TIMEOUT_S,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()
        self._process.communicate(timeout=TIMEOUT_S)

    def deploy(self, config: dict[str, Any]) -> None:
        self._http.put(API, json=config).raise_for_status()

    def application(self, name: str) -> dict[str, Any]:
        """What the REST API tells of an application; empty if it knows none of that name."""
        details = self._http.get(API).raise_for_status().json()
        return details["applications"].get(name, {})

    def replicas(self, application: str, deployment: str) -> int:
        """How many of a deployment's replicas run."""
        deployments = self.application(application)["deployments"]
        states = [replica["state"] for replica in deployments[deployment]["replicas"]]
        return states.count("RUNNING")


def main(dashboard_port: int) -> None:
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=dashboard_port,
        object_store_memory=2**28,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )
    try:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.read()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
