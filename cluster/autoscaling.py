"""How many replicas a group needs: pure functions of its load, and Serve's policies over them.

Knows nothing of time: Serve itself waits ``upscale_delay_s`` and ``downscale_delay_s`` before it
follows a policy. Serve pickles this module by value, so it imports nothing of ours.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ray.serve._private.common import DeploymentID
    from ray.serve.config import AutoscalingContext

# What a replica reports in ``record_autoscaling_stats``.
KV_TOKENS = "kv_tokens"
KV_CAPACITY_TOKENS = "kv_capacity_tokens"
NUM_WAITING = "num_waiting"

DEFAULT_KV_USAGE = 0.7
# A demand of exactly two replicas must not become three by the last bit of a division.
ROUNDING = 1e-9


class Load(NamedTuple):
    """What a group has to do. Requests run or wait; tokens are those that they need.

    ``kv_capacity``: tokens that one replica holds; 0 as long as none has reported.
    """

    num_requests: float
    kv_tokens: float = 0.0
    kv_capacity: float = 0.0


class Targets(NamedTuple):
    """How loaded a replica should be."""

    ongoing_requests: float
    kv_usage: float


def demand(load: Load, targets: Targets) -> float:
    """Replicas that keep both requests and KV at their targets, not rounded.

    KV without requests is nobody's need: 0.
    """
    if load.num_requests == 0:
        return 0.0
    by_requests = load.num_requests / targets.ongoing_requests
    if load.kv_capacity == 0:
        return by_requests
    return max(by_requests, load.kv_tokens / (targets.kv_usage * load.kv_capacity))


def whole_replicas(needed: float, *, at_least: int, at_most: int) -> int:
    """``needed`` rounded up and kept within its bounds: any need at all is one replica."""
    return max(at_least, min(at_most, math.ceil(needed - ROUNDING)))


def in_ratio(demands: Mapping[str, float], ratios: Mapping[str, float]) -> dict[str, float]:
    """Replicas per group so that the most pressed has what it needs and all keep their ratio.

    A unit is ``ratios`` replicas of every group; there are as many units as the most pressed group
    asks for. Groups without a ratio get what they need themselves.
    """
    units = max((demands[group] / ratios[group] for group in demands if group in ratios), default=0)
    return {
        group: units * ratios[group] if group in ratios else needed
        for group, needed in demands.items()
    }


class KvPressurePolicy:
    """A group follows its own load. Serve's ``policy_function`` of one deployment."""

    def __init__(self, *, target_kv_usage: float = DEFAULT_KV_USAGE) -> None:
        _check_kv_usage(target_kv_usage)
        self._target_kv_usage = target_kv_usage

    def __call__(self, ctx: "AutoscalingContext") -> tuple[int, dict[str, Any]]:
        targets = Targets(_target_ongoing_requests(ctx), self._target_kv_usage)
        return _bounded(demand(_load_of(ctx), targets), ctx), {}


class PipelineRatioPolicy:
    """Groups scale together. Serve's ``autoscaling_policy`` of an application.

    Each group keeps the targets of its own ``scaling``. ``ratios``: replicas of each group per unit
    of the pipeline, such as ``{"thinkers": 2, "deciders": 1}``.
    """

    def __init__(self, *, ratios: Mapping[str, float]) -> None:
        for group, ratio in ratios.items():
            if not ratio > 0:
                raise ValueError(
                    f"ratios: group {group!r} has {ratio}; a ratio is more than 0. Take it out"
                )
        self._ratios = dict(ratios)

    def __call__(
        self, contexts: "Mapping[DeploymentID, AutoscalingContext]"
    ) -> "tuple[dict[DeploymentID, int], dict[DeploymentID, dict[str, Any]]]":
        demands = {
            ctx.deployment_name: demand(_load_of(ctx), _targets_of(ctx))
            for ctx in contexts.values()
        }
        needed = in_ratio(demands, self._ratios)
        return {
            key: _bounded(needed[ctx.deployment_name], ctx) for key, ctx in contexts.items()
        }, {}


def _bounded(needed: float, ctx: "AutoscalingContext") -> int:
    return whole_replicas(
        needed,
        at_least=ctx.capacity_adjusted_min_replicas,
        at_most=ctx.capacity_adjusted_max_replicas,
    )


def _load_of(ctx: "AutoscalingContext") -> Load:
    metrics = ctx.aggregated_metrics or {}
    return Load(
        num_requests=ctx.total_num_requests,
        kv_tokens=sum(metrics.get(KV_TOKENS, {}).values()),
        kv_capacity=max(metrics.get(KV_CAPACITY_TOKENS, {}).values(), default=0.0),
    )


def _targets_of(ctx: "AutoscalingContext") -> Targets:
    assert ctx.config is not None, f"{ctx.deployment_name} has no autoscaling config"
    kwargs = ctx.config.policy.policy_kwargs
    return Targets(_target_ongoing_requests(ctx), kwargs.get("target_kv_usage", DEFAULT_KV_USAGE))


def _target_ongoing_requests(ctx: "AutoscalingContext") -> float:
    assert ctx.config is not None, f"{ctx.deployment_name} has no autoscaling config"
    target: float = ctx.config.get_target_ongoing_requests()
    return target


def _check_kv_usage(value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(
            f"target_kv_usage is {value}; it is a share of a replica's KV blocks, more than 0 and "
            "at most 1"
        )
