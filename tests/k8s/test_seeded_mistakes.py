"""Mistakes of deployments, put into sound manifests one by one: each is caught, and by name."""

import pytest
import yaml

from deployments.kuberay.lint import lint, template_secrets
from tests.k8s.manifests import ROOT, one_of, rendered


def cluster(bodies):
    return one_of(bodies, "RayService")["spec"]["rayClusterConfig"]


def head(bodies):
    return cluster(bodies)["headGroupSpec"]


def worker(bodies):
    return cluster(bodies)["workerGroupSpecs"][0]


def container(group):
    return group["template"]["spec"]["containers"][0]


def change_config(bodies, change):
    spec = one_of(bodies, "RayService")["spec"]
    document = yaml.safe_load(spec["serveConfigV2"])
    change(document)
    spec["serveConfigV2"] = yaml.safe_dump(document)


def app(document):
    return document["applications"][0]


def misspell_a_key(bodies):
    cluster(bodies)["enableInTreeAutoscalling"] = True


def misspell_a_key_of_a_group(bodies):
    worker(bodies)["maxReplica"] = 3


def misspell_a_serve_key(bodies):
    change_config(bodies, lambda document: document.update(htp_options={}))


def misspell_an_arg(bodies):
    change_config(bodies, lambda document: app(document)["args"].update(latent_step=3))


def give_cpus_twice(bodies):
    worker(bodies)["rayStartParams"]["num-cpus"] = "8"


def give_gpus_twice(bodies):
    worker(bodies)["rayStartParams"]["num-gpus"] = "1"


def give_resources_of_a_group_twice(bodies):
    head(bodies)["resources"] = {"CPU": "1"}


def set_labels_as_a_param(bodies):
    worker(bodies)["rayStartParams"]["labels"] = "a=b"


def name_a_missing_secret(bodies):
    container(worker(bodies))["env"][1]["valueFrom"]["secretKeyRef"]["name"] = "api-keys"


def name_a_missing_token(bodies):
    cluster(bodies)["authOptions"]["secretName"] = "ray-token"


def name_a_missing_account(bodies):
    worker(bodies)["template"]["spec"]["serviceAccountName"] = "worker"


def switch_the_token_off(bodies):
    cluster(bodies)["authOptions"]["mode"] = "disabled"


def use_a_ray_without_tokens(bodies):
    cluster(bodies)["rayVersion"] = "2.49.0"


def set_the_token_mode_twice(bodies):
    container(head(bodies))["env"].append({"name": "RAY_AUTH_MODE", "value": "token"})


def use_a_policy_that_the_head_lacks(bodies):
    policy = {"policy_function": "my_policies:Ratio"}
    change_config(bodies, lambda document: app(document).update(autoscaling_policy=policy))


def use_a_router_that_is_not_there(bodies):
    router = {"request_router_class": "cluster.routes:ResidencyRouter"}
    deployment = {"name": "thinkers", "request_router_config": router}
    change_config(bodies, lambda document: app(document).update(deployments=[deployment]))


def use_middlewares_that_are_not_there(bodies):
    container(head(bodies))["env"][0]["value"] = "proxies:middlewares"


def use_other_code_on_the_head(bodies):
    container(head(bodies))["image"] = "rayproject/ray:2.60.0"


def use_the_latest_image(bodies):
    container(worker(bodies))["image"] = "ghcr.io/latentmas/latentmas:latest"


def move_the_port_of_serve(bodies):
    change_config(bodies, lambda document: document["http_options"].update(port=9000))


def move_the_port_of_workers(bodies):
    container(worker(bodies))["ports"][0]["containerPort"] = 8001


def listen_within_the_pod(bodies):
    change_config(bodies, lambda document: document["http_options"].update(host="127.0.0.1"))


def probe_another_port(bodies):
    container(worker(bodies))["readinessProbe"]["httpGet"]["port"] = 8080 + 1


def send_requests_elsewhere(bodies):
    paths = one_of(bodies, "Ingress")["spec"]["rules"][0]["http"]["paths"]
    paths[0]["backend"]["service"]["name"] = "latentmas-head-svc"


def open_another_port(bodies):
    rules = one_of(bodies, "NetworkPolicy")["spec"]["ingress"]
    rules[2]["ports"][0]["port"] = 80


def let_everybody_in(bodies):
    del one_of(bodies, "NetworkPolicy")["spec"]["ingress"][2]["from"]


def protect_no_pod(bodies):
    budget = one_of(bodies, "PodDisruptionBudget")
    budget["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"] = "workers"


def ask_for_more_cpus_than_a_pod_has(bodies):
    change_config(bodies, lambda document: app(document)["args"]["groups"][0].update(num_cpus=16))


def ask_for_more_gpus_than_a_pod_has(bodies):
    change_config(bodies, lambda document: app(document)["args"]["groups"][0].update(num_gpus=2))


def start_without_keys(bodies):
    change_config(bodies, lambda document: app(document)["args"].pop("access"))


def keep_conversations_in_a_pod(bodies):
    change_config(bodies, lambda document: app(document)["args"].update(conversations={}))


def swap_the_bounds(bodies):
    worker(bodies).update(minReplicas=5, maxReplicas=2, replicas=5)


def scale_without_an_autoscaler(bodies):
    cluster(bodies)["enableInTreeAutoscaling"] = False


def restart_pods_under_the_autoscaler(bodies):
    worker(bodies)["template"]["spec"]["restartPolicy"] = "Always"


def keep_the_autoscaler_from_the_api(bodies):
    head(bodies)["template"]["spec"]["automountServiceAccountToken"] = False


def forget_redis(bodies):
    del cluster(bodies)["gcsFaultToleranceOptions"]["redisAddress"]


def give_the_password_twice(bodies):
    container(head(bodies))["env"].append({"name": "REDIS_PASSWORD", "value": "x"})


def upgrade_without_a_gateway(bodies):
    options = one_of(bodies, "RayService")["spec"]["upgradeStrategy"]["clusterUpgradeOptions"]
    del options["gatewayClassName"]


def upgrade_in_too_large_steps(bodies):
    options = one_of(bodies, "RayService")["spec"]["upgradeStrategy"]["clusterUpgradeOptions"]
    options["stepSizePercent"] = 250


def misspell_the_upgrade(bodies):
    one_of(bodies, "RayService")["spec"]["upgradeStrategy"]["type"] = "Rolling"


def forget_the_limits(bodies):
    del container(worker(bodies))["resources"]["limits"]["memory"]


def run_as_root(bodies):
    worker(bodies)["template"]["spec"]["securityContext"]["runAsNonRoot"] = False


BASE, GPU, HA = "k8s/base", "k8s/overlays/gpu", "k8s/overlays/ha"
SERVE = "spec.serveConfigV2"
CLUSTER = "spec.rayClusterConfig"
GROUP = f"{CLUSTER}.workerGroupSpecs[0]"
# Overlay, mistake, the rule that finds it, and where.
MISTAKES = [
    (BASE, misspell_a_key, "unknown-key", f"{CLUSTER}.enableInTreeAutoscalling"),
    (BASE, misspell_a_key_of_a_group, "unknown-key", f"{GROUP}.maxReplica"),
    (BASE, misspell_a_serve_key, "serve-config", f"{SERVE}.htp_options"),
    (BASE, misspell_an_arg, "serve-config", f"{SERVE}.applications[0].args.latent_step"),
    (BASE, give_cpus_twice, "two-places", f"{GROUP}.rayStartParams.num-cpus"),
    (GPU, give_gpus_twice, "two-places", f"{GROUP}.rayStartParams.num-gpus"),
    (BASE, give_resources_of_a_group_twice, "two-places", "rayStartParams.num-cpus"),
    (BASE, set_labels_as_a_param, "labels-param", f"{GROUP}.rayStartParams.labels"),
    (BASE, name_a_missing_secret, "missing-secret", "secretKeyRef.name"),
    (BASE, name_a_missing_token, "missing-secret", f"{CLUSTER}.authOptions.secretName"),
    (BASE, name_a_missing_account, "missing-account", "serviceAccountName"),
    (BASE, switch_the_token_off, "token", f"{CLUSTER}.authOptions.mode"),
    (BASE, use_a_ray_without_tokens, "token", f"{CLUSTER}.rayVersion"),
    (BASE, set_the_token_mode_twice, "two-places", "env.RAY_AUTH_MODE"),
    (BASE, use_a_policy_that_the_head_lacks, "not-importable", "policy_function"),
    (BASE, use_a_router_that_is_not_there, "not-importable", "request_router_class"),
    (BASE, use_middlewares_that_are_not_there, "not-importable", "CALLBACK_IMPORT_PATH"),
    (BASE, use_other_code_on_the_head, "head-code", "headGroupSpec.template.spec.containers[0]"),
    (BASE, use_the_latest_image, "image", "containers[0].image"),
    (BASE, move_the_port_of_serve, "ports", f"{GROUP}.template.spec.containers[0].ports"),
    (BASE, move_the_port_of_workers, "ports", f"{GROUP}.template.spec.containers[0].ports"),
    (BASE, listen_within_the_pod, "ports", f"{SERVE}.http_options.host"),
    (BASE, probe_another_port, "ports", "readinessProbe.httpGet.port"),
    (BASE, send_requests_elsewhere, "ports", "backend.service"),
    (BASE, open_another_port, "ports", "spec.ingress[2].ports[0].port"),
    (BASE, let_everybody_in, "open", "spec.ingress[2].from"),
    (BASE, protect_no_pod, "selector", "spec.selector.matchLabels"),
    (BASE, ask_for_more_cpus_than_a_pod_has, "serve-config", "args.groups[0]"),
    (GPU, ask_for_more_gpus_than_a_pod_has, "serve-config", "args.groups[0]"),
    (BASE, start_without_keys, "keys", "args.access.require_keys"),
    (BASE, keep_conversations_in_a_pod, "conversations", "args.conversations.url"),
    (GPU, swap_the_bounds, "bounds", f"{GROUP}.replicas"),
    (GPU, scale_without_an_autoscaler, "bounds", f"{GROUP}.maxReplicas"),
    (GPU, restart_pods_under_the_autoscaler, "autoscaler", "restartPolicy"),
    (GPU, keep_the_autoscaler_from_the_api, "autoscaler", "automountServiceAccountToken"),
    (HA, forget_redis, "fault-tolerance", "gcsFaultToleranceOptions.redisAddress"),
    (HA, give_the_password_twice, "fault-tolerance", "headGroupSpec.template.spec"),
    (HA, scale_without_an_autoscaler, "upgrade", "spec.upgradeStrategy.type"),
    (HA, upgrade_without_a_gateway, "upgrade", "gatewayClassName"),
    (HA, upgrade_in_too_large_steps, "upgrade", "stepSizePercent"),
    (HA, misspell_the_upgrade, "upgrade", "spec.upgradeStrategy.type"),
    (BASE, forget_the_limits, "limits", "limits.memory"),
    (BASE, run_as_root, "root", "securityContext.runAsNonRoot"),
]


@pytest.mark.parametrize(
    ("folder", "mistake", "rule", "place"),
    MISTAKES,
    ids=[f"{folder.rpartition('/')[2]}-{one.__name__}" for folder, one, _, _ in MISTAKES],
)
def test_a_seeded_mistake_is_caught_by_name(folder, mistake, rule, place):
    bodies = rendered(folder)
    mistake(bodies)
    faults = lint(bodies, folder, template_secrets(ROOT))
    caught = [one for one in faults if one.rule == rule and place in one.path]
    assert caught, [str(one) for one in faults]
    shown = str(caught[0])
    assert shown.startswith(f"{folder}: ")
    assert shown.endswith(f"[{rule}]")
