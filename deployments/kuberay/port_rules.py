"""Ports that fit each other, and are open to those alone who are to come in."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deployments.kuberay.entry import entry_of
from deployments.kuberay.manifest import (
    Bundle,
    Fault,
    Group,
    Manifest,
    groups_of,
    mapping,
    mappings,
    serve_config_of,
    serve_port_of,
    walk,
)


def pod_ports(bundle: Bundle) -> Iterator[Fault]:
    for service in bundle.of_kind("RayService"):
        port = serve_port_of(service)
        for group in groups_of(service):
            if group.ports.get("serve") != port:
                yield service.fault(
                    "ports",
                    f"{group.ray_path}.ports",
                    f"has serve {group.ports.get('serve')}; Serve listens on "
                    f"{port} (http_options.port). Make them equal",
                )
            yield from _probe_ports(service, group)
        host = mapping(serve_config_of(service), "http_options").get("host")
        if host in ("127.0.0.1", "localhost"):
            yield service.fault(
                "ports",
                "spec.serveConfigV2.http_options.host",
                f"is {host!r}: nobody outside the pod would reach it. Set 0.0.0.0",
            )


def _probe_ports(service: Manifest, group: Group) -> Iterator[Fault]:
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        port = mapping(group.ray, name, "httpGet").get("port")
        if port is not None and port not in (*group.ports, *group.ports.values()):
            yield service.fault(
                "ports",
                f"{group.ray_path}.{name}.httpGet.port",
                f"is {port!r}; the container has {_listed(group.ports)}. Name one of them",
            )


def _listed(ports: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {port}" for name, port in ports.items()) or "none"


def ingress_backends(bundle: Bundle) -> Iterator[Fault]:
    wanted = dict(entry_of(one, serve_port_of(one)) for one in bundle.of_kind("RayService"))
    for ingress in bundle.of_kind("Ingress"):
        for path, body in walk(ingress.body):
            backend = mapping(body, "service")
            if not path.endswith("backend") or not backend:
                continue
            name, port = backend.get("name"), mapping(backend, "port").get("number")
            if wanted.get(str(name)) != port:
                there = " or ".join(f"{one} {number}" for one, number in wanted.items())
                yield ingress.fault(
                    "ports",
                    f"{path}.service",
                    f"is {name} {port}; requests go to {there}. Correct it",
                )


def policy_ports(bundle: Bundle) -> Iterator[Fault]:
    """The ports that a network policy opens to others are ports of pods."""
    groups = [group for one in bundle.of_kind("RayService") for group in groups_of(one)]
    known = {port for group in groups for port in group.ports.values()}
    for policy in bundle.of_kind("NetworkPolicy") if groups else ():
        rules = mappings(policy.spec, "ingress")
        for i, rule in enumerate(rules):
            for j, port in enumerate(mappings(rule, "ports")):
                if port.get("port") not in known:
                    yield policy.fault(
                        "ports",
                        f"spec.ingress[{i}].ports[{j}].port",
                        f"is {port.get('port')}; pods have {', '.join(map(str, sorted(known)))}. "
                        "Correct it",
                    )
        yield from _closed(policy, rules, bundle)


def _closed(
    policy: Manifest, rules: Sequence[Mapping[str, Any]], bundle: Bundle
) -> Iterator[Fault]:
    opened = {port.get("port") for rule in rules for port in mappings(rule, "ports")}
    for service in bundle.of_kind("RayService"):
        port = serve_port_of(service)
        if port not in opened:
            yield policy.fault(
                "ports",
                "spec.ingress",
                f"opens no port {port}, where Serve listens. Open it to the entry",
            )
    for i, rule in enumerate(rules):
        if not rule.get("from"):
            yield policy.fault(
                "open", f"spec.ingress[{i}].from", "is missing: everybody may come in. Name who may"
            )


RULES = (pod_ports, ingress_backends, policy_ports)
