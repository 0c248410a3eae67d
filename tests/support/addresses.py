"""An address of this machine that an API server accepts in an EndpointSlice: neither loopback nor link-local."""

from __future__ import annotations

import functools
import ipaddress
import subprocess

import psutil

ADDRESS = "198.18.77.1"
"""Of the block set aside for tests of network devices (RFC 2544): no peer on a real network has it."""


@functools.cache
def backend_address() -> str:
    """One added to the loopback interface, so that no packet leaves this machine; without the right to add one, the machine's own."""
    if ADDRESS in _addresses():
        return ADDRESS
    added = subprocess.run(["ip", "addr", "add", f"{ADDRESS}/32", "dev", "lo"], capture_output=True, text=True, check=False)
    if added.returncode == 0 or ADDRESS in _addresses():  # two test runs may add it at once
        return ADDRESS
    for text in _addresses():
        found = ipaddress.ip_address(text)
        if found.version == 4 and not (found.is_loopback or found.is_link_local):
            return text
    raise RuntimeError(f"this machine has only loopback addresses, and none can be added: {added.stderr.strip()}")


def _addresses() -> list[str]:
    found = (address.address for addresses in psutil.net_if_addrs().values() for address in addresses)
    return [text for text in (a.partition("%")[0] for a in found) if _is_address(text)]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:  # a MAC address
        return False
    return True
