"""What the KubeRay operator refuses once a RayService is applied, found before that.

Facts from the validation of KubeRay 1.7 (``ray-operator/controllers/ray/utils/validation.go``).
"""

from collections.abc import Iterator

from deployments.kuberay.manifest import Fault, Group, Manifest, cluster_of, groups_of, mapping

RESOURCE_PARAMS = ("num-cpus", "num-gpus", "memory", "resources")
MAX_NAME_CHARS = 47
UPGRADE_TYPES = ("NewClusterWithIncrementalUpgrade", "NewCluster", "None")
MAX_PERCENT = 100


def resources_in_two_places(service: Manifest) -> Iterator[Fault]:
    for group in groups_of(service):
        given = [name for name in RESOURCE_PARAMS if group.start_params.get(name)]
        for name in given:
            path = f"{group.path}.rayStartParams.{name}"
            value = group.start_params[name]
            if group.body.get("resources"):
                yield service.fault(
                    "two-places",
                    path,
                    f"is {value!r} and {group.path}.resources is set too; the operator takes one. "
                    "Take it out of rayStartParams",
                )
            elif not group.is_head or (name, str(value)) != ("num-cpus", "0"):
                yield service.fault(
                    "two-places",
                    path,
                    f"is {value!r} beside the limits of the container {dict(group.limits)}; Ray "
                    "would believe the first. Take it out: KubeRay counts the limits",
                )


def containers(service: Manifest) -> Iterator[Fault]:
    for group in groups_of(service):
        if not group.containers:
            yield service.fault(
                "no-container",
                f"{group.path}.template.spec.containers",
                "is empty; Ray's container has to be the first. Add it",
            )


def labels_in_start_params(service: Manifest) -> Iterator[Fault]:
    for group in groups_of(service):
        if "labels" in group.start_params:
            yield service.fault(
                "labels-param",
                f"{group.path}.rayStartParams.labels",
                f"the operator refuses it. Set {group.path}.labels",
            )


def names(service: Manifest) -> Iterator[Fault]:
    if len(service.name) > MAX_NAME_CHARS:
        yield service.fault(
            "name",
            "metadata.name",
            f"has {len(service.name)} characters; the limit is {MAX_NAME_CHARS}. Shorten it",
        )


def autoscaler(service: Manifest) -> Iterator[Fault]:
    cluster = cluster_of(service)
    is_on = cluster.get("enableInTreeAutoscaling") is True
    version = mapping(cluster, "autoscalerOptions").get("version")
    for group in groups_of(service):
        yield from _restarts(service, group, is_on=is_on, version=version)
        if (
            group.is_head
            and "RAY_enable_autoscaler_v2" in group.env_names
            and (version or not is_on)
        ):
            yield service.fault(
                "autoscaler",
                f"{group.ray_path}.env",
                "has RAY_enable_autoscaler_v2. Use enableInTreeAutoscaling and "
                "autoscalerOptions.version only",
            )
        if group.is_head and is_on and group.pod.get("automountServiceAccountToken") is not True:
            yield service.fault(
                "autoscaler",
                f"{group.path}.template.spec.automountServiceAccountToken",
                "is not true; the autoscaler beside the head cannot ask for pods. Set true",
            )


def _restarts(service: Manifest, group: Group, *, is_on: bool, version: object) -> Iterator[Fault]:
    policy = group.pod.get("restartPolicy", "Never")
    if is_on and version == "v2" and policy != "Never":
        yield service.fault(
            "autoscaler",
            f"{group.path}.template.spec.restartPolicy",
            f"is {policy!r}; autoscaler v2 takes Never only. Leave it out",
        )
    if is_on and group.body.get("suspend"):
        yield service.fault(
            "autoscaler",
            f"{group.path}.suspend",
            "does not go with the autoscaler. Take it out",
        )


def replica_bounds(service: Manifest) -> Iterator[Fault]:
    is_on = cluster_of(service).get("enableInTreeAutoscaling") is True
    for group in groups_of(service)[1:]:
        low, high = group.body.get("minReplicas", 0), group.body.get("maxReplicas", 2**31 - 1)
        count = group.body.get("replicas", low)
        if not low <= count <= high:
            yield service.fault(
                "bounds",
                f"{group.path}.replicas",
                f"is {count}, minReplicas {low} and maxReplicas {high}. Order them",
            )
        if low != high and not is_on:
            yield service.fault(
                "bounds",
                f"{group.path}.maxReplicas",
                f"is {high} and minReplicas {low}, but nothing scales: enableInTreeAutoscaling is "
                "not set. Set it, or make both equal",
            )


def fault_tolerance(service: Manifest) -> Iterator[Fault]:
    cluster = cluster_of(service)
    head = groups_of(service)[0]
    path = "spec.rayClusterConfig.gcsFaultToleranceOptions"
    options = cluster.get("gcsFaultToleranceOptions")
    if options is None:
        if "RAY_REDIS_ADDRESS" in head.env_names:
            yield service.fault(
                "fault-tolerance",
                f"{head.ray_path}.env",
                f"has RAY_REDIS_ADDRESS without {path}. Set redisAddress there",
            )
        return
    if mapping(options).get("backend", "redis") == "redis" and not options.get("redisAddress"):
        yield service.fault(
            "fault-tolerance",
            f"{path}.redisAddress",
            "is missing: the GCS has nowhere to keep what it knows. Set redis://HOST:PORT",
        )
    for name in ("REDIS_PASSWORD", "RAY_REDIS_ADDRESS", "REDIS_USERNAME"):
        if name in head.env_names:
            yield service.fault(
                "fault-tolerance",
                f"{head.ray_path}.env",
                f"has {name} beside {path}; the operator takes one. Take it out",
            )
    for name in ("redis-password", "redis-username"):
        if head.start_params.get(name):
            yield service.fault(
                "fault-tolerance",
                f"{head.path}.rayStartParams.{name}",
                f"is set beside {path}; the operator takes one. Take it out",
            )


def upgrade(service: Manifest) -> Iterator[Fault]:
    strategy = mapping(service.spec, "upgradeStrategy")
    kind = strategy.get("type")
    path = "spec.upgradeStrategy"
    if kind is not None and kind not in UPGRADE_TYPES:
        yield service.fault(
            "upgrade",
            f"{path}.type",
            f"is {kind!r}; known are {', '.join(UPGRADE_TYPES)}. Take one",
        )
    if kind != UPGRADE_TYPES[0]:
        return
    if cluster_of(service).get("enableInTreeAutoscaling") is not True:
        yield service.fault(
            "upgrade",
            f"{path}.type",
            f"is {kind!r}, which needs Ray's autoscaler. Set "
            "spec.rayClusterConfig.enableInTreeAutoscaling: true",
        )
    options = mapping(strategy, "clusterUpgradeOptions")
    if not options.get("gatewayClassName"):
        yield service.fault(
            "upgrade",
            f"{path}.clusterUpgradeOptions.gatewayClassName",
            "is missing; a Gateway moves the requests over. Name a class of the cluster",
        )
    for name, low, high in (
        ("stepSizePercent", 0, MAX_PERCENT),
        ("maxSurgePercent", 0, MAX_PERCENT),
        ("intervalSeconds", 1, None),
    ):
        value = options.get(name, MAX_PERCENT if name == "maxSurgePercent" else None)
        if not isinstance(value, int) or value < low or (high is not None and value > high):
            limit = f"from {low} to {high}" if high is not None else f"{low} at least"
            yield service.fault(
                "upgrade",
                f"{path}.clusterUpgradeOptions.{name}",
                f"is {value!r}; it must be {limit}. Correct it",
            )


RULES = (
    containers,
    names,
    resources_in_two_places,
    labels_in_start_params,
    autoscaler,
    replica_bounds,
    fault_tolerance,
    upgrade,
)
