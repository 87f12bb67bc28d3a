"""Requests find their way in: where the Ingress sends them, and who is let in."""

import pytest

from deployments.kuberay.lint import lint, template_secrets
from tests.k8s.manifests import ROOT, one_of, rendered

HA = "k8s/overlays/ha"


def backend(bodies):
    rules = one_of(bodies, "Ingress")["spec"]["rules"]
    return rules[0]["http"]["paths"][0]["backend"]["service"]


def faults(bodies):
    return [(one.rule, one.path) for one in lint(bodies, HA, template_secrets(ROOT))]


def test_with_incremental_upgrades_the_ingress_sends_to_the_gateway():
    bodies = rendered(HA)
    assert backend(bodies) == {"name": "latentmas-gateway-istio", "port": {"number": 80}}
    assert one_of(bodies, "Ingress")["spec"]["tls"], "the Gateway listens on plain HTTP"


@pytest.mark.parametrize(
    ("key", "value"),
    [("name", "latentmas-serve-svc"), ("name", "latentmas-gateway"), ("port", {"number": 8000})],
)
def test_an_ingress_that_goes_past_the_gateway_is_caught(key, value):
    bodies = rendered(HA)
    backend(bodies)[key] = value
    assert [rule for rule, path in faults(bodies) if "backend.service" in path] == ["ports"]


def test_another_class_of_gateways_has_another_service():
    bodies = rendered(HA)
    options = one_of(bodies, "RayService")["spec"]["upgradeStrategy"]["clusterUpgradeOptions"]
    options["gatewayClassName"] = "other"
    assert [rule for rule, path in faults(bodies) if "backend.service" in path] == ["ports"]
    backend(bodies)["name"] = "latentmas-gateway-other"
    assert faults(bodies) == []


def test_the_pods_of_the_gateway_are_let_in_where_serve_listens():
    policy = one_of(rendered(HA), "NetworkPolicy", "latentmas-gateway")["spec"]
    (rule,) = policy["ingress"]
    (source,) = rule["from"]
    name = source["podSelector"]["matchLabels"]["gateway.networking.k8s.io/gateway-name"]
    assert backend(rendered(HA))["name"] == f"{name}-istio"
    assert [port["port"] for port in rule["ports"]] == [8000]
