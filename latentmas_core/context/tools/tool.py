"""A tool: a function that a model may call, and what its arguments have to be.

Knows no engine and no conversation. How a call is run, and what is made of it: ``running``.
"""

import inspect
import json
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from latentmas_core.chat import ToolSpec
from latentmas_core.config import FrozenModel
from latentmas_core.context.tools.signature import Signature, json_schema_of
from latentmas_core.context.tools.threads import InThreads
from latentmas_core.errors import ConfigError, ToolError
from latentmas_core.validation import validated

DEFAULT_TIMEOUT_S = 10.0
MAX_RUNNING = 32
MAX_SHOWN_PROBLEMS = 5

Arguments = TypeVar("Arguments", bound=FrozenModel)


class Tool:
    """``function`` takes the arguments that a model gave, validated as ``parameters``.

    It may be async; if not, each call has a thread of its own, of which ``max_running`` run at the
    same time. What it returns is shown to the model: a text as it is, anything else as JSON. It
    raises ToolError to tell the model what is wrong; of any other error the model learns the type.
    After ``timeout_s`` the call has failed. A thread cannot be ended, so a function that may hang
    should end by itself.

    Raises ConfigError for a name or limits that cannot be.
    """

    def __init__(
        self,
        name: str,
        description: str,
        parameters: type[Arguments],
        function: Callable[[Arguments], Any],
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_running: int = MAX_RUNNING,
    ) -> None:
        kind: Any = parameters
        if not (inspect.isclass(kind) and issubclass(kind, FrozenModel)):
            raise ConfigError(
                f"parameters of tool {name!r} is {parameters!r}; it has to be a subclass of "
                "latentmas_core.config.FrozenModel, which refuses unknown arguments.",
                param="parameters",
            )
        if not (math.isfinite(timeout_s) and timeout_s > 0):
            raise ConfigError(
                f"timeout_s of tool {name!r} is {timeout_s!r}; give seconds, more than 0.",
                param="timeout_s",
            )
        fields = {
            "name": name,
            "description": description,
            "parameters": json_schema_of(parameters),
        }
        self.spec = validated(ToolSpec, fields)
        self.timeout_s = timeout_s
        self._parameters = parameters
        self._call: Callable[[Any], Awaitable[object]] = (
            function if _is_async(function) else InThreads(function, name, max_running)
        )

    @staticmethod
    def from_function(
        function: Callable[..., Any],
        *,
        name: str | None = None,
        description: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_running: int = MAX_RUNNING,
    ) -> "Tool":
        """A tool of the function's own name, docstring and annotated parameters.

        Raises ConfigError for a parameter without a type, or one that has no name of its own.
        """
        name = str(name or getattr(function, "__name__", ""))
        description = description or inspect.getdoc(function)
        if not description:
            raise ConfigError(
                f"tool {name!r} has no description. Give the function a docstring that tells a "
                "model when to call it.",
                param="description",
            )
        signature = Signature.of(function, name)

        def call(arguments: FrozenModel) -> Any:
            return function(**signature.values(arguments))

        async def call_async(arguments: FrozenModel) -> Any:
            return await function(**signature.values(arguments))

        called: Callable[[FrozenModel], Any] = call_async if _is_async(function) else call
        return Tool(
            name,
            description,
            signature.parameters,
            called,
            timeout_s=timeout_s,
            max_running=max_running,
        )

    @property
    def name(self) -> str:
        return self.spec.name

    def __repr__(self) -> str:
        return f"Tool({self.name!r}, timeout_s={self.timeout_s:g})"

    async def call(self, arguments: Mapping[str, Any]) -> object:
        """What the function returns. ToolError for arguments that do not fit; what it raises."""
        value = await self._call(self._read(arguments))
        return await value if inspect.isawaitable(value) else value

    def _read(self, arguments: Mapping[str, Any]) -> FrozenModel:
        # Read as JSON: there a date is a text, and nothing else is turned into what was meant.
        try:
            return self._parameters.model_validate_json(json.dumps(arguments), strict=True)
        except ValidationError as error:
            problems = [
                f"{'.'.join(map(str, problem['loc'])) or 'arguments'}: {problem['msg']}"
                for problem in error.errors(include_url=False)[:MAX_SHOWN_PROBLEMS]
            ]
            known = ", ".join((self.spec.parameters or {}).get("properties", {})) or "none"
        raise ToolError(
            f"the arguments of {self.name} are wrong. {'; '.join(problems)}. It takes: {known}."
        )


def _is_async(function: Callable[..., Any]) -> bool:
    called = getattr(function, "__call__", function)  # noqa: B004 - an object may be called, too
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)
