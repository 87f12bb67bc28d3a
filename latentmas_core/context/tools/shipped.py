"""The tools that come with the product. None touches files, the network or code."""

from latentmas_core.context.tools.calculator import calculator_tool
from latentmas_core.context.tools.dates import Clock, date_tools, utc_now
from latentmas_core.context.tools.registry import ToolRegistry
from latentmas_core.context.tools.units import convert_units_tool


def shipped_tools(*, clock: Clock = utc_now) -> ToolRegistry:
    """A new registry, to which others may be added. ``clock`` says what day it is."""
    return ToolRegistry([calculator_tool(), convert_units_tool(), *date_tools(clock)])
