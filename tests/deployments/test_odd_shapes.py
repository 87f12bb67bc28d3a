"""Whatever stands anywhere in a config file is refused or taken, and never a crash."""

from collections.abc import Iterator
from typing import Any

import pytest

from cluster.placement import Node
from deployments.check import check_document
from tests.deployments.full_config import full_config

pytestmark = pytest.mark.slow

NODES = [Node("a", 16, 1)]
ODD = (None, True, -1, float("nan"), "text", [1], {"name": ["x"]})

Place = tuple[str | int, ...]


def config() -> dict[str, Any]:
    """Without the router, which Serve pickles at each check; test_serve_file.py has it."""
    full = full_config()
    del full["applications"][0]["deployments"][0]["request_router_config"]
    return full


def places(value: Any, prefix: Place = ()) -> Iterator[Place]:
    """Where anything stands, from the top down to the leaves."""
    items = list(enumerate(value)) if isinstance(value, list) else []
    if isinstance(value, dict):
        items = list(value.items())
    for key, child in items:
        yield (*prefix, key)
        yield from places(child, (*prefix, key))


def put(document: Any, place: Place, value: Any) -> Any:
    parent = document
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = value
    return document


@pytest.mark.parametrize("place", list(places(config())), ids=str)
def test_odd_value_is_no_crash(place):
    told = [check_document(put(config(), place, odd), NODES).problems for odd in ODD]
    assert any(told)  # no place takes all of them


@pytest.mark.parametrize("document", ODD)
def test_odd_document_is_refused(document):
    assert check_document(document, NODES).problems != ()
