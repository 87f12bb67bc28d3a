"""All rules on an overlay, or on objects at hand."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from deployments.kuberay import (
    budget_rules,
    operator_rules,
    own_rules,
    port_rules,
    token_rules,
)
from deployments.kuberay.crd import schema_faults
from deployments.kuberay.keys import unknown_keys
from deployments.kuberay.manifest import Bundle, Fault, Manifest
from deployments.kuberay.render import read_objects, render
from deployments.kuberay.serve_config import WRITE_COMMAND, stale

TEMPLATE = "k8s/base/secrets.template.yaml"
FOLDERS = (
    "k8s/base",
    "k8s/overlays/cpu-dev",
    "k8s/overlays/gpu",
    "k8s/overlays/ha",
    "k8s/overlays/monitoring",
)


def lint_folder(root: Path, folder: str, *, schema: dict[str, Any] | None = None) -> list[Fault]:
    """Faults of one rendered kustomization."""
    return lint(render(root / folder), folder, template_secrets(root), schema=schema)


def lint(
    bodies: Iterable[Mapping[str, Any]],
    source: str,
    secret_names: frozenset[str] = frozenset(),
    *,
    schema: dict[str, Any] | None = None,
) -> list[Fault]:
    """Faults of objects that are applied together; ``schema``: of a RayService, if at hand."""
    bundle = Bundle([Manifest(source, body) for body in bodies], secret_names)
    return list(dict.fromkeys(_faults(bundle, schema)))


def _faults(bundle: Bundle, schema: dict[str, Any] | None) -> Iterator[Fault]:
    for service in bundle.of_kind("RayService"):
        yield from unknown_keys(service)
        if schema is not None:
            yield from schema_faults(service, schema)
        for rule in (*operator_rules.RULES, *token_rules.RULES):
            yield from rule(service)
    for rule_of_all in (*own_rules.RULES, *port_rules.RULES, *budget_rules.RULES):
        yield from rule_of_all(bundle)


def template_secrets(root: Path) -> frozenset[str]:
    """The names that whoever deploys is told to create."""
    return frozenset(one["metadata"]["name"] for one in read_objects(root / TEMPLATE))


def stale_lines(root: Path) -> list[str]:
    return [f"{path} is not what its source makes it. Run {WRITE_COMMAND}" for path in stale(root)]
