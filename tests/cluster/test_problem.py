"""Problems with their places: pydantic's locations as paths of the file."""

import pytest
from pydantic import BaseModel, ValidationError, model_validator

from cluster.problem import Problem, ProblemsError, join, problems_of


class Leaf(BaseModel):
    size: int
    kind: int | float | None = None


class Tree(BaseModel):
    leaves: tuple[Leaf, ...] = ()
    best: Leaf | str = "none"

    @model_validator(mode="after")
    def _has_no_more_than_two(self):
        if len(self.leaves) > 2:
            raise ProblemsError([Problem("leaves[2]", "too many"), Problem("", "bent")])
        return self


def problems(document: object, *, path: str = "") -> list[str]:
    with pytest.raises(ValidationError) as caught:
        Tree.model_validate(document)
    return [str(problem) for problem in problems_of(caught.value, document, path=path)]


@pytest.mark.parametrize(
    ("parent", "child", "joined"),
    [
        ("", "groups", "groups"),
        ("groups", 1, "groups[1]"),
        ("groups[1]", "num_gpus", "groups[1].num_gpus"),
        ("args", "groups[1].name", "args.groups[1].name"),
        ("groups", "[1].name", "groups[1].name"),
        ("args", "", "args"),
    ],
)
def test_places_are_joined_as_one_writes_them(parent, child, joined):
    assert join(parent, child) == joined


def test_wrong_value_is_shown_with_its_place():
    (told,) = problems({"leaves": [{"size": 1}, {"size": "x"}]}, path="args")
    assert told.startswith("args.leaves[1].size: got 'x': Input should be a valid integer")


def test_missing_field_is_named():
    assert problems({"leaves": [{}]}) == ["leaves[0].size: is missing. Add it"]


def test_branches_of_a_union_are_no_part_of_the_place():
    told = problems({"leaves": [{"size": 1, "kind": "x"}]})
    assert {line.partition(": ")[0] for line in told} == {"leaves[0].kind"}


def test_problems_that_a_validator_found_are_told_one_by_one_with_their_places():
    told = problems({"leaves": [{"size": i} for i in range(3)]}, path="a")
    assert told == ["a.leaves[2]: too many", "a: bent"]


def test_long_values_are_cut():
    (told, *_) = problems({"leaves": [{"size": "x" * 1000}]})
    assert len(told) < 250


def test_error_of_several_problems_reads_line_by_line():
    error = ProblemsError([Problem("a", "wrong"), Problem("b", "wrong too")])
    assert str(error) == "a: wrong\nb: wrong too"
