"""The unit converter, on pint. Names and small powers alone reach pint's own parser."""

import math
import re
import threading
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, StringConstraints

from latentmas_core.config import FrozenModel, JsonNumber
from latentmas_core.context.tools.tool import Tool
from latentmas_core.errors import ToolError

if TYPE_CHECKING:
    from pint import UnitRegistry

MAX_CHARS = 80
MAX_FACTORS = 8

_FACTOR = re.compile(
    r"\s*(?P<sign>\*|/|per\s)?\s*(?P<name>[^\W\d]+|°[CF]|%)(?:\s*(?:\^|\*\*)\s*(?P<power>-?[0-9]))?\s*"
)
_SPELT = {"°C": "degC", "°F": "degF", "%": "percent"}

UnitName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_CHARS),
    Field(description="for example km/h, kg*m^2, degC, degF, liter"),
]


class Conversion(FrozenModel):
    """A quantity, and the unit it is wanted in."""

    value: Annotated[JsonNumber, Field(allow_inf_nan=False)]
    from_unit: UnitName
    to_unit: UnitName


def convert_units_tool() -> Tool:
    """The shipped tool over a UnitConverter of its own."""
    return Tool(
        "convert_units",
        "Converts a value from one unit to another. Temperatures are degC, degF and kelvin.",
        Conversion,
        UnitConverter().convert,
    )


class UnitConverter:
    """Reads pint's definitions when it is first used. Usable from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._registry: UnitRegistry[Any] | None = None

    def convert(self, conversion: Conversion) -> str:
        """The quantity in both units, with 12 digits. ToolError for units that are unknown, do not
        measure the same, or where the result is too large."""
        value, from_unit, to_unit = conversion.value, conversion.from_unit, conversion.to_unit
        with self._lock:
            converted = self._converted(value, from_unit, to_unit)
        if not math.isfinite(converted):
            raise ToolError(f"{value:g} {from_unit} in {to_unit} is too large for a number.")
        return f"{value:.12g} {from_unit} = {converted:.12g} {to_unit}"

    def _converted(self, value: float, from_unit: str, to_unit: str) -> float:
        from pint import UnitRegistry
        from pint.errors import DimensionalityError, PintError

        registry = self._registry = self._registry or UnitRegistry()
        try:
            quantity = registry.Quantity(value, self._unit(registry, from_unit))
            return float(quantity.to(self._unit(registry, to_unit)).magnitude)
        except DimensionalityError as error:
            raise ToolError(
                f"{from_unit!r}, which is {error.units1}, cannot become {to_unit!r}, which is "
                f"{error.units2}. Temperatures are degC, degF and kelvin, alone."
            ) from None
        except (PintError, ArithmeticError, ValueError) as error:
            raise ToolError(f"{from_unit!r} to {to_unit!r}: {error}.") from None

    def _unit(self, registry: "UnitRegistry[Any]", text: str) -> Any:
        unit = registry.Unit("")
        for index, (sign, name, power) in enumerate(_factors(text)):
            if (sign is None) != (index == 0):
                raise _unreadable(text)
            factor = registry.Unit(_SPELT.get(name, name)) ** int(power or 1)
            unit = unit * factor if sign in (None, "*") else unit / factor
        return unit


def _factors(text: str) -> list[tuple[str | None, str, str | None]]:
    position = 0
    factors: list[tuple[str | None, str, str | None]] = []
    while position < len(text):
        match = _FACTOR.match(text, position)
        if match is None or len(factors) == MAX_FACTORS:
            raise _unreadable(text)
        factors.append((match["sign"], match["name"], match["power"]))
        position = match.end()
    return factors


def _unreadable(text: str) -> ToolError:
    return ToolError(
        f"unit {text!r} cannot be read. Write up to {MAX_FACTORS} names with * and /, and powers "
        "of one digit: kg*m^2/s^2."
    )
