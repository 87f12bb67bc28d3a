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
        ("name", "a#b"),  # Serve joins application and deployment with it
        ("agents", []),
        ("num_replicas", 0),
        ("num_cpus", 0),
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
