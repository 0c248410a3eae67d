"""Addresses that a cluster's routes and services must not lead to, whoever names them (security: a tenant is no way to the node)."""

from __future__ import annotations

import ipaddress
from typing import Final

_FORBIDDEN: Final = tuple(
    ipaddress.ip_network(n)
    for n in ("127.0.0.0/8", "169.254.0.0/16", "0.0.0.0/8", "224.0.0.0/4", "::1/128", "::/128", "fe80::/10", "ff00::/8")
)
"""As lua/sluice/cidr.lua has them."""


def forbidden(text: str) -> bool:
    """Whether it is loopback, link-local (metadata), unspecified or multicast, also as IPv4 in IPv6; or no address at all."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return True
    address = getattr(address, "ipv4_mapped", None) or address
    return any(address.version == n.version and address in n for n in _FORBIDDEN)
