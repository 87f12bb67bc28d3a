"""``python -m tools.configuration_reference`` writes docs/configuration-reference.md.

All that stands in it comes from the models that validate a config file.
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from deployments.args import AppArgs
from deployments.live import LiveConfig

PAGE = Path(__file__).parents[1] / "docs/configuration-reference.md"
ROOTS: tuple[type[BaseModel], ...] = (AppArgs, LiveConfig)
HEAD = """# Configuration reference

Written by `python -m tools.configuration_reference` from the models, not by hand.
`AppArgs` is the `args` of an application in `serve_config.yaml`, `LiveConfig` the `user_config` of
a group (docs/failures.md). A field whose type is a model of this page is a mapping with its fields.
"""


def main() -> None:
    PAGE.write_text(page())


def page() -> str:
    """docs/configuration-reference.md as the models make it."""
    return "\n".join([HEAD, *(_section(model) for model in all_models())])


def all_models() -> list[type[BaseModel]]:
    """The roots and every model that one of their fields holds, each once."""
    found: list[type[BaseModel]] = []
    waiting = list(ROOTS)
    while waiting:
        model = waiting.pop(0)
        if model not in found:
            found.append(model)
            for field in model.model_fields.values():
                waiting.extend(_models_in(field.annotation))
    return found


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _section(model: type[BaseModel]) -> str:
    rows = [_row(name, field) for name, field in model.model_fields.items()]
    words = inspect.cleandoc(model.__doc__ or "").replace("``", "`")
    table = ["| field | type | default | bounds | what |", "|---|---|---|---|---|", *rows]
    return "\n".join([f"## {model.__name__}", "", words, "", *table, ""])


def _row(name: str, field: FieldInfo) -> str:
    cells = (
        f"`{name}`",
        f"`{_type_name(field.annotation)}`",
        _default(field),
        _bounds(field),
        " ".join((field.description or "").split()),
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type_name(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(parts[0])
    if origin in (Union, UnionType):
        return " | ".join(dict.fromkeys(_type_name(part) for part in parts))
    if annotation is type(None):
        return "null"
    if origin is tuple:
        return f"list of {_type_name(parts[0])}"
    if origin is dict:
        return f"mapping of {_type_name(parts[0])} to {_type_name(parts[1])}"
    if parts:  # a Literal
        return " | ".join(repr(part) for part in parts)
    return str(getattr(annotation, "__name__", annotation))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return "its own"
    if value is None:
        return "`null`"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def _bounds(field: FieldInfo) -> str:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "min_length": "length >="}
    told = [
        f"{sign} {getattr(one, name)}"
        for one in field.metadata
        for name, sign in signs.items()
        if getattr(one, name, None) is not None
    ]
    return re.sub(r"\s+", " ", ", ".join(told))


if __name__ == "__main__":
    main()
