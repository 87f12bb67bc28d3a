"""``make serve``: a cluster of this machine alone, ``serve run`` on it, and one sample answer.

HTTP, the dashboard and Ray's ports listen on 127.0.0.1, those of replicas ask for Ray's token. The
cluster is this process's own and ends with it.
"""

import argparse
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deployments.proxy import ENVIRONMENT

HOST = "127.0.0.1"
SAMPLE_QUESTION = "What is the capital of France?"
READY_TIMEOUT_S = 300.0
READY_ANSWER_TIMEOUT_S = 10.0
READY_POLL_S = 0.5
OBJECT_STORE_BYTES = 512 * 2**20
MAX_LOG_CHARS = 4000
MIN_CPUS = 2

# Ray reads its settings when it is imported. Token authentication keeps other users of this machine
# away from the dashboard and the cluster; Ray generates the token and keeps it in the home folder.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Without this Ray on Linux takes the outer address of the machine where it is told 127.0.0.1, since
# other machines might join.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
# On one machine a replica that cannot start will not start the next time either.
os.environ.setdefault("RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT", "1")
for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)

import httpx  # noqa: E402
import ray  # noqa: E402
import typer  # noqa: E402
from ray import serve  # noqa: E402
from ray.serve.schema import ApplicationStatus  # noqa: E402

from deployments.check import check_file  # noqa: E402
from deployments.tracing import exporter_names  # noqa: E402
from deployments.validate import this_machine  # noqa: E402
from latentmas_core.cli.backend import ServiceError  # noqa: E402
from latentmas_core.cli.flags import open_service  # noqa: E402
from latentmas_core.cli.output import Output  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path, help="a Serve config file, such as serve_config.yaml")
    config_path: Path = parser.parse_args().config
    port = _check(config_path)
    url = f"http://{HOST}:{port}"
    print(f"Starting Ray Serve with {config_path} ...", flush=True)
    with _local_cluster() as dashboard_url, _serve_run(config_path) as process:
        _wait(url, process)
        print(f"\nReady on {url}. A sample question:\n", flush=True)
        _ask_sample(url)
        _print_what_next(url, dashboard_url)
        process.wait()
        sys.exit(process.returncode)


def _check(config_path: Path) -> int:
    """Validate the config before anything starts; the port that will be served."""
    report = check_file(config_path, [this_machine(min_cpus=MIN_CPUS)])
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    if not report.is_valid:
        sys.exit("\n".join(f"{config_path}: {problem}" for problem in report.problems))
    if report.serve.host != HOST:
        sys.exit(
            f"http_options.host is {report.serve.host}; this command serves on {HOST} only. Set it "
            "to that, or start `serve run` yourself, with API keys (docs/security.md)."
        )
    _check_free(report.serve.port)
    return report.serve.port


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            sys.exit(
                f"port {port} of {HOST} cannot be had: {error.strerror}. End what listens there, "
                "or set http_options.port."
            )


def _ask_sample(url: str) -> None:
    """A sample that fails says so; the service goes on.

    Where the service wants a key, it is that of the environment.
    """
    print(f"Q: {SAMPLE_QUESTION}", flush=True)
    fields = {"question": SAMPLE_QUESTION, "temperature": 0}  # the same answer each time
    try:
        with open_service(url, api_key=None) as service:
            Output().show_run(service.stream(fields))
    except (ServiceError, typer.BadParameter) as error:
        print(f"The sample question failed: {error.message}", flush=True)


@contextmanager
def _local_cluster() -> Iterator[str]:
    """A Ray cluster of this process, bound to the loopback address; yields the dashboard's URL."""
    context = ray.init(
        address="local",
        num_cpus=max(MIN_CPUS, os.cpu_count() or 1),
        object_store_memory=OBJECT_STORE_BYTES,
        _node_ip_address=HOST,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    # Ray's own handler for this signal ends the process without ending what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield f"http://{context.dashboard_url}"
    finally:
        if exporter_names(os.environ):
            # Replicas that are stopped, not killed, export the spans that they still have.
            serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


@contextmanager
def _serve_run(config_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """``serve run`` as a process that joins our cluster; ended with us, however we end."""
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "ray.serve.scripts", "run", "--address", address]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([*command, str(config_path)], stderr=log)
        try:
            yield process
        except KeyboardInterrupt:
            print("\nStopping ...", flush=True)
        finally:
            if process.poll():  # it ended by itself, badly: say why
                log.seek(0)
                sys.stderr.write(log.read().decode(errors="replace")[-MAX_LOG_CHARS:])
            process.terminate()
            process.wait()


def _wait(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not _is_ready(url):
        if process.poll() is not None:
            sys.exit(f"serve run ended with status {process.returncode}.")
        _exit_if_failed()
        if time.monotonic() > deadline:
            sys.exit(f"not ready after {READY_TIMEOUT_S:.0f} s. The logs are in /tmp/ray.")
        time.sleep(READY_POLL_S)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=READY_ANSWER_TIMEOUT_S).status_code == 200
    except httpx.TransportError:  # nobody listens yet
        return False


def _exit_if_failed() -> None:
    for name, application in serve.status().applications.items():
        if application.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
            details = [d.message for d in application.deployments.values() if d.message]
            sys.exit("\n".join([f"application {name}: {application.message}", *details]))


def _print_what_next(url: str, dashboard_url: str) -> None:
    print(
        f"""
What to try next:
  make ask Q="Name three primary colors."
  curl {url}/v1/reason -H 'content-type: application/json' \\
    -d '{{"question": "Name three primary colors.", "pipeline": "parallel", "stream": true}}'
  {url}/            the page: ask, and watch the agents think
  {url}/docs        all calls
  {url}/v1/stats    what the replicas hold and have done
  {dashboard_url}        the Ray dashboard (the token: ray get-auth-token)
Ctrl-C stops everything.""",
        flush=True,
    )


if __name__ == "__main__":
    main()
