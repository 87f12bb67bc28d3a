"""How the model of a service reads: what is needed to measure a text before it is asked."""

from dataclasses import dataclass

from latentmas_core.context.documents.chunking import TokenSpans

# Of the positions half are for questions and what is shown with them; thoughts, roles and the
# answer take the rest.
SHOWN_PART = 2


@dataclass(frozen=True)
class Reading:
    """``token_spans``: the tokens of a text. ``max_positions`` of one sequence."""

    token_spans: TokenSpans
    max_positions: int

    def num_tokens(self, text: str) -> int:
        return len(self.token_spans(text))

    def max_shown_tokens(self, num_agents: int) -> int:
        """How much each of ``num_agents`` may be shown: in a chain the last one's memory holds what
        all before it have read."""
        return self.max_positions // SHOWN_PART // max(1, num_agents)
