"""One upstream: a Service's port, its endpoints, and how the Ingresses that refer to it want them used (behaviours §4-§7)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from msgspec import Struct

from services.compiler.hosts import CanaryEdge
from services.compiler.ingresses import BackendRef, ReadIngress
from services.compiler.locations import FIRST_PORT
from services.compiler.settings import GlobalSettings
from services.compiler.world import World
from services.shared.contracts.objects import EndpointSlice, Service, ServicePort
from services.shared.contracts.problem import Problem, Reason, printable
from services.shared.contracts.tables import Affinity, BackendRow, Canary
from services.shared.nginxtext.regex import bounded

_DNS = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*\.?", re.ASCII | re.IGNORECASE)


class Users(Struct, frozen=True, kw_only=True):
    """Who uses a backend, in order (oldest Ingress first)."""

    ingresses: list[ReadIngress]
    edges: list[CanaryEdge]
    """Where it is the primary."""
    primary: Affinity | None = None
    """Where it is a canary: the affinity of its primary."""


def service_port(service: Service, port: str) -> ServicePort | None:
    """The Service's port that a reference means: its number, targetPort or name, as text; the first hit wins."""
    ports = service.spec.ports
    if port == FIRST_PORT:
        return next((p for p in ports if p.protocol == "TCP"), None)
    return next((p for p in ports if port in (str(p.port), str(p.target_port), p.name)), None)


def endpoints(world: World, service: Service, port: ServicePort, protocol: str = "TCP") -> tuple[tuple[str, int], ...]:
    """Ready addresses of all slices with ports of this protocol, once each, sorted."""
    owner = (service.metadata.namespace, service.metadata.name)
    found: set[tuple[str, int]] = set()
    for piece in world.slices.get(owner, {}).values():
        numbers = _slice_ports(piece, port, protocol)
        for endpoint in piece.endpoints or ():
            if endpoint.conditions.ready is not False:
                found.update((address, n) for address in endpoint.addresses for n in numbers if _is_address(address))
    return tuple(sorted(found))


def _slice_ports(piece: EndpointSlice, port: ServicePort, protocol: str) -> list[int]:
    if not piece.ports:
        return [port.target_port] if isinstance(port.target_port, int) and port.target_port else []
    numbers = []
    for candidate in piece.ports:
        if (candidate.protocol or "TCP") != protocol or not candidate.port or not 1 <= candidate.port <= 65535:
            continue
        if not port.name or candidate.name == port.name or candidate.port == port.target_port:
            numbers.append(candidate.port)
    return numbers


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def external_of(service: Service, listed: ServicePort | None, port: str) -> tuple[str, int] | None:
    """The name and port of an ExternalName Service; None: refused or unusable. `listed`: its port that `port` means, where it has it."""
    name = service.spec.external_name.rstrip(".").lower()
    if not _DNS.fullmatch(name) or name == "localhost" or name.endswith(".localhost") or _is_address(name):
        return None
    if listed is not None:
        target = listed.target_port if isinstance(listed.target_port, int) and listed.target_port else listed.port
        return name, target
    return (name, int(port)) if port.isdigit() and 1 <= int(port) <= 65535 else None


def absent(ingress: ReadIngress, world: World) -> Iterator[Problem]:
    """What an Ingress sends to and is not there; once for each Service and port. Its requests get 503 meanwhile."""
    wanted = [(rule.backend, f"{rule.field}.backend") for rule in ingress.paths if rule.backend is not None]
    if ingress.default_backend is not None:
        wanted.append((ingress.default_backend, "spec.defaultBackend"))
    fields: dict[BackendRef, str] = {}
    for ref, field in wanted:
        fields.setdefault(ref, field)
    for ref, field in fields.items():
        name, service = f"{ref.namespace}/{ref.service}", world.get(Service, ref.namespace, ref.service)
        if service is None:
            message = f"there is no Service {name} yet: requests get 503 until there is"
            yield Problem(reason=Reason.SERVICE_NOT_FOUND, field=f"{field}.service.name", message=message, severity="warning")
        elif service.spec.type == "ExternalName":
            if external_of(service, service_port(service, ref.port), ref.port) is None:
                message = f"the ExternalName of Service {name}, or its port, cannot be used: requests get 503"
                yield Problem(reason=Reason.REFERENCE_FORBIDDEN, field=f"{field}.service", message=message, severity="warning")
        elif service_port(service, ref.port) is None:
            known = ", ".join(f"{p.port} ({printable(p.name)})" if p.name else str(p.port) for p in service.spec.ports) or "none"
            message = f"the Service {name} has no port {printable(ref.port) or 'of this number'}: requests get 503; its ports: {known}"
            yield Problem(reason=Reason.PORT_NOT_FOUND, field=f"{field}.service.port", message=message, severity="warning")


def _affinity(ref: BackendRef, users: list[ReadIngress]) -> Affinity | None:
    sticky = [i for i in users if i.settings.affinity == "cookie" and not i.canary]
    if not sticky:
        return None
    first, last = sticky[0].settings, sticky[-1].settings
    locations: dict[str, tuple[str, ...]] = {}
    for ingress in sticky:
        for rule in ingress.paths:
            if rule.backend == ref:
                present = locations.get(rule.host, ())
                if rule.path not in present:
                    locations[rule.host] = (*present, rule.path)
        if ingress.default_backend == ref:
            for host in ingress.hosts or ("_",):
                locations[host] = tuple(dict.fromkeys((*locations.get(host, ()), "/")))
    return Affinity(
        cookie=last.session_cookie_name,
        mode="persistent" if first.affinity_mode == "persistent" else "balanced",
        expires=last.session_cookie_expires,
        max_age=last.session_cookie_max_age,
        path=last.session_cookie_path,
        domain=last.session_cookie_domain,
        samesite=last.session_cookie_samesite,
        conditional_samesite_none=last.session_cookie_conditional_samesite_none,
        secure=last.session_cookie_secure,
        change_on_failure=last.session_cookie_change_on_failure,
        locations=locations,
    )


def affinity_of(ref: BackendRef, users: Users) -> Affinity | None:
    """Its own cookie affinity, or, for a canary with sticky behaviour, its primary's."""
    own = _affinity(ref, users.ingresses)
    if own is not None or users.primary is None:
        return own
    canary = next((i for i in users.ingresses if i.canary), None)
    return users.primary if canary is not None and canary.settings.affinity_canary_behavior == "sticky" else None


def _canary(edges: list[CanaryEdge]) -> Canary | None:
    if not edges:
        return None
    edge = edges[0]  # only the first alternative is ever used
    s = edge.ingress.settings
    total = max(100, s.canary_weight_total)
    return Canary(
        backend=edge.canary.key,
        header=s.canary_by_header,
        header_value=s.canary_by_header_value if s.canary_by_header else "",
        header_pattern=bounded(s.canary_by_header_pattern)
        if s.canary_by_header and s.canary_by_header_pattern and not s.canary_by_header_value
        else "",
        cookie=s.canary_by_cookie,
        weight=min(s.canary_weight, total),
        total=total,
    )


def lower_backend(ref: BackendRef, users: Users, world: World, settings: GlobalSettings, *, any_address: bool) -> BackendRow | None:
    """The row of one backend; None: there is no such Service, and requests for it get 503."""
    service = world.get(Service, ref.namespace, ref.service)
    if service is None:
        return None
    first = users.ingresses[0].settings if users.ingresses else None
    affinity = affinity_of(ref, users)
    external, external_port = "", 0
    addresses: tuple[tuple[str, int], ...] = ()
    if service.spec.type == "ExternalName":
        external, external_port = external_of(service, service_port(service, ref.port), ref.port) or ("", 0)
    else:
        port = service_port(service, ref.port)
        wants_service = first is not None and (settings.service_upstream if first.service_upstream is None else first.service_upstream)
        if port is not None and wants_service and service.spec.cluster_ip not in ("", "None") and _is_address(service.spec.cluster_ip):
            addresses = ((service.spec.cluster_ip, port.port),)
        elif port is not None:
            addresses = endpoints(world, service, port)
    balance = "round_robin"
    if affinity is not None:
        balance = f"sticky_{affinity.mode}"
    elif first is not None and first.upstream_hash_by:
        balance = "chashsubset" if first.upstream_hash_by_subset else "chash"
    elif first is not None:
        balance = first.load_balance or settings.load_balance
        if balance != "ewma":  # the words that need a key or a cookie, without one
            balance = "round_robin"
    return BackendRow(
        name=ref.name if ref.port != FIRST_PORT else f"custom-default-backend-{ref.namespace}-{ref.service}",
        endpoints=addresses,
        external=external,
        external_port=external_port,
        balance=balance,  # type: ignore[arg-type]  # one of the row's words
        hash_by=first.upstream_hash_by if first is not None and affinity is None else "",
        subset_size=(first.upstream_hash_by_subset_size or 3) if first is not None else 3,
        affinity=affinity,
        canary=_canary(users.edges),
        service=ref.service,
        any_address=any_address,
    )
