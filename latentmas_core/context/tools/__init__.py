"""Tools that a model may call while it answers: registered, run, bounded."""

from latentmas_core.context.tools.loop import Ask, ToolLimits, ToolLoop
from latentmas_core.context.tools.registry import ToolRegistry
from latentmas_core.context.tools.search import Passage, document_search_tool
from latentmas_core.context.tools.shipped import shipped_tools
from latentmas_core.context.tools.tool import Tool

__all__ = [
    "Ask",
    "Passage",
    "Tool",
    "ToolLimits",
    "ToolLoop",
    "ToolRegistry",
    "document_search_tool",
    "shipped_tools",
]
