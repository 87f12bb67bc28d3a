"""Alerts ask for metrics that there are, and say what is wrong."""

import re

from deployments.metrics import METRICS, Kind
from tests.k8s.manifests import one_of, rendered

_NAME = re.compile(r"\bray_\w+")


def alerts():
    rules = one_of(rendered("k8s/overlays/monitoring"), "PrometheusRule")
    return [rule for group in rules["spec"]["groups"] for rule in group["rules"]]


def exported():
    """As Ray exports them: counters end in _total, histograms are three series."""
    suffixes = {
        Kind.COUNTER: ("_total",),
        Kind.GAUGE: ("",),
        Kind.HISTOGRAM: ("_bucket", "_sum", "_count"),
    }
    return {f"ray_{one.name}{end}": one for one in METRICS for end in suffixes[one.kind]}


def test_alerts_ask_only_for_metrics_and_labels_that_there_are():
    known = exported()
    by_serve = {"deployment", "application", "replica", "le"}
    for rule in alerts():
        names = _NAME.findall(rule["expr"])
        assert names, rule["alert"]
        assert set(names) <= set(known), rule["alert"]
        labels = {label for name in names for label in known[name].labels} | by_serve
        for listed in re.findall(r"by \(([^)]*)\)", rule["expr"]):
            assert {label.strip() for label in listed.split(",")} <= labels, rule["alert"]


def test_each_alert_names_its_cause_and_a_remedy():
    for rule in alerts():
        assert {"summary", "cause", "remedy"} <= set(rule["annotations"]), rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")


def test_pods_have_the_ports_that_are_scraped():
    monitor = one_of(rendered("k8s/overlays/monitoring"), "PodMonitor")
    service = one_of(rendered("k8s/base"), "RayService")
    template = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]
    labels = template["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    ports = {port["name"] for port in template["spec"]["containers"][0]["ports"]}
    assert {one["port"] for one in monitor["spec"]["podMetricsEndpoints"]} <= ports
