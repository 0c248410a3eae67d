"""TCP and UDP services: the two ConfigMaps that name them in, listeners (policy text) and rows (endpoints) out.

An entry is `PORT: namespace/service:port[:PROXY[:PROXY]]` (behaviours §16). A bad one is a problem of its ConfigMap and of nothing else. A
Service that is missing, or has no endpoint, keeps its listener: what is named may come, and no reload is due then.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final, Literal

from services.compiler.backends import endpoints, external_of
from services.compiler.graph import Place
from services.compiler.ir import Protocol, Stream
from services.compiler.world import World
from services.shared.contracts.objects import ConfigMap, Key, Service, ServicePort
from services.shared.contracts.problem import Problem, Reason, printable
from services.shared.contracts.tables import StreamRow
from services.shared.flags import Flags

EXAMPLE: Final = "default/postgres:5432"
EXAMPLE_PORT: Final = "9000"
_NAME = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_TARGET: Final = re.compile(
    rf"(?P<namespace>{_NAME})/(?P<service>{_NAME}):(?P<port>[0-9]{{1,5}}|{_NAME})(?P<proxy>:.*)?", re.ASCII | re.DOTALL
)
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}", re.ASCII)


def reserved_ports(flags: Flags, nodes: int = 1) -> dict[int, str]:
    """TCP ports that nodes listen on themselves -> what for. `nodes`: how many share a machine, node i on each port + i."""
    uses = ((flags.http_port, "http"), (flags.https_port, "https"), (flags.healthz_port, "health"))
    return {port + i: use for i in range(nodes) for port, use in uses}


def parse_streams(
    data: Mapping[str, str], protocol: Protocol, reserved: Mapping[int, str], nodes: int = 1
) -> tuple[tuple[Stream, ...], list[Problem]]:
    """The entries of one ConfigMap's `data`, by port, and what is wrong with the others. `reserved`: as `reserved_ports`; of TCP only.

    `nodes` that share a machine listen on each port + i: ports that are nearer to each other than that are refused, but for the lowest.
    """
    found: list[Stream] = []
    problems: list[Problem] = []
    free_from = 0
    for port in sorted(data, key=lambda text: (len(text), text)):
        field, value = f"data[{printable(port)}]", data[port].strip()
        refused = _refused_port(port, reserved if protocol == "tcp" else {}, nodes, free_from)
        target = _TARGET.fullmatch(value)
        if refused:
            problems.append(_problem(field, refused, EXAMPLE_PORT))
        elif target is None:
            words = f'"{printable(value)}" is not namespace/service:port with a port\'s number or name'
            problems.append(_problem(field, words + (", and :PROXY where wanted" if protocol == "tcp" else ""), EXAMPLE))
        else:
            decode, encode, words = _proxy(target["proxy"] or "", protocol)
            found.append(Stream(protocol, int(port), target["namespace"], target["service"], target["port"], decode, encode))
            free_from = int(port) + nodes
            problems += [_problem(field, words, f"{EXAMPLE}:PROXY" if protocol == "tcp" else EXAMPLE, "warning")] if words else []
    return tuple(found), problems


def _refused_port(text: str, reserved: Mapping[int, str], nodes: int, free_from: int) -> str:
    """Why nothing can listen there; empty: it can."""
    if not _PORT.fullmatch(text) or int(text) + nodes - 1 > 65535:
        return f'"{printable(text)}" is not a port: the key is a number from 1 to {65536 - nodes}'
    taken = next((reserved[p] for p in range(int(text), int(text) + nodes) if p in reserved), "")
    if taken:
        return f"port {text} is the nodes' own, for {taken}; choose another"
    if int(text) < free_from:
        return f"{nodes} nodes share this machine, each on the ports of the one before + 1: use ports {nodes} apart"
    return ""


def _proxy(fields: str, protocol: Protocol) -> tuple[bool, bool, str]:
    """(decode, encode, what is ignored) of `:PROXY:PROXY` or a part of it. ingress-nginx takes the second of exactly two."""
    words = fields.split(":")[1:]
    if protocol == "udp":
        return False, False, "the PROXY protocol is not for UDP, and ignored" if words else ""
    meant = [w.upper() == "PROXY" for w in words]
    strange = [w for w in words[:2] if w and w.upper() != "PROXY"]
    ignored = f'"{printable(fields)}" is read only as far as it says :PROXY or :PROXY:PROXY' if strange or len(words) > 2 else ""
    return meant[:1] == [True], len(words) == 2 and meant[1], ignored


def _problem(field: str, message: str, example: str = "", severity: Literal["error", "warning"] = "error") -> Problem:
    return Problem(reason=Reason.INVALID_CONFIG_KEY, field=field, message=message, example=example, severity=severity)


def lower_stream(stream: Stream, world: World, *, any_address: bool) -> tuple[StreamRow, Problem | None]:
    """The row of one entry, and why nobody answers there, if so: a warning, for the listener stands."""
    field = f"data[{stream.port}]"
    row = StreamRow(name=stream.name, any_address=any_address)
    service = world.get(Service, stream.namespace, stream.service)
    if service is None:
        return row, _missing(Reason.SERVICE_NOT_FOUND, field, f"there is no Service {stream.namespace}/{stream.service}")
    port = _port_of(service, stream)
    if service.spec.type == "ExternalName":
        external, external_port = external_of(service, port, stream.service_port) or ("", 0)
        row = StreamRow(name=stream.name, external=external, external_port=external_port, any_address=any_address)
        return row, None if external else _missing(Reason.NO_ENDPOINTS, field, "its Service's external name or port cannot be used")
    if port is None:
        words = f"Service {stream.namespace}/{stream.service} has no {stream.protocol.upper()} port {stream.service_port} (number or name)"
        return row, _missing(Reason.PORT_NOT_FOUND, field, words)
    found = endpoints(world, service, port, stream.protocol.upper())
    return StreamRow(name=stream.name, endpoints=found, any_address=any_address), None


def _port_of(service: Service, stream: Stream) -> ServicePort | None:
    """By number or name; a targetPort is not meant."""
    ours = (p for p in service.spec.ports if p.protocol == stream.protocol.upper())
    return next((p for p in ours if stream.service_port in (str(p.port), p.name)), None)


def _missing(reason: Reason, field: str, message: str) -> Problem:
    return Problem(reason=reason, field=field, message=f"{message}; connections are closed", severity="warning")


class Streams:
    """The entries of both ConfigMaps now, and which of their rows may be another. Both flags may name one ConfigMap."""

    def __init__(self, flags: Flags, *, any_address: bool = True, nodes: int = 1) -> None:
        self._any_address = any_address
        self._nodes = nodes
        self._reserved = reserved_ports(flags, nodes)
        named: tuple[tuple[Protocol, str], ...] = (("tcp", flags.tcp_services_configmap), ("udp", flags.udp_services_configmap))
        self._sources: dict[Protocol, Key] = {p: Key("ConfigMap", *reference.split("/", 1)) for p, reference in named if reference}
        self._entries: dict[Protocol, tuple[Stream, ...]] = {}
        self._refused: dict[Protocol, list[Problem]] = {}
        self._missing: dict[str, Problem] = {}
        """Row key -> why nobody answers there."""
        self._dirty: set[str] = set()

    @property
    def listeners(self) -> tuple[Stream, ...]:
        """TCP first, by port."""
        return tuple(s for protocol in sorted(self._entries) for s in self._entries[protocol])

    def _of(self, key: Key) -> list[Protocol]:
        """What a ConfigMap is for."""
        found: list[Protocol] = [protocol for protocol, source in self._sources.items() if source == key]
        return found

    def read(self, key: Key, world: World) -> bool:
        """Take one ConfigMap as it is now; whether it is one of ours."""
        ours = self._of(key)
        for protocol in ours:
            found = world.get(ConfigMap, key.namespace, key.name)
            before = self._entries.get(protocol, ())
            after, self._refused[protocol] = parse_streams(found.data if found else {}, protocol, self._reserved, self._nodes)
            self._entries[protocol] = after
            self._dirty |= {s.key for s in set(before) ^ set(after)}
        return bool(ours)

    def service_changed(self, service: Place) -> None:
        """A Service or its endpoints."""
        self._dirty |= {s.key for s in self.listeners if s.place == service}

    def lower(self, world: World) -> Iterator[tuple[str, StreamRow | None]]:
        """Rows that may be another; None: gone."""
        dirty, self._dirty = self._dirty, set()
        entries = {s.key: s for s in self.listeners} if dirty else {}
        for key in sorted(dirty):
            self._missing.pop(key, None)
            if key not in entries:
                yield key, None
                continue
            row, problem = lower_stream(entries[key], world, any_address=self._any_address)
            if problem is not None:
                self._missing[key] = problem
            yield key, row

    @property
    def sources(self) -> frozenset[Key]:
        """The ConfigMaps."""
        return frozenset(self._sources.values())

    def problems(self, key: Key) -> list[Problem]:
        """What is wrong with one of the ConfigMaps now."""
        out: list[Problem] = []
        for protocol in self._of(key):
            out += self._refused.get(protocol, [])
            out += [self._missing[s.key] for s in self._entries.get(protocol, ()) if s.key in self._missing]
        return out
