"""One host: all Ingresses that mention it, merged into locations, with nginx's precedence worked out (behaviours §1.3-1.7, §3.1, §7)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from services.compiler.certificates import Certificate
from services.compiler.ingresses import CATCH_ALL, BackendRef, PathRule, ReadIngress
from services.compiler.locations import Location, Surroundings, make_location, unclaimed_location
from services.shared.contracts.problem import Problem, Reason
from services.shared.contracts.tables import HostRow
from services.shared.nginxtext.arguments import TextError
from services.shared.nginxtext.regex import LIMIT, check_regex

CertificateOf = Callable[[str, str], Certificate | None]
"""(namespace, Secret name) -> its usable certificate."""

HostProblems = tuple[tuple[str, Problem], ...]
"""(namespace/name of the Ingress, what is wrong with it at one host)."""


class CanaryEdge(Struct, frozen=True, kw_only=True):
    """A canary's backend stands beside a primary's."""

    primary: BackendRef
    canary: BackendRef
    ingress: ReadIngress


class LoweredHost(Struct, frozen=True, kw_only=True):
    """One host, lowered: everything its rows and its verdicts are made from."""

    host: str
    locations: tuple[Location, ...]
    row: HostRow
    certificate: Certificate | None
    edges: tuple[CanaryEdge, ...]
    aliases: tuple[str, ...]
    alias_holder: str
    """namespace/name of the Ingress that asks for the aliases."""
    owner: ReadIngress | None
    """The oldest Ingress of the host, which orders claims on aliases."""
    problems: HostProblems


def lower_host(host: str, ingresses: list[ReadIngress], around: Surroundings, certificate_of: CertificateOf) -> LoweredHost | None:
    """`ingresses`: accepted ones that mention the host, in order, canaries too. None: only canaries do, so there is no such host."""
    primary = [i for i in ingresses if not i.canary]
    if not primary and host != CATCH_ALL:
        return None
    problems: list[tuple[str, Problem]] = []
    locations = _locations(host, primary, around, problems)
    problems.extend(_same_but_for_a_slash(host, locations))
    edges = tuple(_edges(host, [i for i in ingresses if i.canary], locations, problems))
    has_tls, certificate = _certificate(host, primary, certificate_of)
    for location in locations:
        if location.ingress is not None:
            problems.extend((location.ingress.ref, p) for p in location.problems)
    holder = next((i for i in primary if i.settings.server_alias), None)
    app_root = next((lo.ingress.settings.app_root for lo in locations if lo.ingress and lo.ingress.settings.app_root), "")
    return LoweredHost(
        host=host,
        locations=tuple(locations),
        row=_row(locations, app_root, has_tls),
        certificate=certificate,
        edges=edges,
        aliases=holder.settings.server_alias if holder and host != CATCH_ALL else (),
        alias_holder=holder.ref if holder else "",
        owner=primary[0] if primary else None,
        problems=tuple(problems),
    )


def _rules(host: str, ingress: ReadIngress) -> Iterable[PathRule]:
    return (p for p in ingress.paths if p.host == host and p.backend is not None)


def _default_location(host: str, primary: list[ReadIngress], around: Surroundings) -> Location:
    if host != CATCH_ALL:
        first = primary[0]
        return make_location(first, "/", "Prefix", first.default_backend, "spec.defaultBackend", around, automatic=True)
    for ingress in primary:
        if ingress.default_backend is not None and not ingress.has_rules:
            plain = replace(ingress, settings=replace(ingress.settings, **_NOT_OF_THE_CATCH_ALL))
            return make_location(plain, "/", "Prefix", ingress.default_backend, "spec.defaultBackend", around)
    return unclaimed_location(around)


_NOT_OF_THE_CATCH_ALL: Final[dict[str, Any]] = {
    "rewrite_target": "",
    "use_regex": False,
    "app_root": "",
    "ssl_redirect": False,
    "force_ssl_redirect": False,
    "permanent_redirect": "",
    "temporal_redirect": "",
}
"""The redirect and rewrite families: who takes over the default location has them for nothing (behaviours §1.3)."""


def _locations(host: str, primary: list[ReadIngress], around: Surroundings, problems: list[tuple[str, Problem]]) -> list[Location]:
    default = _default_location(host, primary, around)
    found: dict[tuple[str, str], Location] = {(default.path, default.path_type): default}
    for ingress in primary:
        for rule in _rules(host, ingress):
            place = (rule.path, rule.path_type)
            present = found.get(place)
            if present is not None and not present.automatic:
                problems.append((ingress.ref, _conflict(host, rule, ingress, present)))
                continue
            found[place] = make_location(ingress, rule.path, rule.path_type, rule.backend, rule.field, around)
    return list(found.values())


def _conflict(host: str, rule: PathRule, ingress: ReadIngress, present: Location) -> Problem:
    owner = present.ingress
    mine = owner is not None and owner.ref == ingress.ref
    who = f"this Ingress ({present.field})" if mine or owner is None else f"Ingress {owner.ref}, which is older"
    return Problem(
        reason=Reason.PATH_CONFLICT,
        field=f"{rule.field}.path",
        message=f"host {host}, path {rule.path} ({rule.path_type}) already belongs to {who}; this one is not in effect",
        severity="warning",
    )


def _same_but_for_a_slash(host: str, locations: list[Location]) -> Iterable[tuple[str, Problem]]:
    """Prefix `/foo` and `/foo/` are one location of nginx: `_literals` gives the later one nothing but its exact text."""
    if any(lo.regex for lo in locations):
        return
    exact = {lo.path for lo in locations if lo.path_type == "Exact"}
    first: dict[str, Location] = {}
    for location in (lo for lo in locations if lo.path_type == "Prefix"):
        owner = first.setdefault(location.path.rstrip("/"), location)
        if owner is location or location.ingress is None or owner.ingress is None:
            continue
        mine = owner.ingress.ref == location.ingress.ref
        who = f"this Ingress ({owner.field})" if mine else f"Ingress {owner.ingress.ref}, which is older"
        left = "nothing" if location.path.endswith("/") or location.path in exact else f"{location.path} itself"
        message = f"host {host}, path {location.path} ({location.path_type}) is one with {owner.path} of {who}; this one serves {left}"
        yield (
            location.ingress.ref,
            Problem(reason=Reason.PATH_CONFLICT, field=f"{location.field}.path", message=message, severity="warning"),
        )


def _edges(host: str, canaries: list[ReadIngress], locations: list[Location], problems: list[tuple[str, Problem]]) -> Iterable[CanaryEdge]:
    by_place = {(lo.path, lo.path_type): lo for lo in locations if lo.ingress is not None}
    for ingress in canaries:
        wanted: list[tuple[str, str, BackendRef | None, str]] = [(r.path, r.path_type, r.backend, r.field) for r in _rules(host, ingress)]
        if host == CATCH_ALL and ingress.default_backend is not None:
            wanted += [(lo.path, lo.path_type, ingress.default_backend, "spec.defaultBackend") for lo in by_place.values()]
        for path, path_type, backend, field in wanted:
            location = by_place.get((path, path_type))
            primary = _primary_of(location)
            if primary is None or backend is None or primary == backend:
                problems.append((ingress.ref, _unmatched(host, path, path_type, field)))
            else:
                yield CanaryEdge(primary=primary, canary=backend, ingress=ingress)


def homeless(host: str, canaries: list[ReadIngress]) -> HostProblems:
    """Of canaries at a host that no other Ingress has."""
    return tuple((i.ref, _unmatched(host, rule.path, rule.path_type, rule.field)) for i in canaries for rule in _rules(host, i))


def _primary_of(location: Location | None) -> BackendRef | None:
    if location is None or location.ingress is None:
        return None
    return next((b for b in location.backends if b.key == location.route.backend), None)


def _unmatched(host: str, path: str, path_type: str, field: str) -> Problem:
    return Problem(
        reason=Reason.CANARY_UNMATCHED,
        field=field,
        message=f"no other Ingress has host {host}, path {path}, pathType {path_type} and another backend: this canary serves nothing",
        severity="warning",
    )


def _certificate(host: str, primary: list[ReadIngress], certificate_of: CertificateOf) -> tuple[bool, Certificate | None]:
    """Whether the host has a certificate entry, and its own certificate if that is usable."""
    owner = next((i for i in primary if i.tls), None)
    if owner is None or host == CATCH_ALL:
        return False, None
    for hosts, secret in owner.tls:
        if host in (h.lower() for h in hosts):
            found = certificate_of(owner.namespace, secret) if secret else None
            return True, found if found is not None and found.valid_for(host) else None
    for _, secret in owner.tls:
        found = certificate_of(owner.namespace, secret) if secret else None
        if found is not None and found.valid_for(host):
            return True, found
    return True, None


# --- the row


def _row(locations: list[Location], app_root: str, has_tls: bool) -> HostRow:
    routes = tuple(lo.route for lo in locations)
    if any(lo.regex for lo in locations):
        return HostRow(routes=routes, regex=_regexes(locations), app_root=app_root, tls=has_tls)
    exact, prefix, slash = _literals(locations)
    return HostRow(routes=routes, exact=exact, prefix=prefix, slash=slash, app_root=app_root, tls=has_tls)


def _literals(locations: list[Location]) -> tuple[dict[str, int], dict[str, int], tuple[str, ...]]:
    """Exact and prefix locations as nginx would have them: Prefix `/foo` is exact `/foo` and prefix `/foo/`; the first definition wins."""
    exact = {lo.path: n for n, lo in enumerate(locations) if lo.path_type == "Exact"}
    prefix: dict[str, int] = {}
    slash: list[str] = []
    for n, lo in enumerate(locations):
        if lo.path_type == "Exact":
            continue
        bare = lo.path.rstrip("/")
        prefix.setdefault(bare + "/", n)
        if not lo.path.endswith("/"):
            exact.setdefault(lo.path, n)
        elif bare:
            slash.append(bare)
    return exact, prefix, tuple(sorted(s for s in slash if s not in exact))


def _regexes(locations: list[Location]) -> tuple[tuple[str, int], ...]:
    """All locations of a regex host, longest path first, then reverse lexicographic; Prefix `/foo` is `^/foo/` and `^/foo`."""
    order = sorted(enumerate(locations), key=lambda item: item[1].path, reverse=True)
    order.sort(key=lambda item: -len(item[1].path))
    out: list[tuple[str, int]] = []
    for n, lo in order:
        pattern = _pattern(lo)
        if lo.path_type == "Prefix" and not lo.regex and not pattern.endswith("/"):
            out.append((f"{LIMIT}^{pattern}/", n))
        out.append((f"{LIMIT}^{pattern}", n))
    return tuple(out)


def _pattern(location: Location) -> str:
    """Path text as a regular expression; a literal path that PCRE would refuse is quoted, so that it disturbs nobody else."""
    try:
        check_regex(location.path)
    except TextError:
        return re.escape(location.path)
    return location.path
