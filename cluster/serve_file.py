"""The Serve config file, checked by Serve's own schema, and more strictly than Serve does.

Serve ignores keys that it does not know. Knows nothing of what the args of an application mean.
"""

import copy
import inspect
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from ray.runtime_env import RuntimeEnv
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.schema import (
    HTTPOptionsSchema,
    RayActorOptionsSchema,
    ServeApplicationSchema,
    ServeDeploySchema,
)

from cluster.known_keys import DictFields, KeyCheck
from cluster.own_classes import policy_problems, router_problems
from cluster.problem import Problem, ProblemsError, join, problems_of

ALL_INTERFACES = ("0.0.0.0", "::")
# What ``num_replicas: auto`` means; an autoscaling_config beside it changes only what it says.
AUTO_MAX_REPLICAS: int = AutoscalingConfig.default().max_replicas  # type: ignore[no-untyped-call]

_ROUTE = re.compile(r"/([^{}]*[^{}/])?")
_RUNTIME_ENV_KEYS = frozenset(
    key
    for key in RuntimeEnv.known_fields | set(inspect.signature(RuntimeEnv.__init__).parameters)
    if not key.startswith("_") and key not in ("self", "kwargs")
)
_DICT_FIELDS: DictFields = {
    (ServeApplicationSchema, "autoscaling_policy"): AutoscalingPolicy,
    (ServeApplicationSchema, "runtime_env"): _RUNTIME_ENV_KEYS,
    (RayActorOptionsSchema, "runtime_env"): _RUNTIME_ENV_KEYS,
}
# The schema takes any dict for these; they are validated only once the application is deployed.
_LATE_MODELS: Mapping[str, type[BaseModel]] = {
    "autoscaling_config": AutoscalingConfig,
    "request_router_config": RequestRouterConfig,
}


@dataclass(frozen=True)
class CheckedFile:
    """``document`` has no unknown keys; those close to a known one were taken for it."""

    document: Mapping[str, Any]
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()

    @property
    def applications(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Each application that can be read at all, with its path."""
        return _listed(self.document, "applications", "")

    @property
    def host(self) -> str:
        return str(self._http_option("host"))

    @property
    def port(self) -> int:
        """Only where there are no problems."""
        return int(self._http_option("port"))

    @property
    def request_timeout_s(self) -> float | None:
        """Serve's own; None if there is none."""
        timeout_s = self._http_option("request_timeout_s")
        return timeout_s if isinstance(timeout_s, int | float) else None

    def _http_option(self, name: str) -> Any:
        options = self.document.get("http_options")
        given = options if isinstance(options, Mapping) else {}
        return given.get(name, HTTPOptionsSchema.model_fields[name].default)


def read_serve_file(path: Path) -> Any:
    """The YAML document of a file; ProblemsError says why there is none."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except OSError as error:
        problem = f"{path} cannot be read: {error.strerror}. Name a Serve config file"
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = f"{path} is not valid YAML: {error}. Correct it"
    raise ProblemsError([Problem("", problem)])


def check_serve_file(document: Any) -> CheckedFile:
    """Check all that is Serve's own; the args of applications are left alone."""
    if not isinstance(document, Mapping):
        got = type(document).__name__
        problem = Problem("", f"a Serve config file is a mapping with 'applications'; got {got}")
        return CheckedFile({}, (problem,))
    keys = KeyCheck(_DICT_FIELDS)
    corrected = keys.corrected(ServeDeploySchema, document)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        values = list(_wrong_values(corrected))
    checked = CheckedFile(corrected, tuple(dict.fromkeys((*keys.problems, *values))))
    notes = [Problem("", str(warning.message)) for warning in caught]
    return CheckedFile(
        corrected, checked.problems, tuple(dict.fromkeys((*_exposure(checked), *notes)))
    )


def _exposure(checked: CheckedFile) -> Iterator[Problem]:
    if checked.host in ALL_INTERFACES and checked.document.get("proxy_location") != "Disabled":
        yield Problem(
            "http_options.host",
            f"{checked.host} listens on every interface: whoever reaches the port can call the "
            "service. Set 127.0.0.1, or keep it behind a gateway",
        )


def _wrong_values(document: Mapping[str, Any]) -> Iterator[Problem]:
    doubles = [*_doubles(document, "name", "default"), *_doubles(document, "route_prefix", "/")]
    for problem in _validate(ServeDeploySchema, document, ""):
        if not (doubles and problem.path == "applications"):  # Serve's words for the same
            yield problem
    yield from doubles
    for path, application in _listed(document, "applications", ""):
        yield from _wrong_route(application.get("route_prefix"), join(path, "route_prefix"))
        policy = application.get("autoscaling_policy")
        if policy is not None:
            yield from _validate(AutoscalingPolicy, policy, join(path, "autoscaling_policy"))
            yield from policy_problems(policy, join(path, "autoscaling_policy"))
        yield from _wrong_env(application, path)
        for place, deployment in _listed(application, "deployments", path):
            yield from _late_problems(deployment, place)
            yield from _wrong_env(
                deployment.get("ray_actor_options"), join(place, "ray_actor_options")
            )


def _wrong_route(prefix: Any, path: str) -> Iterator[Problem]:
    """Serve's schema takes any text; the application then fails when it is deployed."""
    if isinstance(prefix, str) and not _ROUTE.fullmatch(prefix):
        yield Problem(
            path,
            f"got {prefix!r}; a route begins with '/', does not end with it, and has no braces. "
            "Correct it, as in '/reason'",
        )


def _wrong_env(options: Any, path: str) -> Iterator[Problem]:
    """Serve's schema takes any runtime_env; its replicas then fail to start."""
    env = options.get("runtime_env") if isinstance(options, Mapping) else None
    if not isinstance(env, Mapping):
        return
    try:
        # Not the rest: pip and conda may name files that only the cluster has.
        RuntimeEnv(**{key: env[key] for key in ("env_vars", "config") if key in env})
    except (TypeError, ValueError) as error:
        yield Problem(join(path, "runtime_env"), f"{error}. Correct it; numbers need quotes")


def _late_problems(deployment: Mapping[str, Any], path: str) -> Iterator[Problem]:
    for name, model in _LATE_MODELS.items():
        options = deployment.get(name)
        if not isinstance(options, Mapping):
            continue
        if name == "autoscaling_config" and deployment.get("num_replicas") == "auto":
            options = {"max_replicas": AUTO_MAX_REPLICAS} | dict(options)
        yield from _validate(model, options, join(path, name))
    scaling = deployment.get("autoscaling_config")
    if isinstance(scaling, Mapping):
        yield from policy_problems(scaling.get("policy"), join(path, "autoscaling_config.policy"))
    yield from router_problems(
        deployment.get("request_router_config"), join(path, "request_router_config")
    )


def _validate(model: type[BaseModel], document: Any, path: str) -> list[Problem]:
    try:
        model.model_validate(copy.deepcopy(document))  # Serve's validators write into it
    except ValidationError as error:
        return problems_of(error, document, path=path)
    except Exception as error:  # noqa: BLE001  # they also import what is named, and fail as that does
        return [Problem(path, f"Serve refuses it: {type(error).__name__}: {error}")]
    return []


def _doubles(document: Mapping[str, Any], key: str, default: str) -> Iterator[Problem]:
    seen: dict[Any, str] = {}
    for path, application in _listed(document, "applications", ""):
        value = application.get(key, default)
        if value is not None and str(value) in seen:
            yield Problem(
                join(path, key),
                f"{value!r} is also the {key} of {seen[str(value)]}; each application needs its "
                "own. Change one",
            )
        seen.setdefault(str(value), path)


def _listed(
    document: Mapping[str, Any], key: str, path: str
) -> list[tuple[str, Mapping[str, Any]]]:
    listed = document.get(key)
    elements = listed if isinstance(listed, list) else []
    return [
        (join(join(path, key), i), element)
        for i, element in enumerate(elements)
        if isinstance(element, Mapping)
    ]


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML lets the last of two equal keys win, silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    "in a mapping", node.start_mark, f"key {key.value!r} twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)
