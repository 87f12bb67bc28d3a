"""The rule that joins memories of parallel agents; a word of requests, so it needs no torch."""

from enum import StrEnum


class MergeRule(StrEnum):
    """Where the rows of parallel memories stand for the agent that reads them all."""

    REUSED = "reused"
    CONSECUTIVE = "consecutive"
