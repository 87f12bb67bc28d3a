"""Fetches documents by their addresses, from public hosts only.

Each name is resolved once, all its addresses are checked, and the connection goes to a checked one,
so that a name server that changes its mind gains nothing. Redirects are followed here, each checked
like the first address. Nothing is read from the environment: no proxy, no credentials.
"""

import asyncio
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple
from urllib.parse import unquote, urljoin

import httpcore
from pydantic import Field

from latentmas_core.config import FrozenModel
from latentmas_core.context.documents.content_types import Unpacker, format_of_response, recoded
from latentmas_core.context.documents.document import Document, too_large
from latentmas_core.context.documents.pinned import (
    ForbiddenAddressError,
    PinnedBackend,
    Resolver,
    system_resolver,
)
from latentmas_core.context.documents.readers import Format, ReadLimits, read_bytes
from latentmas_core.context.documents.threads import DocumentThreads
from latentmas_core.context.documents.urls import WebAddress, parsed_url, shown
from latentmas_core.errors import DocumentError

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_USER_AGENT = "latentmas"


class FetchPolicy(FrozenModel):
    """What may be fetched, at most how much of it, and how long all of it may take."""

    max_bytes: int = Field(default=10 * 2**20, ge=1)
    """Bytes of one document."""
    timeout_s: float = Field(default=15.0, gt=0.0, allow_inf_nan=False)
    """Seconds for one document, redirects included."""
    max_redirects: int = Field(default=5, ge=0, le=20)
    """Redirects that are followed; each address is checked."""
    allowed_ports: tuple[int, ...] = (80, 443)
    """The only ports that are connected to."""
    allowed_hosts: tuple[str, ...] | None = None
    """The only hosts that are fetched from; null: all whose addresses are public."""
    allowed_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    """Networks that are fetched from although they are not public: those of an intranet."""


DEFAULT_POLICY = FetchPolicy()


class _Response(NamedTuple):
    """``location`` is where a redirect leads; else there is content."""

    location: str | None
    content_type: str = ""
    content: bytes = b""


class Fetcher:
    """Fetches as a policy allows. Holds no connection between two documents."""

    def __init__(
        self,
        policy: FetchPolicy = DEFAULT_POLICY,
        limits: ReadLimits | None = None,
        *,
        resolver: Resolver = system_resolver,
        network: httpcore.AsyncNetworkBackend | None = None,
        threads: DocumentThreads | None = None,
    ) -> None:
        self._policy = policy
        self._threads = threads or DocumentThreads()
        self._limits = limits or ReadLimits(max_bytes=policy.max_bytes)
        self._backend = PinnedBackend(resolver, policy.allowed_networks, network)

    async def fetch(self, url: str) -> Document:
        """The document at ``url``, in the format that its server says it has.

        Raises DocumentError for an address that is not allowed, an answer that is not 200, content
        in no known format, and for more bytes or time than the policy gives.
        """
        try:
            async with asyncio.timeout(self._policy.timeout_s):
                address, response = await self._follow(url)
        except TimeoutError:
            raise _failed(
                url, f"took longer than timeout_s ({self._policy.timeout_s:g})", "Try later"
            ) from None
        return await self._threads.run(self._read, address, response)

    async def _follow(self, url: str) -> tuple[WebAddress, _Response]:
        current = url
        for _ in range(self._policy.max_redirects + 1):
            address = parsed_url(current)
            self._check(address)
            response = await self._get(address)
            if response.location is None:
                return address, response
            current = _joined(address, response.location)
        limit = self._policy.max_redirects
        raise _failed(url, f"redirects more than max_redirects ({limit})", "Use its last address")

    def _check(self, address: WebAddress) -> None:
        policy = self._policy
        if policy.allowed_hosts is not None and address.host not in policy.allowed_hosts:
            raise _failed(
                str(address),
                f"is on {address.host}, which is not among allowed_hosts",
                "Ask the operator to add it",
            )
        if address.port not in policy.allowed_ports:
            raise _failed(
                str(address),
                f"has port {address.port}, which is not among allowed_ports "
                f"({', '.join(map(str, policy.allowed_ports))})",
                "Ask the operator to add it",
            )

    async def _get(self, address: WebAddress) -> _Response:
        """One request over a connection of its own."""
        pool = httpcore.AsyncConnectionPool(network_backend=self._backend)
        headers = [
            ("Host", address.host_header),
            ("User-Agent", _USER_AGENT),
            ("Accept-Encoding", "identity"),
        ]
        url = httpcore.URL(
            scheme=address.scheme.encode(),
            host=address.host.encode(),
            port=address.port,
            target=address.target.encode(),
        )
        try:
            async with pool, pool.stream("GET", url, headers=headers) as response:
                return await self._received(address, response)
        except ForbiddenAddressError as error:
            raise _failed(
                str(address),
                f"is not fetched: {error.host} stands for a {error.kind} address",
                "Use a public address; an operator may add its network to allowed_networks",
            ) from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            raise _failed(
                str(address), f"cannot be reached ({type(error).__name__})", "Check the address"
            ) from None

    async def _received(self, address: WebAddress, response: httpcore.Response) -> _Response:
        headers = {
            name.lower().decode("latin-1"): value.decode("latin-1")
            for name, value in response.headers
        }
        if response.status in _REDIRECTS and "location" in headers:
            return _Response(location=headers["location"])
        if response.status != 200:
            raise _failed(str(address), f"answers with {response.status}", "Check the address")
        content = await self._content(address, response, headers)
        return _Response(None, headers.get("content-type", ""), content)

    async def _content(
        self, address: WebAddress, response: httpcore.Response, headers: Mapping[str, str]
    ) -> bytes:
        limit = self._policy.max_bytes
        name, allowed = shown(str(address)), f"max_bytes ({limit})"
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            raise too_large(name, f"{declared} bytes", allowed)
        unpacker = Unpacker(headers.get("content-encoding", ""), name)
        content = bytearray()
        async for packed in response.aiter_stream():
            for piece in unpacker.unpack(packed, limit + 1):
                content += piece
                if len(content) > limit:
                    raise too_large(name, f"over {limit} bytes", allowed)
        unpacker.finish()
        return bytes(content)

    def _read(self, address: WebAddress, response: _Response) -> Document:
        path, place = unquote(address.target.partition("?")[0]), shown(str(address))
        written_in = format_of_response(response.content_type, path, place)
        content = response.content
        if written_in is not Format.PDF:
            content = recoded(content, response.content_type, place)
        name = path.rstrip("/").rpartition("/")[2].strip() or address.host
        document = read_bytes(content, name, self._limits, written_in=written_in)
        return document.model_copy(update={"url": str(address)})


def _joined(address: WebAddress, location: str) -> str:
    try:
        return urljoin(str(address), location)
    except ValueError:  # what a server writes there may be no address
        raise _failed(str(address), "redirects to what is no address", "Correct it") from None


def _failed(url: str, what: str, remedy: str) -> DocumentError:
    return DocumentError(
        f"url {shown(url)!r} {what}. {remedy}, or leave the document out.", param="documents"
    )
