"""A Ray cluster of this program alone with Serve in it, and how much its processes have worked.

It listens on the loopback address and ends with its scope. Knows no engines.
"""

import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager

# Ray reads these when it is imported. A token, as its own ports are open to others of the machine.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import psutil
import ray
from ray import serve
from ray.serve import Application

from deployments.proxy import ENVIRONMENT
from deployments.transport import GroupHandle

os.environ.update(ENVIRONMENT)  # for the proxies, which start later

HOST = "127.0.0.1"
REQUEST_TIMEOUT_S = 1200
# As in serve_config.yaml: one line per request, ours.
LOGGING = {"encoding": "JSON", "enable_access_log": False}


class ServeCluster:
    """Hosts applications; ``processes`` are those that Ray was started with."""

    def __init__(self, port: int, processes: list[psutil.Process]) -> None:
        self.url = f"http://{HOST}:{port}"
        self._processes = processes
        self._core_s_of: dict[int, float] = {}  # by process id, as it was last seen

    @property
    def core_s(self) -> float:
        """Seconds that cores have worked for all processes of the cluster, ended ones too."""
        self._note_all()
        return sum(self._core_s_of.values())

    @contextmanager
    def hosting(
        self, application: Application, name: str, *, route_prefix: str | None = None
    ) -> Iterator[GroupHandle]:
        """An application while it runs; yields the handle of its ingress."""
        try:
            yield serve.run(
                application, name=name, route_prefix=route_prefix, logging_config=LOGGING
            )
        finally:
            self._note_all()  # soon its processes are gone
            serve.delete(name)

    def _note_all(self) -> None:
        for process in self._processes:
            for one in (process, *_descendants(process)):
                self._note(one)

    def _note(self, process: psutil.Process) -> None:
        try:
            times = process.cpu_times()
        except psutil.Error:  # it has ended
            return
        self._core_s_of[process.pid] = times.user + times.system


@contextmanager
def open_cluster(*, num_cpus: int, object_store_bytes: int) -> Iterator[ServeCluster]:
    """``num_cpus`` is bookkeeping: what the replicas may ask for, not what there is."""
    others = {child.pid for child in psutil.Process().children()}
    port = _free_port()
    ray.init(
        address="local",  # a cluster that another program left behind is not ours
        num_cpus=num_cpus,
        include_dashboard=False,
        object_store_memory=object_store_bytes,
        log_to_driver=False,
        logging_level=logging.WARNING,
        _node_ip_address=HOST,
    )
    try:
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        http = {"host": HOST, "port": port, "request_timeout_s": REQUEST_TIMEOUT_S}
        serve.start(http_options=http)
        ours = [child for child in psutil.Process().children() if child.pid not in others]
        yield ServeCluster(port, ours)
        serve.shutdown()
    finally:
        ray.shutdown()


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port
