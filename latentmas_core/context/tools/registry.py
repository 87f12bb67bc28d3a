"""The tools that may be enabled, by name."""

from collections.abc import Iterable, Iterator
from typing import Self

from latentmas_core.chat import ToolSpec
from latentmas_core.context.tools.tool import Tool
from latentmas_core.errors import ConfigError, NotFoundError


class ToolRegistry:
    """``ToolRegistry([*one, *another, tool])`` joins registries."""

    def __init__(self, tools: Iterable[Tool] = ()) -> None:
        self._tools: dict[str, Tool] = {}
        for tool in tools:
            self.add(tool)

    def __iter__(self) -> Iterator[Tool]:
        return iter(self._tools.values())

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._tools)

    def add(self, tool: Tool) -> Self:
        """Raises ConfigError if its name is taken."""
        if tool.name in self._tools:
            raise ConfigError(
                f"tool {tool.name!r} exists already. Give this one another name.", param="tools"
            )
        self._tools[tool.name] = tool
        return self

    def get(self, name: str) -> Tool:
        """Raises NotFoundError for a name that no tool has."""
        if name not in self._tools:
            raise NotFoundError(
                f"tool {name!r} does not exist here. Known: {', '.join(self._tools) or 'none'}.",
                param="tools",
            )
        return self._tools[name]

    def specs(self, names: Iterable[str] | None = None) -> tuple[ToolSpec, ...]:
        """What a model is told of these tools, by default of all; NotFoundError."""
        return tuple(self.get(name).spec for name in (self._tools if names is None else names))
