"""One Ray with Serve in it for all tests that need one; it sees nothing but this machine."""

import os
import secrets

# Ray reads these when it is imported. A token, as Ray's own ports are open to other machines.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Beside other tests a proxy may take longer to start than the 5 s after which Serve ends it.
os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "60"

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
import ray
from ray import serve

from deployments.api.adapters import AdapterAdmin
from deployments.api.openai.models import ChatModels
from deployments.app import build_app
from deployments.args import AdaptersConfig, AppArgs
from deployments.ingress import build_http_app
from deployments.proxy import ENVIRONMENT
from tests.deployments.fake_reasoner import OFFERED, FakeReasoner
from tests.deployments.otlp import Receiver
from tests.deployments.service import Service
from tests.ports import free_port

os.environ.update(ENVIRONMENT)

Deploy = Callable[[dict[str, Any]], Service]


@pytest.fixture
def reasoner() -> FakeReasoner:
    return FakeReasoner()


@pytest.fixture
async def client(
    reasoner: FakeReasoner, request: pytest.FixtureRequest
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the HTTP face in this process, without Ray.

    The test's parameter, if there is one, is the config of its adapters.
    """
    base = "Qwen/Qwen2.5-3B-Instruct"
    admin = AdapterAdmin(AdaptersConfig(**getattr(request, "param", {})), base)
    # The app raises what it has answered with 500 once more, for the server's log.
    app = build_http_app(reasoner, admin, ChatModels(OFFERED, base))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.fixture(scope="package")
def otlp() -> Iterator[Receiver]:
    """Gets the spans of all requests of this package's Serve whose clients want to be traced."""
    with Receiver() as receiver:
        yield receiver


@pytest.fixture(scope="package")
def serve_port(otlp: Receiver) -> Iterator[int]:
    """The HTTP port of a Serve that hosts nothing yet."""
    port = free_port()
    tracing = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": otlp.endpoint,
        "OTEL_TRACES_SAMPLER": "parentbased_always_off",
        "OTEL_BSP_SCHEDULE_DELAY": "200",  # milliseconds
    }
    with pytest.MonkeyPatch.context() as environ:
        for name, value in tracing.items():
            environ.setenv(name, value)  # for all processes that come out of the next call
        _start_ray()
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        yield port
        serve.shutdown()
    finally:
        ray.shutdown()


def _start_ray() -> None:
    ray.init(
        address="local",  # a cluster that another program left behind is not ours
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=2**28,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        _system_config={"metrics_report_interval_ms": 1000},
    )


@pytest.fixture(scope="module")
def deploy(serve_port: int) -> Iterator[Deploy]:
    """Starts the application from plain arguments; it ends with the module."""
    with Service(serve_port) as service:

        def deploy_app(args: dict[str, Any]) -> Service:
            serve.run(build_app(AppArgs.model_validate(args)), name=Service.NAME, route_prefix="/")
            return service

        yield deploy_app
        serve.delete(Service.NAME)
