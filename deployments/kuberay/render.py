"""Renders the kustomizations of ``k8s/``, so that they can be checked where there is no kubectl.

Knows only what they use: resources, merge patches, namespace, and configMapGenerator with files and
a fixed name. Anything else in a kustomization is refused, not left out.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from deployments.kuberay.manifest import mapping

KUSTOMIZATION = "kustomization.yaml"
KNOWN = {"apiVersion", "kind", "namespace", "resources", "patches", "configMapGenerator"}
CLUSTER_WIDE = {"Namespace"}

Body = dict[str, Any]


def render(folder: Path) -> list[Body]:
    """All objects, bases first; ValueError for what is not known here or does not match."""
    document = yaml.safe_load((folder / KUSTOMIZATION).read_text(encoding="utf-8"))
    unknown = sorted(set(document) - KNOWN)
    if unknown:
        raise ValueError(f"{folder / KUSTOMIZATION} has {', '.join(unknown)}; use kubectl for it.")
    objects = [one for path in document.get("resources", []) for one in _resource(folder / path)]
    for patch in document.get("patches", []):
        for body in read_objects(folder / patch["path"]):
            _apply(objects, body, folder / patch["path"])
    objects += [_config_map(folder, one) for one in document.get("configMapGenerator", [])]
    if "namespace" in document:
        for one in objects:
            if one["kind"] not in CLUSTER_WIDE:
                one["metadata"]["namespace"] = document["namespace"]
    return objects


def read_objects(path: Path) -> list[Body]:
    """The documents of one file."""
    documents = yaml.safe_load_all(path.read_text(encoding="utf-8"))
    return [document for document in documents if document]


def _resource(path: Path) -> list[Body]:
    return render(path) if path.is_dir() else read_objects(path)


def _apply(objects: list[Body], patch: Body, source: Path) -> None:
    for i, one in enumerate(objects):
        if _identity(one) == _identity(patch):
            objects[i] = merged(one, patch)
            return
    raise ValueError(f"{source} patches {_identity(patch)}, which is not among the resources.")


def merged(body: Any, patch: Any) -> Any:
    """RFC 7386: mappings are merged, null takes out, all else replaces, lists too."""
    if not isinstance(patch, Mapping):
        return copy.deepcopy(patch)
    result = dict(body) if isinstance(body, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def _identity(body: Body) -> tuple[str, str]:
    return str(body.get("kind")), str(mapping(body, "metadata").get("name"))


def _config_map(folder: Path, generator: Mapping[str, Any]) -> Body:
    options = mapping(generator, "options")
    if not options.get("disableNameSuffixHash"):
        raise ValueError(f"{generator['name']} of {folder} needs disableNameSuffixHash: true.")
    metadata: Body = {"name": generator["name"]}
    if options.get("labels"):
        metadata["labels"] = dict(options["labels"])
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in generator["files"]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": texts}
