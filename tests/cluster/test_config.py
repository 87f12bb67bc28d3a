"""The description of a cluster: what is refused, and the name of what is wrong in the message."""

import pytest
from pydantic import ValidationError

from cluster.config import GroupConfig, GroupsConfig

THINKERS = {"name": "thinkers", "agents": ["planner", "critic"]}
DECIDERS = {"name": "deciders", "agents": ["judger"]}


def test_unknown_key_of_a_group_is_named():
    with pytest.raises(ValidationError, match=r"max_ongoing_request\b"):
        GroupConfig.model_validate(THINKERS | {"max_ongoing_request": 3})


def test_unknown_key_beside_the_groups_is_named():
    with pytest.raises(ValidationError, match="gruops"):
        GroupsConfig.model_validate({"groups": [THINKERS], "gruops": []})


def test_unknown_key_inside_the_groups_is_named_with_its_place():
    with pytest.raises(ValidationError, match=r"groups\.1\.cpus"):
        GroupsConfig.model_validate({"groups": [THINKERS, DECIDERS | {"cpus": 1}]})


def test_agent_in_two_groups_is_refused_by_the_names_of_both():
    greedy = DECIDERS | {"agents": ["judger", "critic"]}
    with pytest.raises(ValidationError, match="'critic' is hosted by groups 'thinkers' and 'deci"):
        GroupsConfig.model_validate({"groups": [THINKERS, greedy]})


def test_agent_named_twice_in_one_group_is_refused():
    doubled = THINKERS | {"agents": ["planner", "planner"]}
    with pytest.raises(ValidationError, match="planner"):
        GroupsConfig.model_validate({"groups": [doubled]})


def test_group_declared_twice_is_refused():
    with pytest.raises(ValidationError, match="'thinkers' is declared twice"):
        GroupsConfig.model_validate({"groups": [THINKERS, DECIDERS | {"name": "thinkers"}]})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "with space"),
        ("name", "Ingress"),  # Serve would rename one of the two
        ("name", "a#b"),  # Serve joins application and deployment with it
        ("agents", []),
        ("num_replicas", 0),
        ("num_cpus", 0),
        ("num_cpus", float("inf")),
        ("num_gpus", float("nan")),
        ("num_gpus", -0.5),
        ("max_ongoing_requests", 0),
        ("max_queued_requests", 0),
    ],
)
def test_value_out_of_range_is_refused_by_the_name_of_its_field(field, value):
    with pytest.raises(ValidationError, match=field):
        GroupConfig.model_validate(THINKERS | {field: value})


def test_cluster_without_groups_is_refused():
    with pytest.raises(ValidationError, match="groups"):
        GroupsConfig.model_validate({"groups": []})


def test_all_that_does_not_go_together_is_told_at_once():
    greedy = DECIDERS | {"name": "thinkers", "agents": ["judger", "critic", "planner"]}
    with pytest.raises(ValidationError) as caught:
        GroupsConfig.model_validate({"groups": [THINKERS, greedy]})
    told = str(caught.value)
    for place in ("groups[1].name: ", "groups[1].agents[1]: ", "groups[1].agents[2]: "):
        assert place in told


def test_fewest_replicas_over_the_most_are_refused_with_both():
    scaling = {"min_replicas": 3, "max_replicas": 2}
    with pytest.raises(ValidationError, match="min_replicas is 3 and max_replicas 2"):
        GroupConfig.model_validate(THINKERS | {"scaling": scaling})


def test_fixed_and_following_number_of_replicas_exclude_each_other():
    both = {"num_replicas": 2, "scaling": {"max_replicas": 2}}
    with pytest.raises(ValidationError, match="'thinkers' has num_replicas and scaling"):
        GroupConfig.model_validate(THINKERS | both)


@pytest.mark.parametrize("num_gpus", [1.5, 2.25])
def test_more_than_one_gpu_has_to_be_a_whole_number(num_gpus):
    with pytest.raises(ValidationError, match=f"'thinkers' has num_gpus {num_gpus}"):
        GroupConfig.model_validate(THINKERS | {"num_gpus": num_gpus})


def test_memory_share_without_a_gpu_is_refused():
    with pytest.raises(ValidationError, match=r"gpu_memory_share 0\.5 without a GPU"):
        GroupConfig.model_validate(THINKERS | {"gpu_memory_share": 0.5})


@pytest.mark.parametrize("field", ["gpu_memory_share", "drain_timeout_s"])
@pytest.mark.parametrize("value", [0, -1])
def test_share_and_timeout_are_more_than_nothing(field, value):
    with pytest.raises(ValidationError, match=field):
        GroupConfig.model_validate(THINKERS | {"num_gpus": 1, field: value})


@pytest.mark.parametrize(
    ("fields", "share"),
    [
        ({}, None),
        ({"num_gpus": 0.25}, 0.25),
        ({"num_gpus": 4}, 1.0),
        ({"num_gpus": 0.25, "gpu_memory_share": 0.2}, 0.2),
    ],
)
def test_share_of_a_cards_memory_follows_the_share_of_the_card_unless_it_is_given(fields, share):
    assert GroupConfig.model_validate(THINKERS | fields).device_memory_share == share


@pytest.mark.parametrize(
    ("fields", "bounds"),
    [
        ({}, (1, 1)),
        ({"num_replicas": 3}, (3, 3)),
        ({"scaling": {"max_replicas": 4}}, (1, 4)),
        ({"scaling": {"min_replicas": 0, "max_replicas": 2}}, (0, 2)),
    ],
)
def test_number_of_replicas_has_two_bounds(fields, bounds):
    group = GroupConfig.model_validate(THINKERS | fields)
    assert (group.min_replicas, group.max_replicas) == bounds


@pytest.mark.parametrize(("num_cpus", "num_threads"), [(0.25, 1), (1, 1), (1.5, 1), (2, 2), (8, 8)])
def test_replica_computes_with_as_many_threads_as_it_has_whole_cores(num_cpus, num_threads):
    group = GroupConfig.model_validate(THINKERS | {"num_cpus": num_cpus})
    assert group.num_threads == num_threads


def test_every_agent_is_found_in_its_group():
    config = GroupsConfig.model_validate({"groups": [THINKERS, DECIDERS]})
    assert config.group_of == {"planner": "thinkers", "critic": "thinkers", "judger": "deciders"}


def test_config_cannot_be_changed_behind_its_validation():
    group = GroupConfig.model_validate(THINKERS)
    with pytest.raises(ValidationError, match="frozen"):
        group.num_replicas = 5
