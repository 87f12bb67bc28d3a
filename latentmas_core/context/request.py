"""A question with what belongs to it: documents, tools, a conversation."""

from typing import Self

from pydantic import Field, model_validator

from latentmas_core.config import JsonBool, Text
from latentmas_core.context.conversations.names import ConversationId
from latentmas_core.context.documents.document import DocumentInputs
from latentmas_core.request import ReasonRequest


class AskRequest(ReasonRequest):
    """A question with what belongs to it: documents, tools, a conversation."""

    documents: DocumentInputs = ()
    """Texts, `{name, text}`, or `{url}`: passages of them are shown with the question and cited. A
    conversation keeps them for its later questions."""
    conversation_id: ConversationId | None = None
    """Go on with the conversation of this name, or begin it; in the place of `history`."""
    enable_tools: JsonBool | tuple[Text, ...] = Field(default=False, union_mode="left_to_right")
    """True for all tools of the service, or the names of some: the service runs what an answer
    calls, and asks again with the results."""

    @model_validator(mode="after")
    def _history_is_told_once(self) -> Self:
        if self.conversation_id is not None and (self.history or self.tool_messages):
            raise ValueError(
                "history and tool_messages cannot be given beside conversation_id: what was said "
                "is kept there. Leave one of them out",
            )
        return self

    @property
    def has_context(self) -> bool:
        return bool(self.documents or self.enable_tools or self.conversation_id is not None)

    def as_reason(self) -> ReasonRequest:
        """What agents are told of it."""
        fields = {name: getattr(self, name) for name in ReasonRequest.model_fields}
        return ReasonRequest.model_construct(**fields)
