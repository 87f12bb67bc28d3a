"""The calculator: reads an expression token by token and computes it. Nothing is ever run as code.

Knows numbers, operators, parentheses and the names of ``arithmetic``; all else is refused.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, NamedTuple

from pydantic import Field

from latentmas_core.config import FrozenModel
from latentmas_core.context.tools.arithmetic import (
    CONSTANTS,
    FUNCTIONS,
    Number,
    add,
    arithmetic,
    bounded,
    divide,
    floor_divide,
    literal,
    modulo,
    multiply,
    power,
    shown,
    subtract,
)
from latentmas_core.context.tools.tool import Tool
from latentmas_core.errors import ToolError

MAX_CHARS = 500
MAX_DEPTH = 32

_TOKEN = re.compile(
    r"(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z_0-9]*)"
    r"|(?P<sign>\*\*|//|[-+*/%^(),])"
)
_BLANKS = " \t\r\n"
_POWERS = ("**", "^")


class _Operator(NamedTuple):
    """``strength``: of two operators the stronger one is applied first."""

    apply: Callable[[Number, Number], Number]
    strength: int


_OPERATORS = {
    "+": _Operator(add, 1),
    "-": _Operator(subtract, 1),
    "*": _Operator(multiply, 2),
    "/": _Operator(divide, 2),
    "//": _Operator(floor_divide, 2),
    "%": _Operator(modulo, 2),
}


class _Token(NamedTuple):
    kind: str
    text: str
    position: int


class Calculation(FrozenModel):
    """What is to be computed."""

    expression: Annotated[str, Field(description="for example (2 + 3) * 4 or sqrt(2) / 3")]


def calculator_tool() -> Tool:
    """The shipped tool over ``evaluate``."""
    return Tool(
        "calculator",
        "Computes an arithmetic expression exactly: + - * / // % ** and parentheses, constants "
        f"{', '.join(CONSTANTS)}, functions {', '.join(FUNCTIONS)}. Angles are in radians.",
        Calculation,
        lambda calculation: evaluate(calculation.expression),
        timeout_s=5.0,
    )


def evaluate(expression: str) -> str:
    """The value of ``expression``; ToolError for whatever is no such expression or too large.

    ``%`` and ``//`` round down; ``^`` is ``**``, which binds to the right and stronger than a sign
    on its left. ``log`` is natural unless it is given a base; ``round`` rounds halves up.
    """
    if len(expression) > MAX_CHARS:
        raise ToolError(
            f"the expression has {len(expression)} characters; at most {MAX_CHARS} are read. "
            "Compute it in parts."
        )
    tokens = tuple(_tokens(expression))
    with arithmetic():
        return shown(_Parser(tokens).value())


def _tokens(expression: str) -> Iterator[_Token]:
    position = 0
    while position < len(expression):
        if expression[position] in _BLANKS:
            position += 1
            continue
        match = _TOKEN.match(expression, position)
        if match is None:
            raise ToolError(
                f"character {position + 1} is {expression[position]!a}, which no expression "
                "has. Use numbers, + - * / // % ** ( ) , and the names of functions."
            )
        yield _Token(str(match.lastgroup), match[0], position)
        position = match.end()
    yield _Token("end", "the end", position)


class _Parser:
    """Precedence climbing: each method reads what it is named after, and computes it."""

    def __init__(self, tokens: tuple[_Token, ...]) -> None:
        self._tokens = tokens
        self._next = 0
        self._depth = 0

    def value(self) -> Number:
        value = self._sum()
        if self._token.kind != "end":
            raise self._unexpected("an operator")
        return value

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _sum(self, min_strength: int = 1) -> Number:
        left = self._signed()
        while True:
            operator = _OPERATORS.get(self._token.text)
            if operator is None or operator.strength < min_strength:
                return left
            self._next += 1
            left = operator.apply(left, self._sum(operator.strength + 1))

    def _signed(self) -> Number:
        sign = self._token.text
        if sign not in ("+", "-"):
            return self._power()
        self._next += 1
        with self._deeper():
            value = self._signed()
        return -value if sign == "-" else value

    def _power(self) -> Number:
        base = self._atom()
        if self._token.text not in _POWERS:
            return base
        self._next += 1
        with self._deeper():
            return power(base, self._signed())

    def _atom(self) -> Number:
        token = self._token
        if token.kind == "number":
            self._next += 1
            return literal(token.text)
        if token.kind == "name":
            self._next += 1
            return self._named(token)
        if token.text != "(":
            raise self._unexpected("a number")
        (value,) = self._in_parentheses(max_values=1)
        return value

    def _named(self, token: _Token) -> Number:
        if token.text in CONSTANTS:
            return CONSTANTS[token.text]
        function = FUNCTIONS.get(token.text)
        if function is None:
            raise ToolError(
                f"{token.text!r} is unknown. Known are {', '.join((*CONSTANTS, *FUNCTIONS))}."
            )
        if self._token.text != "(":
            raise self._unexpected(f"( behind {token.text}")
        values = self._in_parentheses(max_values=function.max_arguments)
        if len(values) < function.min_arguments:
            raise ToolError(f"{token.text} takes at least {function.min_arguments} numbers.")
        return bounded(function.call(*values))

    def _in_parentheses(self, *, max_values: int | None) -> list[Number]:
        self._next += 1
        with self._deeper():
            values = [self._sum()]
            while self._token.text == "," and len(values) != max_values:
                self._next += 1
                values.append(self._sum())
        if self._token.text != ")":
            raise self._unexpected(")")
        self._next += 1
        return values

    @contextmanager
    def _deeper(self) -> Iterator[None]:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ToolError(f"it is nested more than {MAX_DEPTH} levels deep. Compute it in parts.")
        yield
        self._depth -= 1

    def _unexpected(self, wanted: str) -> ToolError:
        token = self._token
        return ToolError(f"at character {token.position + 1} is {token.text}, not {wanted}.")
