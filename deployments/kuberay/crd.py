"""RayServices against the schema of KubeRay's own CRD, with unknown keys refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from deployments.kuberay.manifest import Fault, Manifest

VERSION = "v1"


def read_schema(path: Path) -> dict[str, Any]:
    """The schema of ``ray.io/v1`` out of a CRD file, closed for unknown keys."""
    document = next(one for one in yaml.safe_load_all(path.read_text(encoding="utf-8")) if one)
    version = next(one for one in document["spec"]["versions"] if one["name"] == VERSION)
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    _close(schema["properties"]["spec"])
    return schema


def _close(schema: Any) -> None:
    if isinstance(schema, list):
        for one in schema:
            _close(one)
    elif isinstance(schema, dict):
        is_open = schema.get("x-kubernetes-preserve-unknown-fields") or (
            "additionalProperties" in schema
        )
        if isinstance(schema.get("properties"), dict) and not is_open:
            schema["additionalProperties"] = False
        for one in schema.values():
            _close(one)


def schema_faults(service: Manifest, schema: dict[str, Any]) -> Iterator[Fault]:
    for error in Draft202012Validator(schema).iter_errors(service.body):
        yield service.fault("schema", error.json_path.removeprefix("$."), error.message)
