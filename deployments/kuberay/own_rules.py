"""What KubeRay takes, and what then fails: secrets, images, modules and the Serve config."""

import importlib.util
from collections.abc import Iterator, Mapping

from cluster.placement import Node
from deployments.check import check_document
from deployments.kuberay.manifest import (
    Bundle,
    Fault,
    Group,
    Manifest,
    groups_of,
    mapping,
    mappings,
    serve_config_of,
    walk,
)

# The top packages that the image has on the path of every Ray process, the head's too.
ON_THE_HEAD = ("cluster", "deployments", "latentmas_core", "ray")
IMPORT_KEYS = ("policy_function", "request_router_class", "import_path")
IMPORT_ENV = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
MAX_NODES_PER_GROUP = 64


def missing_secrets(bundle: Bundle) -> Iterator[Fault]:
    for manifest in bundle.manifests:
        for path, name in _referenced_secrets(manifest):
            if name not in bundle.secrets:
                known = ", ".join(sorted(bundle.secrets))
                yield manifest.fault(
                    "missing-secret",
                    path,
                    f"names Secret {name!r}; there are {known}. Correct it, or add it to "
                    "secrets.template.yaml",
                )


def _referenced_secrets(manifest: Manifest) -> Iterator[tuple[str, str]]:
    for path, body in walk(manifest.body):
        if path.endswith("secretKeyRef") or path.endswith("secretRef"):
            yield f"{path}.name", str(body.get("name"))
        elif isinstance(body.get("secretName"), str):
            yield f"{path}.secretName", body["secretName"]


def missing_accounts(bundle: Bundle) -> Iterator[Fault]:
    accounts = {one.name for one in bundle.of_kind("ServiceAccount")}
    for service in bundle.of_kind("RayService"):
        for group in groups_of(service):
            name = group.pod.get("serviceAccountName")
            if name is not None and name not in accounts:
                yield service.fault(
                    "missing-account",
                    f"{group.path}.template.spec.serviceAccountName",
                    f"names {name!r}; there are {', '.join(sorted(accounts))}. Correct it",
                )


def images(bundle: Bundle) -> Iterator[Fault]:
    for manifest in bundle.manifests:
        for path, body in walk(manifest.body):
            image = body.get("image")
            if isinstance(image, str) and "@" not in image:
                tag = image.rpartition("/")[2].partition(":")[2]
                if tag in ("", "latest"):
                    yield manifest.fault(
                        "image",
                        f"{path}.image",
                        f"is {image!r}: pods of one cluster may get different code. Name a version",
                    )


def same_code(bundle: Bundle) -> Iterator[Fault]:
    """The head imports policies and routers: it needs what workers have."""
    for service in bundle.of_kind("RayService"):
        head, *workers = groups_of(service)
        for group in workers:
            mine, theirs = str(group.ray.get("image")), str(head.ray.get("image"))
            if _code_of(mine) != _code_of(theirs):
                yield service.fault(
                    "head-code",
                    f"{head.ray_path}.image",
                    f"is {theirs!r} and that of group {group.name} {mine!r}: the head imports the "
                    "policies and routers of the Serve config. Use one version for both",
                )


def _code_of(image: str) -> str:
    """Versions for CUDA have the code of the version that they are named after."""
    return image.removesuffix("-cuda")


def importable(bundle: Bundle) -> Iterator[Fault]:
    for service in bundle.of_kind("RayService"):
        for path, target in _imports(service):
            fault = _import_fault(target)
            if fault:
                yield service.fault("not-importable", path, f"is {target!r}; {fault}")


def _imports(service: Manifest) -> Iterator[tuple[str, str]]:
    for path, body in walk(serve_config_of(service), "spec.serveConfigV2"):
        for key in IMPORT_KEYS:
            if isinstance(body.get(key), str):
                yield f"{path}.{key}", body[key]
    for group in groups_of(service):
        for variable in mappings(group.ray, "env"):
            if variable.get("name") == IMPORT_ENV:
                yield f"{group.ray_path}.env.{IMPORT_ENV}", str(variable.get("value"))


def _import_fault(target: str) -> str | None:
    module, colon, _ = target.partition(":")
    if not colon:
        module = target.rpartition(".")[0]
    top = module.partition(".")[0]
    if top not in ON_THE_HEAD:
        return (
            f"the head imports it, and its image has {', '.join(ON_THE_HEAD)} only. Put the module "
            "into one of them"
        )
    try:
        found = importlib.util.find_spec(module)
    except ImportError:
        found = None
    return None if found else f"there is no module {module!r} in the image. Correct the name"


def serve_config(bundle: Bundle) -> Iterator[Fault]:
    for service in bundle.of_kind("RayService"):
        document = serve_config_of(service)
        if not document:
            yield service.fault(
                "serve-config", "spec.serveConfigV2", "is no YAML mapping. Generate it"
            )
            continue
        report = check_document(document, _nodes(service), checks_paths=False)
        for problem in report.problems:
            yield service.fault(
                "serve-config", f"spec.serveConfigV2.{problem.path}", problem.message
            )
        for path, application in report.serve.applications:
            access = mapping(application, "args", "access")
            if not access.get("require_keys"):
                yield service.fault(
                    "keys",
                    f"spec.serveConfigV2.{path}.args.access.require_keys",
                    "is not true: without its Secret the service would be open. Set it",
                )
            args = mapping(application, "args")
            kept = args.get("conversations")
            if isinstance(kept, Mapping) and not str(kept.get("url", "")).startswith("postgresql"):
                yield service.fault(
                    "conversations",
                    f"spec.serveConfigV2.{path}.args.conversations.url",
                    "is not postgresql://...: a file would be gone with its pod. Name a database",
                )


def _nodes(service: Manifest) -> list[Node]:
    """The pods of a cluster that has grown as far as it may."""
    return [
        Node(f"{group.name} {i + 1}", group.num_cpus, group.num_gpus)
        for group in groups_of(service)
        for i in range(1 if group.is_head else _num_pods(group))
    ]


def _num_pods(group: Group) -> int:
    most = group.body.get("maxReplicas", group.body.get("replicas", 1))
    return min(int(most), MAX_NODES_PER_GROUP)


def selectors(bundle: Bundle) -> Iterator[Fault]:
    """Policies and budgets that select no pod protect nothing."""
    labels = [group.labels for one in bundle.of_kind("RayService") for group in groups_of(one)]
    for kind, key in (("NetworkPolicy", "podSelector"), ("PodDisruptionBudget", "selector")):
        for manifest in bundle.of_kind(kind) if labels else ():
            wanted = mapping(manifest.spec, key, "matchLabels")
            if not any(wanted.items() <= one.items() for one in labels):
                yield manifest.fault(
                    "selector",
                    f"spec.{key}.matchLabels",
                    f"{dict(wanted)} fits no pod of the RayService. Correct it",
                )


def pods(bundle: Bundle) -> Iterator[Fault]:
    for service in bundle.of_kind("RayService"):
        for group in groups_of(service):
            for name in ("cpu", "memory"):
                if name not in group.limits:
                    yield service.fault(
                        "limits",
                        f"{group.ray_path}.resources.limits.{name}",
                        "is missing; Ray counts what a pod has by its limits. Set it",
                    )
            if mapping(group.pod, "securityContext").get("runAsNonRoot") is not True:
                yield service.fault(
                    "root",
                    f"{group.path}.template.spec.securityContext.runAsNonRoot",
                    "is not true; the image needs no root. Set it",
                )


RULES = (
    missing_secrets,
    missing_accounts,
    images,
    same_code,
    importable,
    serve_config,
    selectors,
    pods,
)
