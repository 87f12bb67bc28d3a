"""The check of a container asks /readyz, and says what is wrong."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from deployments.health import CONFIG_VARIABLE, main


class Service(BaseHTTPRequestHandler):
    status = 200
    asked: list[str]

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        self.send_response(type(self).status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def service() -> Iterator[tuple[str, type[Service]]]:
    kind = type("One", (Service,), {"asked": []})
    server = HTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", kind
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_ready_service_is_healthy(service: tuple[str, type[Service]]) -> None:
    url, kind = service
    assert main(["--url", url]) == 0
    assert kind.asked == ["/readyz"]


def test_one_that_is_not_ready_is_not(
    service: tuple[str, type[Service]], capsys: pytest.CaptureFixture[str]
) -> None:
    url, kind = service
    kind.status = 503
    assert main(["--url", url]) == 1
    assert "/readyz answers 503" in capsys.readouterr().err


def test_a_proxy_of_the_environment_is_not_asked(
    service: tuple[str, type[Service]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, kind = service
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert main(["--url", url]) == 0
    assert kind.asked == ["/readyz"]


def test_port_and_prefix_are_those_of_the_config_that_the_container_runs(
    service: tuple[str, type[Service]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, kind = service
    config = tmp_path / "serve_config.yaml"
    options = {"host": "0.0.0.0", "port": int(url.rpartition(":")[2])}
    application = {"name": "latentmas", "route_prefix": "/reasoning"}
    config.write_text(yaml.safe_dump({"http_options": options, "applications": [application]}))
    monkeypatch.setenv(CONFIG_VARIABLE, str(config))
    assert main([]) == 0
    assert kind.asked == ["/reasoning/readyz"]


@pytest.mark.parametrize("text", ["", "applications: []", "http_options: 1", "{"])
def test_a_config_that_names_no_application_is_not_healthy(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "serve_config.yaml"
    config.write_text(text)
    monkeypatch.setenv(CONFIG_VARIABLE, str(config))
    assert main([]) == 1
    assert CONFIG_VARIABLE in capsys.readouterr().err


def test_nothing_that_listens_is_not_healthy(capsys: pytest.CaptureFixture[str]) -> None:
    server = HTTPServer(("127.0.0.1", 0), Service)
    url = f"http://127.0.0.1:{server.server_port}"
    server.server_close()
    assert main(["--url", url, "--timeout", "2"]) == 1
    assert "does not answer" in capsys.readouterr().err
