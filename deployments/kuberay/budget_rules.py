"""Disruption budgets of Ray's pods: what the eviction API of Kubernetes can count."""

from collections.abc import Iterator

from deployments.kuberay.manifest import Bundle, Fault, Manifest, groups_of, mapping


def budgets_in_pods(bundle: Bundle) -> Iterator[Fault]:
    """``maxUnavailable`` and percentages ask the owner of the pods for its scale.

    A RayCluster has no scale subresource: the disruption controller fails, and allows no eviction.
    https://kubernetes.io/docs/tasks/run-application/configure-pdb/#arbitrary-controllers-and-selectors
    """
    for budget in bundle.of_kind("PodDisruptionBudget"):
        if not _is_of_ray(budget, bundle):
            continue
        if "maxUnavailable" in budget.spec:
            yield budget.fault(
                "budget",
                "spec.maxUnavailable",
                f"is {budget.spec['maxUnavailable']!r}: a RayCluster has no scale to count it "
                "from, so nobody could be evicted. Set minAvailable to a number of pods",
            )
        least = budget.spec.get("minAvailable")
        if isinstance(least, str):
            yield budget.fault(
                "budget",
                "spec.minAvailable",
                f"is {least!r}: a RayCluster has no scale to take a share of, so nobody could be "
                "evicted. Set a number of pods",
            )


def _is_of_ray(budget: Manifest, bundle: Bundle) -> bool:
    wanted = mapping(budget.spec, "selector", "matchLabels")
    groups = (group for one in bundle.of_kind("RayService") for group in groups_of(one))
    return any(wanted.items() <= group.labels.items() for group in groups)


RULES = (budgets_in_pods,)
