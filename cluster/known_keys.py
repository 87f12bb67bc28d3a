"""Finds keys that no model of a document knows, also where the models themselves let them pass."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from cluster.problem import Problem, join

# What a field that is declared as a plain dict really holds: a model, or a set of keys.
DictFields = Mapping[tuple[type[BaseModel], str], type[BaseModel] | Collection[str]]


@dataclass
class KeyCheck:
    """Walks documents along their models and collects ``problems``."""

    dict_fields: DictFields = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def corrected(self, model: type[BaseModel], document: Any, *, path: str = "") -> Any:
        """A copy without unknown keys, so that the rest can still be validated.

        A key that is close to a known one which is not there is taken for that.
        """
        if not isinstance(document, Mapping):
            return document
        copy: dict[str, Any] = {}
        for key, value in self._known(document, model.model_fields, path):
            copy[key] = self._field(model, key, value, join(path, key))
        return copy

    def only_known(
        self, document: Mapping[Any, Any], known: Collection[str], *, path: str
    ) -> dict[str, Any]:
        """``corrected``, where there is a set of keys in place of a model."""
        return dict(self._known(document, known, path))

    def _known(
        self, document: Mapping[Any, Any], known: Collection[str], path: str
    ) -> Iterator[tuple[str, Any]]:
        for key, value in document.items():
            if key in known:
                yield key, value
                continue
            close = get_close_matches(str(key), known, n=1)
            remedy = f"Known are {', '.join(sorted(known))}"
            if close:
                remedy = f"Did you mean {close[0]!r}?"
            self.problems.append(
                Problem(join(path, str(key)), f"unknown key {str(key)!r}. {remedy}")
            )
            if close and close[0] not in document:
                yield close[0], value

    def _field(self, model: type[BaseModel], key: str, value: Any, path: str) -> Any:
        held = self.dict_fields.get((model, key))
        if isinstance(held, type):
            return self.corrected(held, value, path=path)
        if held is not None and isinstance(value, Mapping):
            return self.only_known(value, held, path=path)
        return self._value(model.model_fields[key].annotation, value, path)

    def _value(self, annotation: Any, value: Any, path: str) -> Any:
        for option in _options(annotation):
            if _is_model(option) and isinstance(value, Mapping):
                return self.corrected(option, value, path=path)
            if get_origin(option) in (list, tuple) and isinstance(value, list):
                element = get_args(option)[0]
                return [self._value(element, one, join(path, i)) for i, one in enumerate(value)]
        return value


def _is_model(option: Any) -> bool:
    return isinstance(option, type) and issubclass(option, BaseModel)


def _options(annotation: Any) -> Iterator[Any]:
    """The types that a value may have: unions and annotations taken apart."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _options(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for option in get_args(annotation):
            yield from _options(option)
    else:
        yield annotation
