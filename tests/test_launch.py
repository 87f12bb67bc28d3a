"""``make serve`` from the outside: it starts, answers, says what to try, and leaves nothing."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.ports import free_port

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow


def launch(config: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "deployments.launch", str(config)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"RAY_AUTH_MODE": "token"},
    )


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    """The shipped config on a free port."""
    shipped = (ROOT / "serve_config.yaml").read_text()
    assert "port: 8000" in shipped
    path = tmp_path / "serve_config.yaml"
    path.write_text(shipped.replace("port: 8000", f"port: {free_port()}"))
    return path


@pytest.mark.serve
@pytest.mark.usefixtures("embedded_model_path")
def test_the_service_answers_a_sample_question_and_ends_without_leftovers(config_path: Path):
    with launch(config_path) as process:
        try:
            printed = list(lines_until(process, "Ctrl-C stops everything."))
            started = psutil.Process(process.pid).children(recursive=True)
            open_to_others = listeners(started)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        finally:
            process.terminate()  # where one of these failed: it ends what it started
    assert any("The capital of France is Paris." in line for line in printed), printed
    assert any("make ask" in line for line in printed)
    assert any("/            the page" in line for line in printed)
    # Serve gives each replica a port of its own and has no option for its address; it asks for
    # Ray's token (docs/security.md).
    assert open_to_others, "replicas at least are seen"
    assert [name for name in open_to_others if not name.startswith("ray::ServeReplica:")] == []
    _, alive = psutil.wait_procs(started, timeout=30)
    assert alive == []


def listeners(processes: list[psutil.Process]) -> list[str]:
    """The names of those that listen on another address than the loopback one."""
    here = ("127.0.0.1", "::ffff:127.0.0.1", "::1")
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # an idle worker ends by itself
            name = process.cmdline()[0]
            found += [
                name
                for one in process.net_connections("tcp")
                if one.status == psutil.CONN_LISTEN and one.laddr.ip not in here
            ]
    return found


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        ("latent_steps:", "latent_stepz:", "applications[0].args.latent_stepz: unknown key"),
        ("request_timeout_s:", "request_timeouts:", "http_options.request_timeouts: unknown key"),
        ("num_cpus: 1", "num_cpus: 9999", "group 'thinkers' asks for 1 x (num_cpus 9999"),
        ("host: 127.0.0.1", "host: 0.0.0.0", "this command serves on 127.0.0.1 only"),
    ],
    ids=["key of ours", "key of Serve", "no room", "open to others"],
)
def test_wrong_config_stops_the_start_with_its_name(config_path: Path, right, wrong, told):
    assert right in config_path.read_text()
    config_path.write_text(config_path.read_text().replace(right, wrong))
    process = launch(config_path)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert told in printed
    assert "Traceback" not in printed
    assert "Starting Ray Serve" not in printed


@pytest.mark.serve
@pytest.mark.own_cluster
def test_a_model_that_is_missing_stops_the_start_with_its_name(config_path: Path):
    broken = config_path.read_text().replace("embedded:smollm2-135m-instruct", "/no/such/model")
    config_path.write_text(broken)
    process = launch(config_path)
    printed, _ = process.communicate(timeout=180)
    assert process.returncode == 1
    assert "/no/such/model" in printed


def lines_until(process: "subprocess.Popen[str]", last: str) -> Iterator[str]:
    assert process.stdout is not None
    for line in process.stdout:
        yield line
        if last in line:
            return
    raise AssertionError(f"the launcher ended without {last!r}")
