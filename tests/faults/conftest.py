"""A cluster of several nodes; it comes after the tests that share one node."""

import os
import secrets

# Ray reads these when it is imported. A token, as Ray's own ports are open to other machines.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Beside other tests a proxy may take longer to start than the 5 s after which Serve ends it.
os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "60"

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray import serve

from deployments.proxy import ENVIRONMENT
from tests.deployments.service import Service
from tests.factories import make_tiny_model
from tests.faults.nodes import Nodes
from tests.ports import free_port

os.environ.update(ENVIRONMENT)


@pytest.fixture(scope="package")
def nodes() -> Iterator[Nodes]:
    nodes = Nodes("a", "b", num_cpus=1)
    try:
        ray.init(address=nodes.address, log_to_driver=False)
        yield nodes
        serve.shutdown()
    finally:
        ray.shutdown()
        nodes.shutdown()


@pytest.fixture(scope="package")
def port(nodes: Nodes) -> int:
    port = free_port()
    serve.start(
        proxy_location="HeadOnly",  # a proxy of a node that is lost takes its connections along
        http_options={"host": "127.0.0.1", "port": port},
    )
    return port


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), "qwen2", max_position_embeddings=16384)


@pytest.fixture(scope="package")
def service(port: int) -> Iterator[Service]:
    with Service(port) as service:
        yield service
