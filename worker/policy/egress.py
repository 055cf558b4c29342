"""The egress rule: which addresses and ports the fleet may dial. Pure.

The tables replace `ipaddress.is_global`, which changes between Python releases. It is true for multicast,
Azure's 168.63.129.16, `::127.0.0.1`, `64:ff9b::a9fe:a9fe` and other addresses of private networks. IPv4 is
allowed except for IPV4_TABLE. IPv6 is refused except for 2000::/3 without IPV6_TABLE.
"""

from collections.abc import Callable, Collection
from enum import StrEnum
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import NamedTuple, Self

from msgspec import Struct

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class Refusal(StrEnum):
    """The reason an address may not be dialled. A closed list; the values appear in errors."""

    BENCHMARKING = "benchmarking"
    BROADCAST = "broadcast"
    CGNAT = "cgnat"
    CLOUD_METADATA = "cloud_metadata"
    DENIED = "denied"
    DOCUMENTATION = "documentation"
    IPV4_COMPATIBLE = "ipv4_compatible"
    IPV4_TRANSLATED = "ipv4_translated"
    LINK_LOCAL = "link_local"
    LOOPBACK = "loopback"
    MULTICAST = "multicast"
    NAT64 = "nat64"
    NOT_AN_ADDRESS = "not_an_address"
    OWN_REDIS = "own_redis"
    PORT = "port"
    PRIVATE = "private"
    RESERVED = "reserved"
    SIX_TO_FOUR = "six_to_four"
    TEREDO = "teredo"
    UNSPECIFIED = "unspecified"
    ZONE_ID = "zone_id"


class Row(NamedTuple):
    """A network that is dialled only if it is allowed explicitly."""

    network: Network
    refusal: Refusal
    source: str
    """The document that defines the network."""


def _row(network: str, refusal: Refusal, source: str) -> Row:
    return Row(ip_network(network), refusal, source)


# The first row that contains an address counts, so narrower networks come before wider ones.

# The whole IANA IPv4 Special-Purpose Address Registry, including globally reachable entries (none of them
# serves files), and multicast, class E, and the metadata addresses of cloud providers.
IPV4_TABLE = (
    _row("100.100.100.200/32", Refusal.CLOUD_METADATA, "Alibaba Cloud instance metadata"),
    _row("168.63.129.16/32", Refusal.CLOUD_METADATA, "Azure wire server"),
    _row("169.254.169.254/32", Refusal.CLOUD_METADATA, "AWS, Azure, GCP instance metadata"),
    _row("169.254.170.2/32", Refusal.CLOUD_METADATA, "AWS ECS task credentials"),
    _row("192.0.0.192/32", Refusal.CLOUD_METADATA, "Oracle Cloud Classic instance metadata"),
    _row("0.0.0.0/8", Refusal.UNSPECIFIED, "RFC 791 §3.2"),
    _row("10.0.0.0/8", Refusal.PRIVATE, "RFC 1918"),
    _row("100.64.0.0/10", Refusal.CGNAT, "RFC 6598"),
    _row("127.0.0.0/8", Refusal.LOOPBACK, "RFC 1122 §3.2.1.3"),
    _row("169.254.0.0/16", Refusal.LINK_LOCAL, "RFC 3927"),
    _row("172.16.0.0/12", Refusal.PRIVATE, "RFC 1918"),
    _row("192.0.0.0/24", Refusal.RESERVED, "RFC 6890 §2.1, IETF protocol assignments"),
    _row("192.0.2.0/24", Refusal.DOCUMENTATION, "RFC 5737"),
    _row("192.31.196.0/24", Refusal.RESERVED, "RFC 7535, AS112"),
    _row("192.52.193.0/24", Refusal.RESERVED, "RFC 7450, AMT relays"),
    _row("192.88.99.0/24", Refusal.SIX_TO_FOUR, "RFC 7526, 6to4 relay anycast"),
    _row("192.168.0.0/16", Refusal.PRIVATE, "RFC 1918"),
    _row("192.175.48.0/24", Refusal.RESERVED, "RFC 7534, AS112"),
    _row("198.18.0.0/15", Refusal.BENCHMARKING, "RFC 2544"),
    _row("198.51.100.0/24", Refusal.DOCUMENTATION, "RFC 5737"),
    _row("203.0.113.0/24", Refusal.DOCUMENTATION, "RFC 5737"),
    _row("224.0.0.0/4", Refusal.MULTICAST, "RFC 5771"),
    _row("255.255.255.255/32", Refusal.BROADCAST, "RFC 919 §7"),
    _row("240.0.0.0/4", Refusal.RESERVED, "RFC 1112 §4"),
)

# IANA IPv6 Special-Purpose Address Registry and RFC 4291 §2.4. Addresses with an embedded IPv4 address are
# refused whatever that address is: a translator or tunnel decides where the connection goes.
IPV6_TABLE = (
    _row("fd00:ec2::254/128", Refusal.CLOUD_METADATA, "AWS instance metadata"),
    _row("fd20:ce::254/128", Refusal.CLOUD_METADATA, "GCP instance metadata"),
    _row("::/128", Refusal.UNSPECIFIED, "RFC 4291 §2.5.2"),
    _row("::1/128", Refusal.LOOPBACK, "RFC 4291 §2.5.3"),
    _row("::/96", Refusal.IPV4_COMPATIBLE, "RFC 4291 §2.5.5.1, deprecated"),
    _row("::ffff:0:0:0/96", Refusal.IPV4_TRANSLATED, "RFC 2765 §2.1"),
    _row("64:ff9b::/96", Refusal.NAT64, "RFC 6052 §2.1"),
    _row("64:ff9b:1::/48", Refusal.NAT64, "RFC 8215"),
    _row("2001::/32", Refusal.TEREDO, "RFC 4380"),
    _row("2001::/23", Refusal.RESERVED, "RFC 2928, IETF protocol assignments"),
    _row("2001:db8::/32", Refusal.DOCUMENTATION, "RFC 3849"),
    _row("2002::/16", Refusal.SIX_TO_FOUR, "RFC 3056"),
    _row("2620:4f:8000::/48", Refusal.RESERVED, "RFC 7534, AS112"),
    _row("3fff::/20", Refusal.DOCUMENTATION, "RFC 9637"),
    _row("fc00::/7", Refusal.PRIVATE, "RFC 4193"),
    _row("fe80::/10", Refusal.LINK_LOCAL, "RFC 4291 §2.5.6"),
    _row("fec0::/10", Refusal.PRIVATE, "RFC 3879, site-local, deprecated"),
    _row("ff00::/8", Refusal.MULTICAST, "RFC 4291 §2.7"),
)

NAMED_NETWORKS = {"private": Refusal.PRIVATE, "loopback": Refusal.LOOPBACK}
"""Names that stand for all rows of a kind in lists of networks."""

# The only block from which IANA allocates unicast addresses (RFC 4291 §2.4, IANA IPv6 Address Space).
IPV6_UNICAST = IPv6Network("2000::/3")
IPV4_MAPPED = IPv6Network("::ffff:0:0/96")


class Carrier(NamedTuple):
    """A network whose addresses embed an IPv4 address, the destination behind a translator or tunnel."""

    network: IPv6Network
    bits_below: int
    """The number of bits below the embedded IPv4 address."""


IPV4_CARRIERS = (
    Carrier(IPv6Network("::ffff:0:0:0/96"), 0),  # RFC 2765 §2.1
    Carrier(IPv6Network("64:ff9b::/96"), 0),  # RFC 6052 §2.1
    Carrier(IPv6Network("64:ff9b:1::/48"), 0),  # RFC 8215, with prefixes of 96 bits
    Carrier(IPv6Network("2002::/16"), 80),  # RFC 3056 §2
    Carrier(IPv6Network("::/96"), 0),  # RFC 4291 §2.5.5.1
)


WEB_PORTS = (80, 443)
"""The default of the policy key `ports`: the ports that may be dialled on public addresses."""

_REMEDIES = {
    Refusal.DENIED: "a network of --deny-net, which overrides --allow-net",
    Refusal.OWN_REDIS: "the Redis of the fleet, which nothing allows a fetch to reach",
    Refusal.PORT: "the policy key `ports` would allow it",
    Refusal.ZONE_ID: "an address with a zone ID is never dialled, since it depends on the machine",
}


def remedy(refusal: Refusal) -> str:
    """Return the setting that would allow the address, or why none does, as the end of an error message."""
    return _REMEDIES.get(refusal, "--allow-net would allow it")


class OwnRedis(Struct, frozen=True):
    """The addresses on which the Redis of the fleet listens."""

    port: int
    addresses: frozenset[Address] = frozenset()
    on_this_machine: bool = False
    """True if Redis runs on this machine, and may therefore listen on every address of the machine."""

    def is_at(self, address: Address, port: int, is_own_address: Callable[[Address], bool]) -> bool:
        """Return whether a connection to this address and port reaches Redis.

        is_own_address: returns whether an address belongs to this machine.
        """
        if port != self.port:
            return False
        if (inner := embedded_ipv4(address)) is not None and self.is_at(inner, port, is_own_address):
            return True
        # Linux connects to loopback if the unspecified address is dialled.
        is_local = address.is_loopback or address.is_unspecified
        return address in self.addresses or (self.on_this_machine and (is_local or is_own_address(address)))


class Egress(Struct, frozen=True):
    """The egress rule of a worker: the tables, and the networks that flags allow or deny."""

    allowed: tuple[Network, ...] = ()
    """Networks that may be dialled at every port, whatever the tables say."""
    denied: tuple[Network, ...] = ()
    """Networks that are never dialled. They override `allowed`."""
    allowed_kinds: frozenset[Refusal] = frozenset()
    """Kinds of rows that are allowed. Narrower rows of another kind still apply: `private` allows no cloud
    metadata."""

    @classmethod
    def parse(cls, allow: str, deny: str = "") -> Self:
        """Parse two comma-separated lists of networks: those to allow and those to deny.

        A network is a CIDR or a name of NAMED_NETWORKS; the lists may be empty. Raises ValueError, which
        names the entry and the remedy.
        """
        allowed, allowed_kinds = _networks("allowed", allow)
        denied, denied_kinds = _networks("denied", deny)
        of_denied_kinds = [row.network for row in IPV4_TABLE + IPV6_TABLE if row.refusal in denied_kinds]
        return cls(allowed, (*denied, *of_denied_kinds), frozenset(allowed_kinds))

    def refusal(
        self, address: str | Address, port: int, ports: Collection[int] = WEB_PORTS
    ) -> Refusal | None:
        """Return why the address and port may not be dialled, or None if they may. Never raises.

        ports: those allowed on public addresses. In an allowed network every port is allowed. An IPv4-mapped
        IPv6 address counts as its IPv4 address. A zone ID is refused even in an allowed network. In an
        allowed network of IPV4_CARRIERS, such as 64:ff9b::/96, the embedded IPv4 address must be public or
        allowed too.
        """
        parsed = effective_address(address)
        if parsed is None:
            return Refusal.NOT_AN_ADDRESS
        if isinstance(parsed, IPv6Address) and parsed.scope_id is not None:
            return Refusal.ZONE_ID
        inner = embedded_ipv4(parsed)
        if any(parsed in network or (inner and inner in network) for network in self.denied):
            return Refusal.DENIED
        if any(parsed in network for network in self.allowed):
            # (port,): every port is allowed.
            return None if inner is None else self.refusal(inner, port, (port,))
        table = IPV4_TABLE if isinstance(parsed, IPv4Address) else IPV6_TABLE
        for row in table:
            if parsed in row.network:
                return None if row.refusal in self.allowed_kinds else row.refusal
        if isinstance(parsed, IPv6Address) and parsed not in IPV6_UNICAST:
            return Refusal.RESERVED
        return None if port in ports else Refusal.PORT


def _networks(kind: str, text: str) -> tuple[tuple[Network, ...], list[Refusal]]:
    """Parse a list of networks and their names. Raises ValueError, also for one that can never match."""
    networks: list[Network] = []
    kinds: list[Refusal] = []
    for entry in filter(None, map(str.strip, text.split(","))):
        if (named := NAMED_NETWORKS.get(entry)) is not None:
            kinds.append(named)
            continue
        try:
            network = ip_network(entry)
        except ValueError as error:
            raise ValueError(
                f"{kind} network {entry!r}: {error}; write it like 10.1.0.0/16 or fd00:1::/32, or"
                f" {' or '.join(NAMED_NETWORKS)}"
            ) from None
        if isinstance(network, IPv6Network):
            if network.network_address.scope_id is not None:
                raise ValueError(
                    f"{kind} network {entry!r} has a zone ID, and such addresses are never dialled; remove it"
                )
            if network.subnet_of(IPV4_MAPPED):
                raise ValueError(f"{kind} network {entry!r} is IPv4-mapped; write the IPv4 network")
        networks.append(network)
    return tuple(networks), kinds


def effective_address(address: str | Address) -> Address | None:
    """Return the address that a connection to this one reaches; None for text that is not an address.

    It differs for IPv4-mapped addresses (RFC 4291 §2.5.5.2) only.
    """
    if isinstance(address, str):
        try:
            address = ip_address(address)
        except ValueError:
            return None
    if isinstance(address, IPv4Address) or address.scope_id is not None:
        return address
    return address.ipv4_mapped or address


def embedded_ipv4(address: Address) -> IPv4Address | None:
    """Return the IPv4 address embedded in an address of IPV4_CARRIERS; None for any other address."""
    number = int(address)
    if isinstance(address, IPv4Address) or number <= 1:  # :: and ::1 embed none
        return None
    for network, bits_below in IPV4_CARRIERS:
        if address in network:
            return IPv4Address(number >> bits_below & 0xFFFFFFFF)
    return None
