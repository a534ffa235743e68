"""Which web servers may be asked: origins, and the addresses that their names have.

A name is resolved first, its addresses are checked, and the connection goes to an address that was
checked, so that a name that means another host a moment later is not followed (server-side
request forgery).  Called by ``services/sources/web.py``.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from admin_api.errors import SourceDenied, SourceUnavailable

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_PORTS = {"https": 443, "http": 80}
#: Addresses that stand for others, private ones too: NAT64 (RFC 6052, 8215), 6to4, Teredo.
_TRANSLATED: tuple[_Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "192.88.99.0/24")
)


@dataclass(frozen=True, slots=True)
class Target:
    """An allowed web address, taken apart: whom to ask, and what for."""

    origin: str
    scheme: str
    host: str
    port: int
    #: Path and query, as they go into the request.
    request: str

    @property
    def host_header(self) -> str:
        """The Host header; the scheme's own port is left out (signatures are over this)."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == _PORTS[self.scheme] else f"{name}:{self.port}"


class AllowList:
    """The origins that may be asked, and the private networks that they may lie in."""

    def __init__(self, origins: Sequence[str], private_networks: Sequence[str]) -> None:
        """Raises ValueError for origins and networks that are none."""
        self._origins = {origin(item) for item in origins}
        self._networks: list[_Network] = [ipaddress.ip_network(item) for item in private_networks]

    def check(self, uri: str) -> Target:
        """``uri`` taken apart; raises SourceDenied if it may not be asked for."""
        if any(ord(character) <= 0x20 or ord(character) == 0x7F for character in uri):
            raise SourceDenied("The source URI holds spaces or control characters.")
        try:
            split = urlsplit(uri)
            port = split.port or _PORTS.get(split.scheme, 0)
            found = origin(uri)
        except ValueError:
            raise SourceDenied("The source URI is not a web address.") from None
        if split.username is not None or split.password is not None or "\\" in uri:
            raise SourceDenied("A source URI may not hold credentials or backslashes.")
        if found not in self._origins:
            raise SourceDenied(f"The origin {found!r} is not one of the allowed origins.")
        path = quote(split.path or "/", safe="/%:@!$&'()*+,;=~-._")
        request = path + (f"?{split.query}" if split.query else "")
        return Target(found, split.scheme, split.hostname or "", port, request)

    def resolve(self, host: str, port: int) -> list[str]:
        """The addresses of ``host``, every one of them being allowed."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise SourceUnavailable(f"The host {host!r} cannot be resolved.") from error
        addresses = [ipaddress.ip_address(str(item[4][0]).partition("%")[0]) for item in found]
        for address in addresses:
            if not self._allowed(address):
                raise SourceDenied(f"The host {host!r} has an address that is not allowed.")
        return [str(address) for address in addresses]

    def _allowed(self, address: _Address) -> bool:
        inner = getattr(address, "ipv4_mapped", None) or address
        if any(inner in network for network in self._networks):
            return True
        if any(inner in network for network in _TRANSLATED):
            return False
        return inner.is_global and not inner.is_multicast


def origin(uri: str) -> str:
    """Scheme, host and port of a web address; raises ValueError if it is none."""
    split = urlsplit(uri)
    port = split.port or _PORTS.get(split.scheme, 0)
    return f"{split.scheme}://{(split.hostname or '').lower()}:{port}"
