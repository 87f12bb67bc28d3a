"""A question with what belongs to it: documents, tools, a conversation."""

from pydantic import Field

from latentmas_core.config import JsonBool, Text
from latentmas_core.context.documents.document import DocumentInputs
from latentmas_core.request import ReasonRequest


class AskRequest(ReasonRequest):
    """A ReasonRequest and its context.

    ``documents`` are searched for passages that are shown with the question: texts, or addresses
    of the web. They belong to this request alone. ``enable_tools``: true for all tools of the
    service, or the names of some; agents call them, and the answer comes when they are done.
    """

    documents: DocumentInputs = ()
    enable_tools: JsonBool | tuple[Text, ...] = Field(default=False, union_mode="left_to_right")

    @property
    def has_context(self) -> bool:
        return bool(self.documents or self.enable_tools)

    def as_reason(self) -> ReasonRequest:
        """What agents are told of it."""
        fields = {name: getattr(self, name) for name in ReasonRequest.model_fields}
        return ReasonRequest.model_construct(**fields)
