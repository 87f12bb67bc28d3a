"""The token of Ray's own ports: without it whoever reaches the pods can run code.

The operator asks for less: it takes a cluster without one.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from deployments.kuberay.manifest import Fault, Manifest, cluster_of, groups_of, mapping

MIN_RAY = (2, 52)
OPTIONS = "spec.rayClusterConfig.authOptions"


def mode(service: Manifest) -> Iterator[Fault]:
    given = _options(service).get("mode")
    if given != "token":
        yield service.fault(
            "token",
            f"{OPTIONS}.mode",
            f"is {given!r}; whoever reaches the pods can run code. Set token",
        )


def secret(service: Manifest) -> Iterator[Fault]:
    if _has_token(service) and not _options(service).get("secretName"):
        yield service.fault(
            "token",
            f"{OPTIONS}.secretName",
            "is missing; a token that the operator makes differs by cluster. Name a Secret",
        )


def version(service: Manifest) -> Iterator[Fault]:
    given = str(cluster_of(service).get("rayVersion", ""))
    numbers = tuple(int(part) for part in given.split(".")[:2] if part.isdecimal())
    if _has_token(service) and numbers < MIN_RAY:
        yield service.fault(
            "token",
            "spec.rayClusterConfig.rayVersion",
            f"is {given!r}; tokens need 2.52 at least. Name the version of the image",
        )


def mode_in_two_places(service: Manifest) -> Iterator[Fault]:
    for group in groups_of(service) if _has_token(service) else ():
        if "RAY_AUTH_MODE" in group.env_names:
            yield service.fault(
                "two-places",
                f"{group.ray_path}.env.RAY_AUTH_MODE",
                "is set beside authOptions, from which the operator sets it. Take it out",
            )


def _options(service: Manifest) -> Mapping[str, Any]:
    return mapping(cluster_of(service), "authOptions")


def _has_token(service: Manifest) -> bool:
    return _options(service).get("mode") == "token"


RULES = (mode, secret, version, mode_in_two_places)
