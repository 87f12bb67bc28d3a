"""Keys of a RayService that KubeRay 1.7 does not know; the API server drops them, or refuses them.

The table holds the levels that these manifests use. With the CRD at hand, ``crd.py`` sees them all.
"""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from deployments.kuberay.manifest import Fault, Manifest, cluster_of, groups_of, mapping

SERVICE = frozenset(
    [
        "deploymentUnhealthySecondThreshold",
        "excludeHeadPodFromServeSvc",
        "managedBy",
        "rayClusterConfig",
        "rayClusterDeletionDelaySeconds",
        "serveConfigV2",
        "serveService",
        "serviceUnhealthySecondThreshold",
        "suspend",
        "upgradeStrategy",
    ]
)
CLUSTER = frozenset(
    [
        "authOptions",
        "autoscalerOptions",
        "enableInTreeAutoscaling",
        "gcsFaultToleranceOptions",
        "headGroupSpec",
        "headServiceAnnotations",
        "historyServerOptions",
        "managedBy",
        "networkPolicy",
        "rayVersion",
        "suspend",
        "tlsOptions",
        "upgradeStrategy",
        "workerGroupSpecs",
    ]
)
HEAD = frozenset(
    [
        "enableIngress",
        "headService",
        "ingressOptions",
        "labels",
        "rayStartParams",
        "resources",
        "serviceType",
        "template",
    ]
)
WORKER = frozenset(
    [
        "groupName",
        "idleTimeoutSeconds",
        "labels",
        "maxReplicas",
        "minReplicas",
        "numOfHosts",
        "priority",
        "rayStartParams",
        "replicas",
        "resources",
        "scaleStrategy",
        "suspend",
        "template",
    ]
)
AUTH = frozenset({"enableK8sTokenAuth", "mode", "secretName"})
AUTOSCALER = frozenset(
    [
        "args",
        "command",
        "env",
        "envFrom",
        "idleTimeoutSeconds",
        "image",
        "imagePullPolicy",
        "resources",
        "securityContext",
        "upscalingMode",
        "version",
        "volumeMounts",
    ]
)
FAULT_TOLERANCE = frozenset(
    [
        "backend",
        "externalStorageNamespace",
        "redisAddress",
        "redisPassword",
        "redisUsername",
        "storage",
    ]
)
UPGRADE = frozenset({"clusterUpgradeOptions", "type"})
UPGRADE_OPTIONS = frozenset(
    {"gatewayClassName", "intervalSeconds", "maxSurgePercent", "stepSizePercent"}
)


def unknown_keys(service: Manifest) -> Iterator[Fault]:
    for path, body, known in _levels(service):
        for key in sorted(set(body) - known):
            close = difflib.get_close_matches(key, known, n=1)
            remedy = (
                f"Did you mean {close[0]}?" if close else f"Known are {', '.join(sorted(known))}"
            )
            yield service.fault("unknown-key", f"{path}.{key}", f"no key of KubeRay 1.7. {remedy}")


def _levels(
    service: Manifest,
) -> Iterator[tuple[str, Mapping[str, Any], frozenset[str]]]:
    cluster = cluster_of(service)
    root = "spec.rayClusterConfig"
    upgrade = mapping(service.spec, "upgradeStrategy")
    yield "spec", service.spec, SERVICE
    yield root, cluster, CLUSTER
    for group in groups_of(service):
        yield group.path, group.body, HEAD if group.is_head else WORKER
    yield f"{root}.authOptions", mapping(cluster, "authOptions"), AUTH
    yield f"{root}.autoscalerOptions", mapping(cluster, "autoscalerOptions"), AUTOSCALER
    yield (
        f"{root}.gcsFaultToleranceOptions",
        mapping(cluster, "gcsFaultToleranceOptions"),
        FAULT_TOLERANCE,
    )
    yield "spec.upgradeStrategy", upgrade, UPGRADE
    yield (
        "spec.upgradeStrategy.clusterUpgradeOptions",
        mapping(upgrade, "clusterUpgradeOptions"),
        UPGRADE_OPTIONS,
    )
