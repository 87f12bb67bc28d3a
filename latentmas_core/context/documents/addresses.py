"""Which IP addresses are no public hosts: a pure function of the address.

The registries are IANA's, "IPv4 / IPv6 Special-Purpose Address Space", and what ipaddress knows of
them; an IPv6 address that carries an IPv4 one is what that one is.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# Where clouds answer instances that ask for their credentials; Azure's and Alibaba's too.
_METADATA = frozenset(
    map(
        ip_address,
        ("169.254.169.254", "169.254.170.2", "168.63.129.16", "100.100.100.200", "fd00:ec2::254"),
    )
)
# Read in this order, since the wider blocks hold some of the others.
_IPV4_CLASSES = tuple(
    (name, ip_network(network))
    for name, network in (
        ("unspecified", "0.0.0.0/8"),
        ("loopback", "127.0.0.0/8"),
        ("link-local", "169.254.0.0/16"),
        ("private", "10.0.0.0/8"),
        ("private", "172.16.0.0/12"),
        ("private", "192.168.0.0/16"),
        ("shared", "100.64.0.0/10"),
        ("reserved", "192.0.0.0/24"),
        ("documentation", "192.0.2.0/24"),
        ("reserved", "192.88.99.0/24"),
        ("benchmarking", "198.18.0.0/15"),
        ("documentation", "198.51.100.0/24"),
        ("documentation", "203.0.113.0/24"),
        ("multicast", "224.0.0.0/4"),
        ("reserved", "240.0.0.0/4"),
    )
)
_IPV6_CLASSES = tuple(
    (name, ip_network(network))
    for name, network in (
        ("unspecified", "::/128"),
        ("loopback", "::1/128"),
        ("link-local", "fe80::/10"),
        ("private", "fec0::/10"),
        ("private", "fc00::/7"),
        ("multicast", "ff00::/8"),
        ("reserved", "64:ff9b:1::/48"),
        ("reserved", "2001::/23"),  # Teredo in it is read as what it carries
        ("documentation", "2001:db8::/32"),
        ("documentation", "3fff::/20"),
    )
)
_GLOBAL_IPV6 = IPv6Network("2000::/3")
_MAPPED = IPv6Network("::ffff:0:0/96")
_TRANSLATED = IPv6Network("::ffff:0:0:0/96")
_COMPATIBLE = IPv6Network("::/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_ISATAP = (0x00005EFE, 0x02005EFE)
_LOW_32_BITS = 0xFFFFFFFF


def address_class(address: Address) -> str | None:
    """What makes ``address`` one that is not fetched from, as one word; None for a public host."""
    if address in _METADATA:
        return "cloud metadata"
    if isinstance(address, IPv4Address):
        return _named(address, _IPV4_CLASSES)
    plain = IPv6Address(int(address))  # without the zone of fe80::1%eth0
    if plain in _METADATA:
        return "cloud metadata"
    if not plain.is_unspecified and not plain.is_loopback:
        for carried in _carried(plain):
            if found := address_class(carried):
                return found
        if any(plain in network for network in (_MAPPED, _TRANSLATED, _COMPATIBLE, _NAT64)):
            return None
        if plain.teredo:
            return None
    if found := _named(plain, _IPV6_CLASSES):
        return found
    return None if plain in _GLOBAL_IPV6 else "reserved"


def _named(address: Address, classes: tuple[tuple[str, Network], ...]) -> str | None:
    return next((name for name, network in classes if address in network), None)


def _carried(address: IPv6Address) -> tuple[IPv4Address, ...]:
    """The IPv4 addresses that packets to ``address`` may end at."""
    low = IPv4Address(int(address) & _LOW_32_BITS)
    if any(address in network for network in (_MAPPED, _TRANSLATED, _COMPATIBLE, _NAT64)):
        return (low,)
    if address.sixtofour:
        return (address.sixtofour,)
    if address.teredo:
        return address.teredo
    is_isatap = (int(address) >> 32) & _LOW_32_BITS in _ISATAP
    return (low,) if is_isatap else ()
