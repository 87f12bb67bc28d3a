"""Disruption budgets let somebody go, and are such as Kubernetes can count for Ray's pods."""

import pytest
import yaml

from deployments.kuberay.lint import lint, template_secrets
from deployments.kuberay.manifest import mapping
from tests.k8s.manifests import ROOT, one_of, rendered

WORKERS = "latentmas-worker"


def least(bodies, name):
    return one_of(bodies, "PodDisruptionBudget", name)["spec"]["minAvailable"]


@pytest.mark.parametrize(
    ("key", "value"), [("maxUnavailable", 1), ("maxUnavailable", "25%"), ("minAvailable", "50%")]
)
def test_a_budget_that_needs_a_scale_is_caught(key, value):
    bodies = rendered("k8s/base")
    budget = one_of(bodies, "PodDisruptionBudget", WORKERS)["spec"]
    del budget["minAvailable"]
    budget[key] = value
    faults = lint(bodies, "k8s/base", template_secrets(ROOT))
    assert [(one.rule, one.path) for one in faults] == [("budget", f"spec.{key}")]


def test_a_budget_of_pods_that_have_a_scale_may_have_one():
    bodies = rendered("k8s/overlays/ha")
    selector = mapping(one_of(bodies, "StatefulSet"), "spec")["selector"]
    budget = one_of(bodies, "PodDisruptionBudget", WORKERS)
    budget["spec"] = {"maxUnavailable": 1, "selector": selector}
    faults = lint(bodies, "k8s/overlays/ha", template_secrets(ROOT))
    assert [one for one in faults if one.rule == "budget"] == []


@pytest.mark.parametrize("folder", ["k8s/base", "k8s/overlays/cpu-dev", "k8s/overlays/gpu"])
def test_a_worker_may_go_where_the_service_has_what_it_needs(folder):
    bodies = rendered(folder)
    spec = one_of(bodies, "RayService")["spec"]
    groups = spec["rayClusterConfig"]["workerGroupSpecs"]
    (application,) = yaml.safe_load(spec["serveConfigV2"])["applications"]
    cards = sum(one.get("num_gpus", 0) for one in application["args"]["groups"])
    num_workers = max(sum(group["replicas"] for group in groups), cards)
    assert least(bodies, WORKERS) == num_workers - 1


def test_the_head_may_go_only_where_redis_keeps_what_it_knows():
    assert least(rendered("k8s/base"), "latentmas-head") == 1
    assert least(rendered("k8s/overlays/gpu"), "latentmas-head") == 1
    assert least(rendered("k8s/overlays/ha"), "latentmas-head") == 0
