"""Where a webhook may lead: to public addresses by https. A request that others can aim must not reach inside a network."""

import ipaddress
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from backend.settings import is_loopback

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class NotAllowed(Exception):
    """An address that alerts may not be sent to; the text is a sentence, without the secret parts of the address."""


def check_url(url: str, *, may_be_local: bool) -> None:
    """Raise NotAllowed when the address itself, before any name is looked up, is of a kind that is refused."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise NotAllowed("url is no address; write https://host/path.") from None
    if not host:
        raise NotAllowed("url names no host; write https://host/path.")
    try:
        host.encode("idna")
    except UnicodeError:
        raise NotAllowed("url names a host that no name server can know; write https://host/path.") from None
    if parts.username is not None or parts.password is not None:
        raise NotAllowed("url holds a user or a password; put the secret into its path, as webhooks do.")
    is_own = may_be_local and is_loopback(host)
    if parts.scheme != "https" and not (parts.scheme == "http" and is_own):
        raise NotAllowed(
            f"url begins with {parts.scheme[:20]!r}; only https is taken, and http to this machine on a local stack."
        )


def allowed_address(host: str, port: int, *, may_be_local: bool, networks: Sequence[str]) -> str:
    """The address to connect to: one that the host has now and that may be reached. Raises NotAllowed, OSError.

    The connection goes to this very address: a name that is looked up again could have another.
    """
    found = [
        ipaddress.ip_address(str(one[4][0]).partition("%")[0])
        for one in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    ]
    allowed = [one for one in found if is_allowed(one, may_be_local=may_be_local, networks=networks)]
    # One forbidden address among several is a sign of a name that is being rebound.
    if not found or len(allowed) != len(found):
        raise NotAllowed(
            f"{host[:100]} leads into a private or local network; add it to INCIPIT_WEBHOOK_NETWORKS if that is meant."
        )
    return str(allowed[0])


def is_allowed(address: Address, *, may_be_local: bool, networks: Sequence[str]) -> bool:
    """Whether an address is public, of this machine where that is allowed, or of a network that the settings name."""
    inner = _embedded(address)
    if any(inner in network for network in map(ipaddress.ip_network, networks) if network.version == inner.version):
        return True
    if may_be_local and inner.is_loopback:
        return True
    return inner.is_global and not inner.is_multicast


def _embedded(address: Address) -> Address:
    """The IPv4 address inside of an IPv6 one that only carries it."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo[1] if address.teredo else None
    return address.ipv4_mapped or address.sixtofour or teredo or address
