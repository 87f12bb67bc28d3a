"""Replicas from load: the formulas, then the policies as Serve calls them, with a clock of ours."""

import math
from types import SimpleNamespace

import pytest
from ray.serve._private.autoscaling_state import _resolve_policy_callable
from ray.serve._private.common import DeploymentID
from ray.serve.autoscaling_policy import (
    _apply_app_level_autoscaling_config,
    _apply_autoscaling_config,
)
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from cluster.autoscaling import (
    KV_CAPACITY_TOKENS,
    KV_TOKENS,
    KvPressurePolicy,
    Load,
    PipelineRatioPolicy,
    Targets,
    demand,
    in_ratio,
    whole_replicas,
)

TARGETS = Targets(ongoing_requests=16, kv_usage=0.5)
UP_S, DOWN_S = 5.0, 60.0


@pytest.mark.parametrize(
    ("load", "replicas"),
    [
        (Load(0), 0),
        (Load(0, kv_tokens=900, kv_capacity=1000), 0),  # kept for nobody who asks
        (Load(0.01), 0.01 / 16),
        (Load(32), 2),
        (Load(32, kv_tokens=100, kv_capacity=1000), 2),  # requests press more
        (Load(4, kv_tokens=1500, kv_capacity=1000), 3),  # few requests, long ones
        (Load(4, kv_tokens=1500, kv_capacity=0), 0.25),  # no replica has said what it holds
    ],
)
def test_demand_is_that_of_requests_or_of_kv_whichever_is_more(load, replicas):
    assert demand(load, TARGETS) == pytest.approx(replicas)


@pytest.mark.parametrize(
    ("needed", "replicas"),
    [(0, 0), (1e-4, 1), (1, 1), (4200 / (0.7 * 2000), 3), (1.01, 2), (99, 4)],
)
def test_replicas_are_whole_and_within_their_bounds(needed, replicas):
    assert whole_replicas(needed, at_least=0, at_most=4) == replicas


def test_no_need_leaves_the_least_number_of_replicas():
    assert whole_replicas(0, at_least=2, at_most=4) == 2


def test_all_groups_follow_the_most_pressed_in_their_ratio():
    ratios = {"thinkers": 2, "deciders": 1}
    assert in_ratio({"thinkers": 0.5, "deciders": 3}, ratios) == {"thinkers": 6, "deciders": 3}
    assert in_ratio({"thinkers": 4, "deciders": 0.1}, ratios) == {"thinkers": 4, "deciders": 2}
    assert in_ratio({"thinkers": 0, "deciders": 0}, ratios) == {"thinkers": 0, "deciders": 0}


def test_group_without_a_ratio_follows_its_own_load():
    needed = in_ratio({"thinkers": 4, "rare": 1}, {"thinkers": 2, "deciders": 1})
    assert needed == {"thinkers": 4, "rare": 1}


@pytest.mark.parametrize("share", [0, -0.5, 1.5, math.nan])
def test_kv_usage_outside_its_range_is_refused_by_name(share):
    with pytest.raises(ValueError, match="target_kv_usage"):
        KvPressurePolicy(target_kv_usage=share)


@pytest.mark.parametrize("ratio", [0, -1, math.nan])
def test_ratio_that_is_not_positive_is_refused_with_its_group(ratio):
    with pytest.raises(ValueError, match="'deciders'"):
        PipelineRatioPolicy(ratios={"thinkers": 1, "deciders": ratio})


def test_misspelt_argument_of_a_policy_is_refused_by_name():
    policy = AutoscalingPolicy(
        policy_function="cluster.autoscaling:KvPressurePolicy", policy_kwargs={"kv_usage": 0.5}
    )
    with pytest.raises(TypeError, match="kv_usage"):
        _resolve_policy_callable(policy)


class Group:
    """One deployment as Serve's autoscaler sees it; ``decide`` is one look of the autoscaler.

    What was decided is running at the next look.
    """

    def __init__(self, name, *, min_replicas=1, max_replicas=4, kv_usage=0.5, policy=None):
        self.id = DeploymentID(name, "latentmas")
        self.config = AutoscalingConfig(
            min_replicas=min_replicas,
            max_replicas=max_replicas,
            target_ongoing_requests=16,
            upscale_delay_s=UP_S,
            downscale_delay_s=DOWN_S,
            policy={
                "policy_function": "cluster.autoscaling:KvPressurePolicy",
                "policy_kwargs": {"target_kv_usage": kv_usage},
            },
        )
        self.replicas = min_replicas
        self.policy = _apply_autoscaling_config(_resolve_policy_callable(self.config.policy))
        self.state = {}

    def context(self, load, now, state):
        ids = [f"replica-{index}" for index in range(self.replicas)]
        share = load.kv_tokens / max(1, self.replicas)
        return AutoscalingContext(
            deployment_id=self.id,
            deployment_name=self.id.name,
            app_name=self.id.app_name,
            current_num_replicas=self.replicas,
            target_num_replicas=self.replicas,
            running_replicas=ids,
            total_num_requests=lambda: load.num_requests,
            total_queued_requests=0.0,
            aggregated_metrics=lambda: {
                KV_TOKENS: dict.fromkeys(ids, share),
                KV_CAPACITY_TOKENS: dict.fromkeys(ids, load.kv_capacity),
            },
            raw_metrics=None,
            capacity_adjusted_min_replicas=self.config.min_replicas,
            capacity_adjusted_max_replicas=self.config.max_replicas,
            policy_state=state,
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=now,
            config=self.config,
        )

    def decide(self, load, now):
        self.replicas, self.state = self.policy(self.context(load, now, self.state))
        return self.replicas


@pytest.fixture
def clock(monkeypatch):
    """The time that Serve's delays are measured with."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(
        "ray.serve.autoscaling_policy.time", SimpleNamespace(time=lambda: clock.now)
    )
    return clock


def run(group, load, clock, *, seconds, step=1.0):
    """Replicas after each look of the autoscaler during some seconds of the same load."""
    seen = []
    end = clock.now + seconds
    while clock.now < end:
        seen.append(group.decide(load, clock.now))
        clock.now += step
    return seen


def test_group_grows_only_after_the_load_has_lasted(clock):
    group = Group("thinkers")
    busy = Load(40)
    assert set(run(group, busy, clock, seconds=UP_S)) == {1}
    assert group.decide(busy, clock.now) == 3


def test_short_burst_changes_nothing(clock):
    group = Group("thinkers")
    for _ in range(3):
        assert set(run(group, Load(64), clock, seconds=UP_S - 1)) == {1}
        assert set(run(group, Load(1), clock, seconds=2)) == {1}


def test_group_shrinks_only_after_quiet_has_lasted(clock):
    group = Group("thinkers")
    run(group, Load(40), clock, seconds=UP_S + 2)
    assert set(run(group, Load(1), clock, seconds=DOWN_S)) == {3}
    assert group.decide(Load(1), clock.now) == 1


def test_load_in_between_starts_the_wait_for_quiet_again(clock):
    group = Group("thinkers")
    run(group, Load(40), clock, seconds=UP_S + 2)
    run(group, Load(1), clock, seconds=DOWN_S - 1)
    group.decide(Load(40), clock.now)
    assert set(run(group, Load(1), clock, seconds=DOWN_S)) == {3}


def test_long_requests_grow_a_group_that_few_requests_would_not(clock):
    group = Group("thinkers")
    long = Load(2, kv_tokens=900, kv_capacity=1000)
    assert run(group, long, clock, seconds=UP_S + 2)[-1] == 2


def test_group_never_leaves_its_bounds(clock):
    group = Group("thinkers", min_replicas=2, max_replicas=3)
    assert max(run(group, Load(10_000), clock, seconds=UP_S + 2)) == 3
    assert min(run(group, Load(0), clock, seconds=DOWN_S + 2)) == 2


def test_first_request_starts_a_replica_at_once(clock):
    group = Group("rare", min_replicas=0)
    assert group.decide(Load(0), clock.now) == 0
    assert group.decide(Load(1), clock.now) == 1


def test_group_goes_to_zero_only_when_nothing_was_asked_for_long_enough(clock):
    group = Group("rare", min_replicas=0)
    group.decide(Load(1), clock.now)
    assert set(run(group, Load(0.01), clock, seconds=3 * DOWN_S)) == {1}
    assert set(run(group, Load(0), clock, seconds=DOWN_S)) == {1}
    assert group.decide(Load(0), clock.now) == 0


def test_group_with_kept_memory_but_no_requests_goes_to_zero(clock):
    group = Group("rare", min_replicas=0)
    group.decide(Load(1), clock.now)
    kept = Load(0, kv_tokens=900, kv_capacity=1000)
    assert run(group, kept, clock, seconds=DOWN_S + 2)[-1] == 0


class Pipeline:
    """All groups of an application under one policy, as Serve calls it."""

    def __init__(self, *groups, ratios):
        self.groups = groups
        policy = AutoscalingPolicy(
            policy_function="cluster.autoscaling:PipelineRatioPolicy",
            policy_kwargs={"ratios": ratios},
        )
        self.policy = _apply_app_level_autoscaling_config(_resolve_policy_callable(policy))
        self.states = {}

    def decide(self, loads, now):
        contexts = {
            group.id: group.context(load, now, self.states.get(group.id, {}))
            for group, load in zip(self.groups, loads, strict=True)
        }
        decisions, self.states = self.policy(contexts)
        for group in self.groups:
            group.replicas = decisions[group.id]
        return [group.replicas for group in self.groups]


def test_pressed_group_takes_the_others_along_in_their_ratio(clock):
    thinkers, deciders = Group("thinkers", max_replicas=8), Group("deciders", max_replicas=8)
    pipeline = Pipeline(thinkers, deciders, ratios={"thinkers": 2, "deciders": 1})
    loads = [Load(1), Load(40)]
    assert run(pipeline, loads, clock, seconds=UP_S + 2)[-1] == [5, 3]  # 2.5 units
    assert run(pipeline, [Load(1), Load(1)], clock, seconds=DOWN_S + 2)[-1] == [1, 1]


def test_each_group_keeps_its_bounds_and_its_own_targets(clock):
    thinkers = Group("thinkers", max_replicas=3)
    deciders = Group("deciders", max_replicas=8, kv_usage=0.25)
    pipeline = Pipeline(thinkers, deciders, ratios={"thinkers": 2, "deciders": 1})
    loads = [Load(1), Load(1, kv_tokens=1000, kv_capacity=1000)]
    assert run(pipeline, loads, clock, seconds=UP_S + 2)[-1] == [3, 4]


def test_idle_group_is_started_along_with_the_one_that_is_asked(clock):
    thinkers, deciders = Group("thinkers", min_replicas=0), Group("deciders", min_replicas=0)
    pipeline = Pipeline(thinkers, deciders, ratios={"thinkers": 1, "deciders": 1})
    assert pipeline.decide([Load(0), Load(0)], clock.now) == [0, 0]
    assert pipeline.decide([Load(1), Load(0)], clock.now) == [1, 1]
    assert run(pipeline, [Load(1), Load(0)], clock, seconds=3 * DOWN_S)[-1] == [1, 1]
    assert run(pipeline, [Load(0), Load(0)], clock, seconds=DOWN_S + 2)[-1] == [0, 0]


def test_ratio_of_a_group_that_does_not_scale_changes_nothing(clock):
    thinkers = Group("thinkers")
    pipeline = Pipeline(thinkers, ratios={"thinkers": 2, "fixed": 1})
    assert run(pipeline, [Load(40)], clock, seconds=UP_S + 2)[-1] == [3]
