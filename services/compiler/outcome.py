"""What becomes of a request once its route is known: the steps of lua/sluice/router.lua in their order, for `explain`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Struct

from services.compiler import pcre
from services.compiler.matching import GAVE_UP, MATCH_SECONDS, Rows, host_row, wildcard_of
from services.compiler.request import Request
from services.shared.checks.addresses import forbidden
from services.shared.contracts.tables import CATCH_ALL, SETTINGS_KEY, BackendRow, Canary, HostRow, Route, SettingsRow

_INTERCEPTS: Final = re.compile(r"^(proxy|grpc)_intercept_errors on;$", re.ASCII | re.MULTILINE)
"""The built-in default backend is an upstream like others: its 404 is intercepted where theirs are."""
_GROUP: Final = re.compile(r"\$(?:([0-9])|\{([0-9])\})", re.ASCII)


class Outcome(Struct):
    """Filled step by step. `status` 0: the endpoints of `backend` answer. Notes say which clients are turned away before."""

    notes: list[str]
    status: int = 0
    backend: str = ""
    endpoints: tuple[str, ...] = ()

    def ends(self, status: int, note: str) -> None:
        """nginx answers; the first step that does counts."""
        self.status = self.status or status
        self.notes.append(note)


def own_answer(name: str, path: bytes) -> Outcome | None:
    """Paths that the catch-all keeps for itself."""
    if name == CATCH_ALL and path.startswith(b"/healthz"):
        return Outcome(notes=["200: the node's own health path"], status=200)
    if name == CATCH_ALL and path.startswith(b"/nginx_status"):
        return Outcome(notes=["nginx's own status: 200 to addresses that the node allows, 403 to others"], status=200)
    return None


def app_root(row: HostRow, backend: str = "") -> Outcome:
    """Of the URI / on a host that has one."""
    return Outcome(notes=[f"302 to {row.app_root} (app-root)"], status=302, backend=backend)


def unrouted(row: HostRow | None, how: str, path: bytes, shown: str) -> Outcome:
    """No route matches."""
    if how == GAVE_UP:
        return Outcome(notes=["500: the expression may be the one that guards this path, so none after it answers"], status=500)
    if row is not None and path == b"/" and row.app_root:
        return app_root(row)
    if how == "slash":
        return Outcome(notes=[f"301 to {shown}/: nginx's own redirect, the location is a prefix that ends with /"], status=301)
    return Outcome(notes=["no location matches: 404"], status=404)


def routed(rows: Rows, request: Request, method: str, name: str, row: HostRow, route: Route, policy: str) -> Outcome:
    """The outcome of a route. `policy`: the text of its policy."""
    out = Outcome(notes=[], backend=route.backend)
    settings = settings_of(rows)
    if method == "OPTIONS" and route.cors is not None:
        if route.cors.any_origin:
            out.ends(204, "204 to a preflight, of any origin")
        else:
            out.notes.append("204 to a preflight of an allowed origin")
    if route.redirect:
        out.ends(route.redirect.code, f"{route.redirect.code} to {route.redirect.url}")
    elif route.deny:
        out.ends(route.deny, f"{route.deny}: closed, because a setting of this Ingress cannot be used")
    else:
        _rewrite(out, request, route)
        if request.scheme == "http" and _wants_https(rows, request, name, row, route):
            out.ends(settings.http_redirect_code, f"{settings.http_redirect_code} to https")
        if name == CATCH_ALL and not route.ingress and not route.backend:
            out.ends(404, "no location matches: 404")
            return out
        _backend(out, rows, route, settings)
        if route.block or route.allow:
            out.notes.append("clients: " + " ".join([*(f"not {c}" for c in route.block), *(f"only {c}" for c in route.allow)]))
        if route.basic or route.auth:
            out.notes.append("authentication: " + ("basic" if route.basic else f"asks {route.auth.url if route.auth else ''}"))
    if out.status in route.errors and (out.status >= 500 or (out.status == 404 and _INTERCEPTS.search(policy))):
        _intercepted(out, rows, route, settings)
    return out


def settings_of(rows: Rows) -> SettingsRow:
    raw = rows.get(SETTINGS_KEY)
    return msgspec.json.decode(raw, type=SettingsRow) if raw is not None else SettingsRow()


# --- the steps


def _rewrite(out: Outcome, request: Request, route: Route) -> None:
    if route.rewrite is None:
        return
    target = route.rewrite.target
    try:
        found = pcre.search(route.rewrite.pattern, request.path, seconds=MATCH_SECONDS)
    except pcre.Unknown as error:
        out.notes.append(f"the URI becomes {target} (its pattern is not told here: {error})")
        return
    except pcre.TakesTooLong:
        out.ends(500, "500: the rewrite's pattern takes too long")
        return
    if found is None:
        return
    groups = (found[0], *found.groups())
    uri = _GROUP.sub(lambda m: _text(groups, int(m[1] or m[2])), target)
    out.notes.append(
        f"the URI becomes {uri if uri.startswith('/') else '/' + uri}" + (f" (rewrite-target {target})" if "$" in target else "")
    )


def _text(groups: tuple[bytes | None, ...], number: int) -> str:
    return ((groups[number] if number < len(groups) else None) or b"").decode("utf-8", "backslashreplace")


def _wants_https(rows: Rows, request: Request, name: str, row: HostRow, route: Route) -> bool:
    """Whether ssl-redirect acts: the host of the request itself, or its one-label wildcard, has a certificate entry."""
    if route.ssl_redirect != "tls":
        return route.ssl_redirect == "force"
    host = request.host.decode("utf-8", "surrogateescape")
    parent = wildcard_of(host)
    if row.tls and name in (host, parent, CATCH_ALL):
        return True
    above = host_row(rows, parent) if parent else None
    return above is not None and above.tls


def _backend(out: Outcome, rows: Rows, route: Route, settings: SettingsRow) -> None:
    primary = backend_row(rows, route.backend)
    if not route.backend:
        out.ends(404, "no backend: the built-in 404 answers")
    elif primary is not None and _alive(primary):
        _serves(out, primary)
        if primary.canary:
            out.notes.append(_canary(rows, primary.canary))
    elif route.backend == settings.default_backend:
        out.ends(404, "the default backend has no endpoint: the built-in 404 answers")
    else:
        why = "the Service does not exist" if primary is None else "no ready endpoint"
        standin = backend_row(rows, route.standin)
        if standin is not None and _alive(standin):
            out.notes.append(f"{why}: {route.standin} stands in (default-backend)")
            out.backend = route.standin
            _serves(out, standin)
        else:
            out.ends(503, f"{why}: 503")


def _intercepted(out: Outcome, rows: Rows, route: Route, settings: SettingsRow) -> None:
    """As lua/error.lua has it."""
    for key in (route.error_backend, settings.default_backend):
        row = backend_row(rows, key)
        if row is not None and _alive(row):
            out.notes.append(f"custom-http-errors: {key} is asked for / instead")
            out.status, out.backend = 0, key
            return _serves(out, row)
    out.status = 404
    out.notes.append("custom-http-errors: there is no backend for them, the built-in 404 answers")
    return None


def backend_row(rows: Rows, key: str) -> BackendRow | None:
    raw = rows.get(f"b/{key}") if key else None
    return msgspec.json.decode(raw, type=BackendRow) if raw is not None else None


def _usable(backend: BackendRow) -> list[tuple[str, int]]:
    """Without addresses that a cluster's route must not reach."""
    return [e for e in backend.endpoints if backend.any_address or not forbidden(e[0])]


def _alive(backend: BackendRow) -> bool:
    return bool(_usable(backend) or backend.external)


def _serves(out: Outcome, backend: BackendRow) -> None:
    usable = _usable(backend)
    if usable:
        out.endpoints = tuple(f"[{a}]:{p}" if ":" in a else f"{a}:{p}" for a, p in usable)
        out.notes.append(f"{len(usable)} endpoints, {backend.balance}")
    else:
        out.notes.append(f"ExternalName {backend.external}:{backend.external_port}, resolved on each node; 503 where it cannot be")


def _canary(rows: Rows, canary: Canary) -> str:
    row = backend_row(rows, canary.backend)
    if row is None or not _alive(row):
        return f"canary {canary.backend}: has no endpoint, never chosen"
    wanted: Mapping[str, str] = {"header": canary.header, "cookie": canary.cookie}
    rules = [f"{kind} {said}" for kind, said in wanted.items() if said]
    return ", ".join([f"canary {canary.backend}", *rules, f"weight {canary.weight} of {canary.total}"])
