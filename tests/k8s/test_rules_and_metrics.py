"""Alerts ask for metrics that there are, and say what is wrong."""

import re

from deployments.api.errors import kind_of
from deployments.metrics import METRICS, Kind
from latentmas_core.errors import LatentMASError
from tests.k8s.manifests import ROOT, one_of, rendered

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
        kept = kept_labels(rule["expr"])
        matched = re.findall(r"[{,]\s*(\w+)\s*(?:=|!=|=~|!~)\s*\"", rule["expr"])
        assert kept | set(matched) <= labels, rule["alert"]
        told = re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))
        assert set(told) <= kept, f"{rule['alert']} tells a label that its expression sums away"


def kept_labels(expr):
    listed = re.findall(r"by \(([^)]*)\)", expr)
    return {label.strip() for labels in listed for label in labels.split(",")}


def test_mistakes_of_clients_are_no_alert():
    (rule,) = [rule for rule in alerts() if rule["alert"] == "LatentmasErrors"]
    (matcher,) = re.findall(r'status!~"([^"]+)"', rule["expr"])
    of_clients = {kind.__name__ for kind in classes(LatentMASError) if status_of(kind) < 500}
    assert {"ConfigError", "NotFoundError"} < of_clients
    assert set(matcher.split("|")) == {"done", "cancelled"} | of_clients


def classes(kind):
    return {kind}.union(*map(classes, kind.__subclasses__()))


def status_of(kind):
    return kind_of(kind("")).status


def test_each_alert_names_its_cause_and_a_remedy():
    for rule in alerts():
        told = rule["annotations"]
        assert {"summary", "cause", "remedy"} <= set(told), rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")
        for page in re.findall(r"\b[\w/]+\.(?:md|py)\b", str(told)):
            assert (ROOT / page).is_file(), page


def test_pods_have_the_ports_that_are_scraped():
    monitor = one_of(rendered("k8s/overlays/monitoring"), "PodMonitor")
    service = one_of(rendered("k8s/base"), "RayService")
    template = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]
    labels = template["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    ports = {port["name"] for port in template["spec"]["containers"][0]["ports"]}
    assert {one["port"] for one in monitor["spec"]["podMetricsEndpoints"]} <= ports
