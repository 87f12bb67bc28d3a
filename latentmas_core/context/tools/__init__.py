"""Tools that a model may call while it answers: registered, run, bounded."""

from latentmas_core.context.tools.loop import Ask, ToolLimits, ToolLoop
from latentmas_core.context.tools.registry import ToolRegistry
from latentmas_core.context.tools.search import (
    SEARCH_DOCUMENTS,
    Passage,
    document_search_tool,
)
from latentmas_core.context.tools.shipped import shipped_tools
from latentmas_core.context.tools.tool import Tool

__all__ = [
    "SEARCH_DOCUMENTS",
    "Ask",
    "Passage",
    "Tool",
    "ToolLimits",
    "ToolLoop",
    "ToolRegistry",
    "document_search_tool",
    "shipped_tools",
]
