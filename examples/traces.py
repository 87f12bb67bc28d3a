"""See traces without a backend: a collector on 127.0.0.1:4318 that prints the tree of each request.

python examples/traces.py
OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 make serve        # in another terminal
"""

import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

ADDRESS = ("127.0.0.1", 4318)
QUIET_S = 6.0  # processes send what they have every five seconds
SHOWN = ("latentmas.group", "latentmas.bytes_out", "latentmas.latent_steps", "error.type")


class Traces:
    """Spans by trace; one that nothing was added to for a while is taken to be whole."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: defaultdict[bytes, list[Span]] = defaultdict(list)
        self._touched_at: dict[bytes, float] = {}

    def add(self, spans: list[Span]) -> None:
        with self._lock:
            for span in spans:
                self._spans[span.trace_id].append(span)
                self._touched_at[span.trace_id] = time.monotonic()

    def take_whole(self) -> list[list[Span]]:
        limit = time.monotonic() - QUIET_S
        with self._lock:
            whole = [trace for trace, moment in self._touched_at.items() if moment < limit]
            for trace in whole:
                del self._touched_at[trace]
            return [self._spans.pop(trace) for trace in whole]


def receive(traces: Traces) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            request = ExportTraceServiceRequest.FromString(body)
            scopes = [scope for group in request.resource_spans for scope in group.scope_spans]
            traces.add([span for scope in scopes for span in scope.spans])
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Only traces are printed."""

    return Handler


def show(spans: list[Span]) -> None:
    ids = {span.span_id for span in spans}
    below = defaultdict(list)
    for span in sorted(spans, key=lambda span: span.start_time_unix_nano):
        below[span.parent_span_id if span.parent_span_id in ids else b""].append(span)
    began_at = min(span.start_time_unix_nano for span in spans)

    def show_below(parent: bytes, depth: int) -> None:
        for span in below[parent]:
            begin = (span.start_time_unix_nano - began_at) / 1e6
            length = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
            name = f"{'  ' * depth}{span.name}"
            print(f"{begin:9.1f} ms {length:9.1f} ms  {name:<40} {describe(span)}", flush=True)
            show_below(span.span_id, depth + 1)

    print(f"\ntrace {spans[0].trace_id.hex()}")
    show_below(b"", 0)


def describe(span: Span) -> str:
    values = {one.key: one.value for one in span.attributes if one.key in SHOWN}
    said = [f"{key.split('.')[-1]}={v.string_value or v.int_value}" for key, v in values.items()]
    return " ".join((["FAILED"] if span.status.code == Status.STATUS_CODE_ERROR else []) + said)


def main() -> None:
    traces = Traces()
    server = ThreadingHTTPServer(ADDRESS, receive(traces))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"collecting on http://{ADDRESS[0]}:{ADDRESS[1]}; Ctrl-C ends it", flush=True)
    while True:
        time.sleep(1.0)
        for spans in traces.take_whole():
            show(spans)


if __name__ == "__main__":
    main()
