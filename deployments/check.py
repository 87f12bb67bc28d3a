"""Checks a Serve config file and what it describes, all of it at once, without starting anything.

`make serve` and `latentmas validate` both ask here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cluster.config import GroupConfig
from cluster.known_keys import KeyCheck
from cluster.own_classes import ratios_of
from cluster.placement import Demand, Node, Placement, place
from cluster.problem import Problem, ProblemsError, join, problems_of
from cluster.serve_file import CheckedFile, check_serve_file, read_serve_file
from deployments.args import WITHOUT_PATHS, AppArgs
from deployments.args_check import (
    adapter_problems,
    args_warnings,
    exposure_warnings,
    timeout_warnings,
)
from deployments.layout import (
    ApplicationLayout,
    lay_out_group,
    lay_out_pipelines,
    not_offered,
)
from deployments.overrides import (
    check_actor_options,
    check_names,
    check_user_configs,
    named_overrides,
    replica_bounds,
)
from latentmas_core.config import EngineConfig

BUILDERS = ("deployments.app:build_app", "deployments.app.build_app")


@dataclass(frozen=True)
class Report:
    """``applications`` are those of ours that are valid; ``warnings`` stop nothing."""

    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...] = ()
    applications: tuple[ApplicationLayout, ...] = ()
    serve: CheckedFile = field(default_factory=lambda: CheckedFile({}))

    @property
    def is_valid(self) -> bool:
        return not self.problems


@dataclass(frozen=True)
class _Application:
    """One of ours whose args are valid."""

    path: str
    config: Mapping[str, Any]
    args: AppArgs
    prefix: str = ""

    def bounds(self, group: GroupConfig) -> tuple[int, int]:
        return replica_bounds(group, [one for _, one in named_overrides(self.config)])

    def label(self, group: GroupConfig) -> str:
        """Names of groups are unique within one application only."""
        return f"{self.prefix}{group.name}"

    def demand(self, group: GroupConfig, *, at_most: bool = False) -> Demand:
        return Demand(
            group=self.label(group),
            num_replicas=self.bounds(group)[at_most],
            num_cpus=group.num_cpus,
            num_gpus=group.num_gpus,
            memory_share=group.device_memory_share,
        )


def check_file(path: Path, nodes: Sequence[Node], *, checks_paths: bool = True) -> Report:
    """Check a file for a cluster of ``nodes``; ``checks_paths``: whether its paths are of here."""
    try:
        document = read_serve_file(path)
    except ProblemsError as error:
        return Report(error.problems)
    return check_document(document, nodes, checks_paths=checks_paths)


def check_document(document: Any, nodes: Sequence[Node], *, checks_paths: bool = True) -> Report:
    """What ``check_file`` does, once the file is read."""
    serve = check_serve_file(document)
    problems, warnings = [*serve.problems], [*serve.warnings]
    if serve.document.get("applications") == []:
        warnings.append(Problem("applications", "is empty: nothing would be served. Add one"))
    configs = [(path, one) for path, one in serve.applications if _is_ours(one)]
    ours: list[_Application] = []
    for path, config in configs:
        args, wrong = _check_args(config.get("args", {}), checks_paths=checks_paths)
        wrong += _check_overrides(config, args)
        problems += [problem.below(path) for problem in wrong]
        if args is not None:
            prefix = f"{config.get('name')}." if len(configs) > 1 else ""
            ours.append(_Application(path, config, args, prefix))
            said = [
                *args_warnings(args),
                *exposure_warnings(args, serve.host),
                *timeout_warnings(args, serve.request_timeout_s),
            ]
            warnings += [warning.below(join(path, "args")) for warning in said]
    warnings += [_not_ours(path, one) for path, one in serve.applications if not _is_ours(one)]
    placement = place(nodes, _demands(ours))
    problems += [*_shortages(placement, ours), *_never_fit(ours, nodes)]
    if not placement.shortages:
        warnings += _scattered(place(nodes, _demands(ours), spreads=True), ours)
        warnings += _too_many(place(nodes, _demands(ours, at_most=True)), ours)
    layouts = tuple(_lay_out(one, placement) for one in ours)
    return Report(tuple(problems), tuple(warnings), layouts, serve)


def _is_ours(config: Mapping[str, Any]) -> bool:
    return config.get("import_path") in BUILDERS


def _not_ours(path: str, config: Mapping[str, Any]) -> Problem:
    return Problem(
        join(path, "import_path"),
        f"{config.get('import_path')!r} is not {BUILDERS[0]}: what args and deployments mean to it "
        "is not known here, and they were not checked",
    )


def _check_args(document: Any, *, checks_paths: bool) -> tuple[AppArgs | None, list[Problem]]:
    keys = KeyCheck({(GroupConfig, "engine"): EngineConfig})
    corrected = keys.corrected(AppArgs, document, path="args")
    context = None if checks_paths else WITHOUT_PATHS
    try:
        args = AppArgs.model_validate(corrected, context=context)
    except ValidationError as error:
        return None, [*keys.problems, *problems_of(error, corrected, path="args")]
    wrong = adapter_problems(args) if checks_paths else ()
    return args, [*keys.problems, *(problem.below("args") for problem in wrong)]


def _check_overrides(config: Mapping[str, Any], args: AppArgs | None) -> list[Problem]:
    if args is None:
        return []  # it is not certain which groups there are
    return [
        *check_names(config, [group.name for group in args.groups]),
        *check_actor_options(config, args.groups),
        *check_user_configs(config, args),
        *_unknown_ratios(config.get("autoscaling_policy"), args),
    ]


def _unknown_ratios(policy: Any, args: AppArgs) -> Iterator[Problem]:
    """Ratios of groups that there are not; the policy would leave them out without a word."""
    groups = [group.name for group in args.groups]
    for name in ratios_of(policy):
        if name not in groups:
            yield Problem(
                "autoscaling_policy.policy_kwargs.ratios",
                f"there is no group {name!r}; there are {', '.join(groups)}. Correct it",
            )


def _demands(ours: Sequence[_Application], *, at_most: bool = False) -> list[Demand]:
    return [one.demand(group, at_most=at_most) for one in ours for group in one.args.groups]


def _shortages(placement: Placement, ours: Sequence[_Application]) -> list[Problem]:
    path_of = {
        one.label(group): join(one.path, f"args.groups[{i}]")
        for one in ours
        for i, group in enumerate(one.args.groups)
    }
    return [Problem(path_of[short.group], short.message) for short in placement.shortages]


def _never_fit(ours: Sequence[_Application], nodes: Sequence[Node]) -> Iterator[Problem]:
    """Groups that start with no replica, and of which not even one fits the empty nodes."""
    for demand in _demands(ours):
        if demand.num_replicas == 0:
            yield from _shortages(place(nodes, [replace(demand, num_replicas=1)]), ours)


def _scattered(placement: Placement, ours: Sequence[_Application]) -> Iterator[Problem]:
    for problem in _shortages(placement, ours):
        yield Problem(
            problem.path,
            f"there is room only where replicas are packed, and Serve spreads them over nodes: "
            f"{problem.message}. Set RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY=1 on the head",
        )


def _too_many(placement: Placement, ours: Sequence[_Application]) -> Iterator[Problem]:
    for problem in _shortages(placement, ours):
        yield Problem(problem.path, f"with all groups at max_replicas, {problem.message}")


def _lay_out(application: _Application, placement: Placement) -> ApplicationLayout:
    args = application.args
    return ApplicationLayout(
        name=application.config.get("name", "default"),
        route_prefix=application.config.get("route_prefix", "/"),
        groups=tuple(
            lay_out_group(
                group,
                args.agents_of(group),
                application.bounds(group),
                placement.seats_of(application.label(group)),
            )
            for group in args.groups
        ),
        pipelines=lay_out_pipelines(args),
        not_offered=not_offered(args),
    )
