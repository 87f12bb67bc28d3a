"""Checks the keyword arguments that a Serve config file hands to our policies and our router.

Serve takes any; the controller or a router then fails with them, or works on without. Leaves the
classes of others alone.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from pkgutil import resolve_name
from typing import Any

from pydantic import TypeAdapter, ValidationError
from ray.serve.config import AutoscalingPolicy

from cluster.autoscaling import KvPressurePolicy, PipelineRatioPolicy
from cluster.known_keys import KeyCheck
from cluster.problem import Problem, join, problems_of
from cluster.routing import ResidencyRouter

DEFAULT_POLICY: str = AutoscalingPolicy.model_fields["policy_function"].default


def policy_problems(policy: Any, path: str) -> Iterator[Problem]:
    """Of an ``autoscaling_policy``, or the ``policy`` of an ``autoscaling_config``."""
    kwargs = _mapping_in(policy, "policy_kwargs")
    if kwargs is None:
        return
    name = policy.get("policy_function", DEFAULT_POLICY)
    function = _imported(name)
    place = join(path, "policy_kwargs")
    if function in (KvPressurePolicy, PipelineRatioPolicy):
        yield from _refusals(function, kwargs, place)
    elif kwargs and inspect.isfunction(function):
        yield Problem(
            place,
            f"{name!r} is a function, to which Serve hands none of them. Name a class as "
            "policy_function, or take them out",
        )


def router_problems(config: Any, path: str) -> Iterator[Problem]:
    """Of a ``request_router_config``."""
    kwargs = _mapping_in(config, "request_router_kwargs")
    if kwargs is not None and _imported(config.get("request_router_class")) is ResidencyRouter:
        router = ResidencyRouter.__new__(ResidencyRouter)  # Serve alone can construct one
        yield from _refusals(router.initialize_state, kwargs, join(path, "request_router_kwargs"))


def ratios_of(policy: Any) -> Mapping[str, Any]:
    """The ratios of an ``autoscaling_policy``, by group; none if it is another policy."""
    kwargs = _mapping_in(policy, "policy_kwargs")
    if kwargs is None or _imported(policy.get("policy_function")) is not PipelineRatioPolicy:
        return {}
    return _mapping_in(kwargs, "ratios") or {}


def _mapping_in(document: Any, key: str) -> Mapping[str, Any] | None:
    value = document.get(key) if isinstance(document, Mapping) else None
    return value if isinstance(value, Mapping) else None


def _imported(path: Any) -> Any:
    """None for what cannot be imported: Serve's own check says so."""
    try:
        return resolve_name(path)
    except Exception:  # noqa: BLE001  # whatever the module raises
        return None


def _refusals(
    callee: Callable[..., Any], kwargs: Mapping[str, Any], path: str
) -> Iterator[Problem]:
    parameters = inspect.signature(callee).parameters
    keys = KeyCheck()
    known = keys.only_known(kwargs, parameters, path=path)
    wrong = [*_missing(parameters, known, path), *_of_other_types(parameters, known, path)]
    yield from (*keys.problems, *wrong)
    if wrong:
        return
    try:
        callee(**known)
    except ValueError as error:
        yield Problem(path, f"{error}. Correct it")


def _missing(
    parameters: Mapping[str, inspect.Parameter], known: Mapping[str, Any], path: str
) -> Iterator[Problem]:
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in known:
            yield Problem(join(path, name), "is missing. Add it")


def _of_other_types(
    parameters: Mapping[str, inspect.Parameter], known: Mapping[str, Any], path: str
) -> Iterator[Problem]:
    for name, value in known.items():
        try:
            TypeAdapter(parameters[name].annotation).validate_python(value, strict=True)
        except ValidationError as error:
            yield from problems_of(error, value, path=join(path, name))
