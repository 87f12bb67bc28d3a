"""A network without sockets: names that resolve as told, servers that answer what they are told."""

import ssl
from collections.abc import Mapping, Sequence

import httpcore

PUBLIC = "93.184.215.14"
OTHER_PUBLIC = "2606:4700::1111"


def response(
    body: bytes = b"", *, status: int = 200, content_type: str = "text/plain", **headers: str
) -> bytes:
    """An answer as it goes over the wire; underscores in names of headers are dashes."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {content_type}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if "content_length" not in headers:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def redirect(location: str, status: int = 302) -> bytes:
    return response(status=status, Location=location)


class Names:
    """A resolver. Each lookup of a name takes the next of its answers; the last one stays."""

    def __init__(self, answers: Mapping[str, Sequence[Sequence[str]]]) -> None:
        self._answers = {name: list(found) for name, found in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        if host not in self._answers:
            raise OSError(f"{host} is unknown")
        answers = self._answers[host]
        return list(answers.pop(0) if len(answers) > 1 else answers[0])


class Wire(httpcore.AsyncMockStream):
    def __init__(self, network: "Network", answer: bytes) -> None:
        # In small pieces, as networks deliver.
        super().__init__([answer[at : at + 1000] for at in range(0, len(answer), 1000)])
        self._of = network

    async def write(self, buffer: bytes, **_: object) -> None:
        self._of.sent += buffer

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, **_: object
    ) -> httpcore.AsyncNetworkStream:
        self._of.server_names.append(server_hostname)
        assert ssl_context.verify_mode is ssl.CERT_REQUIRED
        assert ssl_context.check_hostname
        return self


class Network(httpcore.AsyncNetworkBackend):
    """Answers connections in turn and remembers where they went."""

    def __init__(self, *answers: bytes, unreachable: Sequence[str] = ()) -> None:
        self._answers = list(answers)
        self._unreachable = unreachable
        self.connected: list[tuple[str, int]] = []
        self.server_names: list[str | None] = []
        self.sent = b""

    async def connect_tcp(self, host: str, port: int, *_: object) -> httpcore.AsyncNetworkStream:
        if host in self._unreachable:
            raise httpcore.ConnectError("no route")
        self.connected.append((host, port))
        return Wire(self, self._answers.pop(0))

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing is to be tried again")
