"""Spans that a test can look at, and a search for any that was begun and never ended."""

from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from deployments.tracing import Tracing


class SeenSpans:
    """A tracing whose spans are kept; ``open_names`` are those of spans that have not ended."""

    def __init__(self):
        self._exporter = InMemorySpanExporter()
        self._open = _Open()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(self._open)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracing = Tracing(provider)

    @property
    def open_names(self):
        return sorted(span.name for span in self._open.spans.values())

    @property
    def all(self):
        return self._exporter.get_finished_spans()

    def clear(self):
        self._exporter.clear()

    def named(self, name):
        """In the order in which they began."""
        found = [span for span in self.all if span.name == name]
        return sorted(found, key=lambda span: span.start_time)

    def one(self, name):
        (span,) = self.named(name)
        return span

    def below(self, parent):
        """Its children, in the order in which they began."""
        found = [s for s in self.all if s.parent and s.parent.span_id == parent.context.span_id]
        return sorted(found, key=lambda span: span.start_time)

    def tree(self, parent):
        """Names, each with those below it."""
        return {span.name: self.tree(span) for span in self.below(parent)}

    def texts(self):
        """All that a backend would be sent."""
        return "\n".join(span.to_json() for span in self.all)


class _Open(SpanProcessor):
    def __init__(self):
        self.spans = {}

    def on_start(self, span, parent_context=None):
        self.spans[span.context.span_id] = span

    def on_end(self, span):
        del self.spans[span.context.span_id]


def failure_of(span):
    """The class of the error that a span says it failed with."""
    assert span.status.status_code is StatusCode.ERROR, span.name
    assert span.attributes["latentmas.outcome"] == "failed"
    assert not span.status.description
    assert not span.events
    return span.attributes["error.type"]


def is_cut(span):
    return span.attributes.get("latentmas.outcome") == "cut"


def is_well(span):
    return "latentmas.outcome" not in span.attributes and not is_failed(span)


def is_failed(span):
    return span.status.status_code is StatusCode.ERROR
