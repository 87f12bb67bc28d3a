"""Kubernetes objects with the file they stand in, and what may be wrong with them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

CPU_MILLI = 1000


@dataclass(frozen=True)
class Fault:
    """``rule``: what found it; ``message``: value, limit and remedy."""

    rule: str
    source: str
    name: str
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.source}: {self.name}: {self.path}: {self.message} [{self.rule}]"


@dataclass(frozen=True)
class Manifest:
    """``source``: the file, or the overlay that it was rendered from."""

    source: str
    body: Mapping[str, Any]

    @property
    def kind(self) -> str:
        return str(self.body.get("kind"))

    @property
    def name(self) -> str:
        return str(mapping(self.body, "metadata").get("name"))

    @property
    def label(self) -> str:
        return f"{self.kind}/{self.name}"

    @property
    def spec(self) -> Mapping[str, Any]:
        return mapping(self.body, "spec")

    def fault(self, rule: str, path: str, message: str) -> Fault:
        return Fault(rule, self.source, self.label, path, message)


@dataclass(frozen=True)
class Group:
    """The head, or a group of workers, of a RayService."""

    path: str
    body: Mapping[str, Any]
    is_head: bool

    @property
    def name(self) -> str:
        return "head" if self.is_head else str(self.body.get("groupName"))

    @property
    def start_params(self) -> Mapping[str, Any]:
        return mapping(self.body, "rayStartParams")

    @property
    def template(self) -> Mapping[str, Any]:
        return mapping(self.body, "template")

    @property
    def pod(self) -> Mapping[str, Any]:
        return mapping(self.template, "spec")

    @property
    def labels(self) -> Mapping[str, Any]:
        return mapping(self.template, "metadata", "labels")

    @property
    def containers(self) -> list[Mapping[str, Any]]:
        return mappings(self.pod, "containers")

    @property
    def ray(self) -> Mapping[str, Any]:
        """KubeRay takes the first container for Ray's."""
        return self.containers[0] if self.containers else {}

    @property
    def ray_path(self) -> str:
        return f"{self.path}.template.spec.containers[0]"

    @property
    def env_names(self) -> list[str]:
        return [str(one.get("name")) for one in mappings(self.ray, "env")]

    @property
    def limits(self) -> Mapping[str, Any]:
        return mapping(self.ray, "resources", "limits")

    @property
    def num_cpus(self) -> float:
        """What Ray takes a pod for; rayStartParams win."""
        given = self.start_params.get("num-cpus")
        return cpus(given if given is not None else self.limits.get("cpu", 0))

    @property
    def num_gpus(self) -> int:
        return sum(int(value) for name, value in self.limits.items() if name.endswith("/gpu"))

    @property
    def ports(self) -> dict[str, int]:
        """Of all containers, by name."""
        return {
            str(port.get("name", port.get("containerPort"))): int(port.get("containerPort", 0))
            for container in self.containers
            for port in mappings(container, "ports")
        }


@dataclass(frozen=True)
class Bundle:
    """Objects that are applied together; ``secret_names``: those that the template names."""

    manifests: Sequence[Manifest]
    secret_names: frozenset[str] = frozenset()

    def of_kind(self, kind: str) -> list[Manifest]:
        return [one for one in self.manifests if one.kind == kind]

    @property
    def secrets(self) -> frozenset[str]:
        return self.secret_names | {one.name for one in self.of_kind("Secret")}


def mapping(body: Any, *keys: str) -> Mapping[str, Any]:
    """What lies below ``keys``; empty where there is no mapping."""
    for key in keys:
        body = body.get(key) if isinstance(body, Mapping) else None
    return body if isinstance(body, Mapping) else {}


def mappings(body: Any, key: str) -> list[Mapping[str, Any]]:
    listed = body.get(key) if isinstance(body, Mapping) else None
    return [one for one in listed if isinstance(one, Mapping)] if isinstance(listed, list) else []


def cluster_of(service: Manifest) -> Mapping[str, Any]:
    return mapping(service.spec, "rayClusterConfig")


def groups_of(service: Manifest) -> list[Group]:
    """The head first."""
    cluster = cluster_of(service)
    path = "spec.rayClusterConfig"
    head = Group(f"{path}.headGroupSpec", mapping(cluster, "headGroupSpec"), is_head=True)
    workers = (
        Group(f"{path}.workerGroupSpecs[{i}]", body, is_head=False)
        for i, body in enumerate(mappings(cluster, "workerGroupSpecs"))
    )
    return [head, *workers]


def serve_config_of(service: Manifest) -> Mapping[str, Any]:
    try:
        document = yaml.safe_load(str(service.spec.get("serveConfigV2", "")))
    except yaml.YAMLError:
        return {}
    return document if isinstance(document, Mapping) else {}


def serve_port_of(service: Manifest) -> int:
    return int(mapping(serve_config_of(service), "http_options").get("port", 8000))


def cpus(quantity: Any) -> float:
    """``500m`` is half a CPU."""
    text = str(quantity)
    return float(text[:-1]) / CPU_MILLI if text.endswith("m") else float(text)


def walk(body: Any, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping in a document, with its path."""
    if isinstance(body, Mapping):
        yield path, body
        for key, value in body.items():
            yield from walk(value, f"{path}.{key}" if path else str(key))
    elif isinstance(body, Iterable) and not isinstance(body, str | bytes):
        for i, value in enumerate(body):
            yield from walk(value, f"{path}[{i}]")
