"""docker/start.sh as the image runs it: it serves with keys alone, and ends when it is stopped."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from deployments.health import why_not_ready
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
KEY = "of-nobody-in-particular"
READY_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 30.0

pytestmark = [pytest.mark.slow, pytest.mark.serve, pytest.mark.own_cluster]


def config_of_a_tiny_model(model: Path, port: int) -> str:
    config = yaml.safe_load((ROOT / "docker" / "serve_config.yaml").read_text())
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    args = config["applications"][0]["args"]
    args["engine"] = {"model_name": str(model), "kv_cache_bytes": 2**24}
    args["latent_steps"] = 1
    text: str = yaml.safe_dump(config)
    return text


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Short enough for names of sockets; what Ray runs in it ends with the test."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    yield folder
    for process in psutil.process_iter():
        try:
            if any(str(folder) in argument for argument in process.cmdline()):
                process.kill()
        except psutil.Error:  # it has ended, or is another user's
            continue
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def service(tiny_llama: Path, ray_folder: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    http = free_port()
    config = ray_folder / "config.yaml"  # in the command of `serve run`, too
    config.write_text(config_of_a_tiny_model(tiny_llama, http))
    names = ("port", "dashboard-port", "ray-client-server-port", "metrics-export-port")
    options = [f"--{name}={free_port()}" for name in names]
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_TMPDIR": str(ray_folder),
        "LATENTMAS_CONFIG": str(config),
        "LATENTMAS_API_KEYS": KEY,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    script = ["bash", str(ROOT / "docker" / "start.sh"), "--num-cpus=2"]
    options.append(f"--object-store-memory={2**28}")
    process = subprocess.Popen([*script, *options], env=os.environ | environment)
    url = f"http://127.0.0.1:{http}"
    try:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while (reason := why_not_ready(url, timeout_s=5.0)) is not None:
            assert process.poll() is None, "start.sh ended"
            assert time.monotonic() < deadline, reason
            time.sleep(0.5)
        yield url, process
    finally:
        process.kill()
        process.wait()


def test_it_answers_with_a_key_and_ends_when_it_is_stopped(
    service: tuple[str, "subprocess.Popen[bytes]"],
) -> None:
    url, process = service
    body = {"question": "?", "max_tokens": 8}
    asked = f"{url}/v1/reason"
    assert httpx.post(asked, json=body, timeout=60.0).status_code == 401
    answer = httpx.post(asked, json=body, headers={"X-API-Key": KEY}, timeout=60.0)
    assert answer.status_code == 200, answer.text
    process.send_signal(signal.SIGTERM)
    process.wait(STOP_TIMEOUT_S)
