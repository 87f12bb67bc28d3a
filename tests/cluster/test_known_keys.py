"""Unknown keys: found wherever models are nested, named, and taken for what is meant."""

from collections.abc import Mapping
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator, BaseModel

from cluster.known_keys import KeyCheck


class Leaf(BaseModel):
    size: int = 0
    options: dict[str, Any] = {}


class Tree(BaseModel):
    leaf: Leaf | None = None
    leaves: tuple[Annotated[Leaf, AfterValidator(lambda leaf: leaf)], ...] = ()
    mixed: list[Leaf | str] = []
    loose: dict[str, Any] | Leaf = {}
    env: dict[str, Any] = {}


DICT_FIELDS = {(Leaf, "options"): Leaf, (Tree, "env"): {"env_vars", "pip"}}


def check(document: Mapping[str, Any], path: str = "") -> tuple[Any, list[str]]:
    keys = KeyCheck(DICT_FIELDS)
    corrected = keys.corrected(Tree, document, path=path)
    return corrected, [str(problem) for problem in keys.problems]


@pytest.mark.parametrize(
    ("document", "place"),
    [
        ({"leaff": {}}, "leaff"),
        ({"leaf": {"sise": 1}}, "leaf.sise"),
        ({"leaves": [{}, {"sise": 1}]}, "leaves[1].sise"),
        ({"mixed": ["a", {"sise": 1}]}, "mixed[1].sise"),
        ({"loose": {"sise": 1}}, "loose.sise"),
        ({"leaf": {"options": {"sise": 1}}}, "leaf.options.sise"),
        ({"env": {"env_var": {}}}, "env.env_var"),
    ],
)
def test_unknown_key_is_named_with_its_place(document, place):
    _, (told,) = check(document, path="args")
    key = place.rpartition(".")[2]
    assert told.startswith(f"args.{place}: unknown key {key!r}. Did you mean ")


def test_key_that_is_close_to_none_gets_a_list_of_those_that_are_known():
    corrected, (told,) = check({"leaf": {"colour": "green"}})
    assert told == "leaf.colour: unknown key 'colour'. Known are options, size"
    assert corrected == {"leaf": {}}


def test_misspelt_key_is_taken_for_the_one_it_is_close_to():
    corrected, _ = check({"leavs": [{"sise": 3}]})
    assert corrected == {"leaves": [{"size": 3}]}


def test_misspelt_key_does_not_replace_the_one_that_is_there():
    corrected, (told,) = check({"leaf": {"size": 1, "sise": 2}})
    assert corrected == {"leaf": {"size": 1}}
    assert "sise" in told


def test_all_unknown_keys_are_found_at_once():
    _, told = check({"a1": 1, "leaf": {"b2": 2}, "leaves": [{"c3": 3}], "env": {"d4": 4}})
    assert [line.partition(":")[0] for line in told] == ["a1", "leaf.b2", "leaves[0].c3", "env.d4"]


def test_right_documents_are_left_as_they_are():
    document = {"leaf": {"size": 1, "options": {"size": 2}}, "mixed": ["a", {"size": 3}]}
    assert check(document) == (document, [])


def test_keys_that_are_no_text_are_named_too():
    _, (told,) = check({True: 1})  # type: ignore[dict-item]  # what YAML makes of `on:`
    assert told.startswith("True: unknown key 'True'")


@pytest.mark.parametrize("document", ["text", 3, None, ["list"]])
def test_what_is_no_mapping_is_left_to_the_models(document):
    assert check(document) == (document, [])
