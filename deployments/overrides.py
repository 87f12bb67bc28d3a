"""The ``deployments`` of an application, with which Serve overrides what its builder said."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from cluster.config import INGRESS, GroupConfig
from cluster.known_keys import KeyCheck
from cluster.problem import Problem, join, problems_of
from cluster.serve_file import AUTO_MAX_REPLICAS
from deployments.args import AppArgs
from deployments.live import LiveConfig
from latentmas_core.errors import ConfigError
from latentmas_core.pipelines.stage_worker import Roster

Override = Mapping[str, Any]


def named_overrides(application: Mapping[str, Any]) -> list[tuple[int, Override]]:
    """Those that can be read at all, each with its place in the list."""
    listed = application.get("deployments")
    overrides = listed if isinstance(listed, list) else []
    return [(i, one) for i, one in enumerate(overrides) if isinstance(one, Mapping)]


def replica_bounds(group: GroupConfig, overrides: Collection[Override]) -> tuple[int, int]:
    """The least and the most replicas of a group, where Serve's own words go before ours."""
    bounds = group.min_replicas, group.max_replicas
    for override in overrides:
        if override.get("name") == group.name:
            bounds = _overridden(override) or bounds
    return bounds


def _overridden(override: Override) -> tuple[int, int] | None:
    num_replicas, scaling = override.get("num_replicas"), override.get("autoscaling_config")
    if isinstance(num_replicas, int):
        return num_replicas, num_replicas
    is_auto = num_replicas == "auto"
    if not is_auto and not isinstance(scaling, Mapping):
        return None
    given = scaling if isinstance(scaling, Mapping) else {}
    bounds = (
        given.get("min_replicas", 1),
        given.get("max_replicas", AUTO_MAX_REPLICAS if is_auto else 1),
    )
    return bounds if all(isinstance(bound, int) for bound in bounds) else None


def check_names(application: Mapping[str, Any], groups: Collection[str]) -> Iterator[Problem]:
    """Overrides of deployments that the application does not have, or has already overridden."""
    seen: set[str] = set()
    for i, override in named_overrides(application):
        name = override.get("name")
        if not isinstance(name, str):
            continue  # Serve's schema refuses it
        if name not in (*groups, INGRESS):
            yield Problem(
                f"deployments[{i}].name",
                f"there is no deployment {name!r}; there are {', '.join((*groups, INGRESS))}. "
                "Name a group",
            )
        if name in seen:
            yield Problem(f"deployments[{i}].name", f"{name!r} is overridden twice. Join them")
        seen.add(name)


def check_actor_options(
    application: Mapping[str, Any], groups: Collection[GroupConfig]
) -> Iterator[Problem]:
    """Serve replaces all actor options of a group by those given: they have to say the same."""
    group_of = {group.name: group for group in groups}
    for i, override in named_overrides(application):
        group, options = group_of.get(str(override.get("name"))), override.get("ray_actor_options")
        if group is None or not isinstance(options, Mapping):
            continue
        for field, default, wanted in (
            ("num_cpus", 1.0, group.num_cpus),
            ("num_gpus", 0.0, group.num_gpus),
        ):
            given = options.get(field, default)
            if isinstance(given, int | float) and given != wanted:
                yield Problem(
                    f"deployments[{i}].ray_actor_options.{field}",
                    f"is {given:g} here and {wanted:g} in group {group.name!r}; Serve replaces "
                    f"all actor options of the group by these. Write {field}: {wanted:g} here too",
                )


def check_user_configs(application: Mapping[str, Any], args: AppArgs) -> Iterator[Problem]:
    """What a group is told while it runs has to go with its agents and its engine."""
    group_of = {group.name: group for group in args.groups}
    for i, override in named_overrides(application):
        group, told = group_of.get(str(override.get("name"))), override.get("user_config")
        if group is not None and told is not None:
            yield from _live_problems(told, args, group, f"deployments[{i}].user_config")


def _live_problems(told: Any, args: AppArgs, group: GroupConfig, path: str) -> Iterator[Problem]:
    keys = KeyCheck()
    corrected = keys.corrected(LiveConfig, told, path=path)
    yield from keys.problems
    roster = Roster(args.agents_of(group), args.latent_steps)
    limit = args.engine_of(group).max_latent_steps
    try:
        LiveConfig.model_validate(corrected).applied_to(roster, max_latent_steps=limit)
    except ValidationError as error:
        yield from problems_of(error, corrected, path=path)
    except ConfigError as error:
        yield Problem(join(path, error.param or ""), error.message)
