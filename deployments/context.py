"""Documents and tools of a service: the operator's options, and tools of the operator's own."""

from collections.abc import Iterator
from importlib import import_module
from typing import Annotated

from pydantic import StringConstraints

from latentmas_core.context.config import ContextConfig
from latentmas_core.context.tools import Tool, ToolRegistry, shipped_tools
from latentmas_core.errors import ConfigError

ImportPath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]


class ServiceContext(ContextConfig):
    """What may belong to a question, and the operator's own tools."""

    own_tools: tuple[ImportPath, ...] = ()
    """Tools beside the shipped ones: `module:name` of a Tool or a ToolRegistry that the ingress can
    import."""


def tools_of(context: ServiceContext) -> ToolRegistry:
    """What requests may enable. Raises ConfigError for a tool that is not where it should be."""
    return ToolRegistry([*shipped_tools(), *_own_tools(context)])


def _own_tools(context: ServiceContext) -> Iterator[Tool]:
    for path in context.own_tools:
        found = _imported(path)
        if isinstance(found, Tool):
            yield found
        elif isinstance(found, ToolRegistry):
            yield from found
        else:
            raise ConfigError(
                f"context.own_tools names {path!r}, which is {type(found).__name__}; it has to be "
                "a Tool or a ToolRegistry of latentmas_core.context.tools.",
                param="context.own_tools",
            )


def _imported(path: str) -> object:
    module, _, name = path.partition(":")
    try:
        found: object = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"context.own_tools names {path!r}, which cannot be imported here: {error}. Correct "
            "it, or put its module where the ingress finds it (working_dir, the image).",
            param="context.own_tools",
        ) from None
    return found
