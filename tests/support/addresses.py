"""An address of this machine that an API server accepts in an EndpointSlice: neither loopback nor link-local."""

from __future__ import annotations

import functools
import ipaddress
import subprocess

import psutil

DUMMY = "198.18.77.1"


@functools.cache
def backend_address() -> str:
    """One that the machine has, else one on a dummy interface made for it."""
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            text = address.address.partition("%")[0]
            try:
                found = ipaddress.ip_address(text)
            except ValueError:
                continue
            if found.version == 4 and not (found.is_loopback or found.is_link_local):
                return text
    for command in (
        ["ip", "link", "add", "sluice-test", "type", "dummy"],
        ["ip", "addr", "add", f"{DUMMY}/32", "dev", "sluice-test"],
        ["ip", "link", "set", "sluice-test", "up"],
    ):
        subprocess.run(command, check=True)
    return DUMMY
