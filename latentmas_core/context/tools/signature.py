"""From a function to its parameters as a model, and from a model to the schema that is shown."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, get_type_hints

from pydantic import Field, create_model
from pydantic.errors import PydanticUserError
from pydantic.json_schema import GenerateJsonSchema

from latentmas_core.config import FrozenModel
from latentmas_core.errors import ConfigError

_UNNAMED = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.VAR_POSITIONAL,
    inspect.Parameter.VAR_KEYWORD,
)


class Signature(NamedTuple):
    """``fields`` maps parameters to fields of the model, where some names are not allowed."""

    parameters: type[FrozenModel]
    fields: dict[str, str]

    @classmethod
    def of(cls, function: Callable[..., Any], tool: str) -> "Signature":
        """Raises ConfigError for parameters that cannot be given by name, or have no type."""
        try:
            hints = get_type_hints(function, include_extras=True)
        except (NameError, TypeError) as error:
            raise ConfigError(
                f"the types of tool {tool!r} cannot be read: {error}. Give a function whose "
                "annotations exist where it is defined.",
                param="function",
            ) from error
        columns: dict[str, Any] = {}
        fields: dict[str, str] = {}
        for index, parameter in enumerate(inspect.signature(function).parameters.values()):
            name = parameter.name
            if parameter.kind in _UNNAMED or name not in hints:
                raise ConfigError(
                    f"parameter {name!r} of tool {tool!r} has no type, or no name that a model "
                    "could give it by. Annotate it, and take no *args, **kwargs and nothing "
                    "positional only.",
                    param="function",
                )
            fields[name] = f"argument{index}"
            is_required = parameter.default is inspect.Parameter.empty
            columns[fields[name]] = (
                Annotated[hints[name], Field(alias=name)],
                ... if is_required else parameter.default,
            )
        try:
            return cls(create_model(tool, __base__=FrozenModel, **columns), fields)
        except PydanticUserError as error:
            raise _unreadable(tool, error) from error

    def values(self, arguments: FrozenModel) -> dict[str, Any]:
        return {name: getattr(arguments, field) for name, field in self.fields.items()}


class _Untitled(GenerateJsonSchema):
    """Titles repeat the names, and a model would read them all."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema_of(parameters: type[FrozenModel]) -> dict[str, Any]:
    """What a model is shown of the arguments."""
    try:
        schema = parameters.model_json_schema(schema_generator=_Untitled)
    except PydanticUserError as error:
        raise _unreadable(parameters.__name__, error) from error
    # What the class says of itself is not meant for the model: the tool has a description.
    return {key: value for key, value in schema.items() if key not in ("title", "description")}


def _unreadable(tool: str, error: PydanticUserError) -> ConfigError:
    return ConfigError(
        f"the parameters of tool {tool!r} cannot be written as a JSON schema: {error.message}. "
        "Use types that JSON has.",
        param="function",
    )
