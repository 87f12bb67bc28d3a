"""Makes the patches with ``serveConfigV2`` out of the Serve config files of the repository, and the
config file of the container image.

The only place that says what a config file for one machine becomes elsewhere.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cluster.config import INGRESS
from cluster.serve_file import read_serve_file

NAME = "latentmas"
# Patch and the config file that it comes from, from the root of the repository.
SOURCES: Mapping[str, str] = {
    "k8s/base/serve-config.yaml": "serve_config.yaml",
    "k8s/overlays/gpu/serve-config.yaml": "configs/gpu-8.yaml",
}
# What the image starts with, and what compose.yaml puts in its place: args that are added.
IMAGE_SOURCE = "serve_config.yaml"
IMAGE_CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "docker/serve_config.yaml": {},
    # The password is PGPASSWORD of the environment.
    "docker/compose_config.yaml": {
        "conversations": {"url": "postgresql://latentmas@database/latentmas"}
    },
}
# KubeRay tells each node the name of its group, and Ray makes it a label; the head's is fixed.
OFF_THE_HEAD: Mapping[str, Any] = {
    "name": INGRESS,
    "ray_actor_options": {"num_cpus": 0, "label_selector": {"ray.io/node-group": "!headgroup"}},
}
WRITE_COMMAND = "python -m deployments.kuberay write"


def for_containers(document: Mapping[str, Any]) -> dict[str, Any]:
    """Listens on the address of each container, and never starts without keys."""
    http = {**document.get("http_options", {}), "host": "0.0.0.0"}
    applications = [_with_keys(one) for one in document["applications"]]
    return {
        **document,
        "proxy_location": "EveryNode",
        "http_options": http,
        "applications": applications,
    }


def _with_keys(application: Mapping[str, Any]) -> dict[str, Any]:
    args = dict(application.get("args", {}))
    args["access"] = {**args.get("access", {}), "require_keys": True}
    return {**application, "args": args}


def for_kubernetes(document: Mapping[str, Any]) -> dict[str, Any]:
    """As in containers, with the ingress on a worker: it takes no CPU, so it would go to the head,
    and be lost with it."""
    document = for_containers(document)
    applications = [_with_ingress_off_the_head(one) for one in document["applications"]]
    return {**document, "applications": applications}


def _with_ingress_off_the_head(application: Mapping[str, Any]) -> dict[str, Any]:
    overrides = [*application.get("deployments", []), OFF_THE_HEAD]
    return {**application, "deployments": overrides}


def patch_text(root: Path, source: str) -> str:
    """The patch for a RayService, as it stands in the repository."""
    document = for_kubernetes(read_serve_file(root / source))
    config = yaml.safe_dump(document, sort_keys=False, width=100)
    body = "".join(f"    {line}\n" for line in config.splitlines())
    return (
        f"# Generated from {source}. Do not edit: {WRITE_COMMAND}\n"
        "apiVersion: ray.io/v1\n"
        "kind: RayService\n"
        "metadata:\n"
        f"  name: {NAME}\n"
        "spec:\n"
        f"  serveConfigV2: |\n{body}"
    )


def image_text(root: Path, added: Mapping[str, Any]) -> str:
    """A config file for a container, with ``added`` among the args."""
    document = for_containers(read_serve_file(root / IMAGE_SOURCE))
    for application in document["applications"]:
        application["args"] |= added
    config = yaml.safe_dump(document, sort_keys=False, width=100)
    return f"# Generated from {IMAGE_SOURCE}. Do not edit: {WRITE_COMMAND}\n{config}"


def write(root: Path) -> list[str]:
    """Write what is stale; the paths that were."""
    texts = _texts(root)
    changed = stale(root)
    for path in changed:
        (root / path).write_text(texts[path], encoding="utf-8")
    return changed


def stale(root: Path) -> list[str]:
    """The generated files that are not what their sources would make them."""
    return [path for path, text in _texts(root).items() if _text(root / path) != text]


def _texts(root: Path) -> dict[str, str]:
    patches = {path: patch_text(root, source) for path, source in SOURCES.items()}
    images = {path: image_text(root, added) for path, added in IMAGE_CONFIGS.items()}
    return patches | images


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None
