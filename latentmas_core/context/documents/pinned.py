"""Connections to addresses that were checked, and to no others."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import ip_address
from typing import Any

import httpcore

from latentmas_core.context.documents.addresses import Address, Network, address_class

# The addresses of a host, as text.
Resolver = Callable[[str, int], Awaitable[list[str]]]


class ForbiddenAddressError(Exception):
    """A name stands for an address that is not fetched from; says of which class it is."""

    def __init__(self, host: str, kind: str) -> None:
        super().__init__(host, kind)
        self.host = host
        self.kind = kind


async def system_resolver(host: str, port: int) -> list[str]:
    """As the operating system resolves names. Raises OSError for one that it does not know."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(sockaddr[0]) for *_, sockaddr in found]


class PinnedBackend(httpcore.AsyncNetworkBackend):
    """Resolves a name, checks all its addresses, and connects to one of these.

    TLS still checks the certificate against the name, and the server is still told it: both belong
    to the connection, not to this.
    """

    def __init__(
        self,
        resolver: Resolver,
        allowed_networks: tuple[Network, ...],
        network: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self._resolver = resolver
        self._allowed_networks = allowed_networks
        self._network = network or httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 (httpcore's own signature)
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Raises ForbiddenAddressError if any address of ``host`` is not public, httpcore's
        ConnectError if none answers."""
        try:
            addresses = [ip_address(found) for found in await self._resolver(host, port)]
        except (OSError, ValueError, UnicodeError) as error:
            raise httpcore.ConnectError(f"{host} is not known") from error
        for address in addresses:
            self._check(host, address)
        problem = httpcore.ConnectError(f"{host} has no address")
        for address in dict.fromkeys(addresses):
            try:
                return await self._network.connect_tcp(
                    str(address), port, timeout, local_address, socket_options
                )
            except httpcore.ConnectError as error:
                problem = error
        raise problem

    def _check(self, host: str, address: Address) -> None:
        kind = address_class(address)
        if kind and not any(address in network for network in self._allowed_networks):
            raise ForbiddenAddressError(host, kind)

    async def connect_unix_socket(self, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        raise AssertionError("documents come over TCP")

    async def sleep(self, seconds: float) -> None:
        await self._network.sleep(seconds)
