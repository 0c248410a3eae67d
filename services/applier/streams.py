"""TCP and UDP services on this node: what its listeners are, which of them can be had, and the files that njs reads endpoints from.

The version says which ports there are; on which addresses, and with which offset, is the node's own. A port that somebody else has would
make nginx refuse the whole reload: it is left out, and everything else goes on.
"""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec import Struct

from services.shared.checks.addresses import forbidden
from services.shared.contracts.tables import ResolvedRow, StreamRow
from services.shared.files import write_atomically
from services.shared.nginxtext.strict import Directive

NJS: Final = Path(__file__).with_name("njs")
ROW_PREFIX: Final = "l/"

_SERVER: Final = re.compile(r"^server \{\n  listen (\d{1,5})( udp)?( proxy_protocol)?;\n(.*?)^\}\n", re.ASCII | re.MULTILINE | re.DOTALL)
"""As the compiler writes them."""


class Listener(Struct, frozen=True, order=True):
    """A port of a version; the node may add an offset."""

    protocol: Literal["tcp", "udp"]
    port: int

    def __str__(self) -> str:
        return f"{self.protocol} port {self.port}"


# --- the version's text


def check_text(text: str, directives: Iterable[Directive]) -> str:
    """What is wrong with a `stream` policy, beyond which directives it has; empty: nothing. `directives`: the same text, parsed."""
    servers = [d for d in directives if d.name == "server"]
    blocks = list(_SERVER.finditer(text))
    if len(blocks) != len(servers):
        return "a listener is not written as the compiler writes them"
    for block, server in zip(blocks, servers, strict=True):
        name = f"{'udp' if block[2] else 'tcp'}_{block[1]}"
        inner = server.block or ()
        if not 1 <= int(block[1]) <= 65535:
            return f"port {block[1]} does not exist"
        if [d.args for d in inner if d.name == "set"] != [("$sluice_stream", name)]:
            return f"the listener of {name} takes other endpoints than its own"
        if [d.args for d in inner if d.name == "proxy_pass"] != [("$sluice_endpoint",)]:
            return f"the listener of {name} leads elsewhere"
        if sum(d.name == "listen" for d in inner) != 1:
            return f"the listener of {name} has others beside it"
    return ""


def listeners(text: str) -> tuple[Listener, ...]:
    """Of a `stream` policy."""
    return tuple(Listener("udp" if found[2] else "tcp", int(found[1])) for found in _SERVER.finditer(text))


def node_text(text: str, offset: int, addresses: Collection[str], without: Collection[Listener]) -> str:
    """The same listeners on this node's addresses (none: all, IPv4 and IPv6)."""

    def written(found: re.Match[str]) -> str:
        here = Listener("udp" if found[2] else "tcp", int(found[1]))
        if here in without:
            return ""
        lines = []
        for host in addresses or ("", "[::]"):
            where = f"{host}:" if host else ""
            backlog = "" if here.protocol == "udp" else " backlog=4096"
            only = " ipv6only=on" if host == "[::]" else ""
            lines.append(f"  listen {where}{here.port + offset}{found[2] or ''} reuseport{backlog}{only}{found[3] or ''};\n")
        return f"server {{\n{''.join(lines)}{found[4]}}}\n"

    return _SERVER.sub(written, text)


# --- what can be had


def unavailable(listener: Listener, offset: int, address: str, *, ours: bool) -> str:
    """Why nginx could not listen there; empty: it could. `ours`: this node's nginx, or what a killed one left, has it or had it last."""
    port = listener.port + offset
    if port > 65535:
        return f"{listener} + {offset} does not exist"
    kind = socket.SOCK_DGRAM if listener.protocol == "udp" else socket.SOCK_STREAM
    for family, host in _places(address):
        try:
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, listener.protocol == "tcp")
                # sockets of one user may share a port: another node's on this machine must not be shared by accident
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, ours)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return f"{listener.protocol} port {port} is taken by another process"
            if error.errno == errno.EACCES:
                return f"{listener.protocol} port {port} needs root"
    return ""


def _places(address: str) -> Iterator[tuple[socket.AddressFamily, str]]:
    if address:
        yield socket.AF_INET6 if ":" in address else socket.AF_INET, address.strip("[]")
    else:
        yield from ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::"))  # noqa: S104 - bound for a moment, never listening


# --- endpoints


class _File(Struct, frozen=True):
    """What njs reads."""

    name: str
    endpoints: tuple[str, ...]
    """As proxy_pass takes them."""


def file_name(key: str) -> str:
    """`l/tcp/9000` -> `tcp_9000.json`. Raises ValueError: it is no such key."""
    found = re.fullmatch(r"l/(tcp|udp)/([1-9][0-9]{0,4})", key, re.ASCII)
    if found is None:
        raise ValueError(f"{key!r} is no port")
    return f"{found[1]}_{found[2]}.json"


def file_of(row: StreamRow, answers: Mapping[str, bytes]) -> bytes:
    """The file of a row. `answers`: this node's `n/` rows."""
    found: Iterable[tuple[str, int]] = row.endpoints
    if row.external:
        answer = answers.get(f"n/{row.external}")
        addresses = msgspec.json.decode(answer, type=ResolvedRow).addresses if answer else ()
        found = [(address, row.external_port) for address in addresses]
    usable = [(a, p) for a, p in found if row.any_address or not forbidden(a)]
    return msgspec.json.encode(_File(row.name, tuple(f"[{a}]:{p}" if ":" in a else f"{a}:{p}" for a, p in usable)))


class StreamFiles:
    """The folder `streams` of one node's directory: a file a port, which workers read for each connection."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written: dict[str, bytes] = {}

    def write(self, rows: Mapping[str, bytes], answers: Mapping[str, bytes]) -> None:
        """Those of `rows` that are ports. Raises OSError."""
        for key, row in rows.items():
            if not key.startswith(ROW_PREFIX):
                continue
            name, data = file_name(key), file_of(msgspec.json.decode(row, type=StreamRow), answers)
            if self._written.get(name) != data:
                self._folder.mkdir(exist_ok=True)
                write_atomically(self._folder / name, data)
                self._written[name] = data

    def forget(self, keys: Iterable[str]) -> None:
        """Those of `keys` that are ports: connections are closed."""
        for name in (file_name(k) for k in keys if k.startswith(ROW_PREFIX)):
            self._written.pop(name, None)
            (self._folder / name).unlink(missing_ok=True)

    def keep(self, rows: Iterable[str]) -> None:
        """Remove all others."""
        names = {file_name(k) for k in rows if k.startswith(ROW_PREFIX)}
        for path in self._folder.glob("*.json"):
            if path.name not in names:
                self._written.pop(path.name, None)
                path.unlink(missing_ok=True)
