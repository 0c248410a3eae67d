"""Why a URL goes where it goes: the router's steps, told from the compiler's own state."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

import msgspec

from services.compiler.engine import Engine
from services.compiler.hosts import LoweredHost
from services.compiler.locations import Location
from services.compiler.matching import matching_route
from services.shared.contracts.question import ExplainAnswer, ExplainQuestion
from services.shared.contracts.tables import AliasRow, BackendRow, Route


def explain(engine: Engine, question: ExplainQuestion) -> ExplainAnswer:
    """Host, path, route, policy, backend and endpoints of one URL, and why these."""
    url = urlsplit(question.url if "://" in question.url else f"http://{question.url}")
    host = (url.hostname or "").rstrip(".").lower()
    path = unquote(url.path) or "/"
    name, why = _host_row(engine, host)
    lowered = engine.hosts.get(name)
    if lowered is None:
        return ExplainAnswer(host=host, matched_host="_", path=path, notes=("no Ingress serves this host: the built-in 404 answers",))
    route, how = matching_route(lowered.row, path)
    if route is None:
        note = (
            f"301 to {path}/: nginx's own redirect, the location is a prefix that ends with /"
            if how == "slash"
            else how or "no location matches: 404"
        )
        return ExplainAnswer(host=host, matched_host=name, path=path, match=how, notes=(*why, note))
    location = next(lo for lo in lowered.locations if lo.route is route)
    bundle = {p.hash: p.text for p in engine.bundle.policies}
    backend = _backend(engine, route.backend)
    return ExplainAnswer(
        host=host,
        matched_host=name,
        path=path,
        matched_path=location.path,
        path_type=location.path_type,
        match="default" if location.automatic else how,
        ingress=location.ingress.ref if location.ingress else "",
        rule=location.field,
        policy=route.policy,
        policy_text=bundle.get(route.policy, ""),
        backend=route.backend,
        endpoints=tuple(f"{a}:{p}" for a, p in backend.endpoints) if backend else (),
        certificate=lowered.certificate.digest if lowered.certificate else "",
        notes=(*why, *_notes(engine, url.scheme, lowered, route, location, backend)),
        problems=tuple(p for ref, p in lowered.problems if location.ingress and ref == location.ingress.ref),
    )


def _host_row(engine: Engine, host: str) -> tuple[str, tuple[str, ...]]:
    """The row that answers for a host, in the router's order; regular-expression aliases are not tried here."""
    if host in engine.hosts:
        return host, (f"host {host}: exact",)
    candidates = [f"a/{host}"]
    labels = host.split(".")
    candidates += [f"a/*.{'.'.join(labels[n:])}" for n in range(1, len(labels))]
    candidates += [f"a/{'.'.join(labels[:n])}.*" for n in range(len(labels) - 1, 0, -1)]
    for key in candidates:
        if key in engine.rows:
            target = msgspec.json.decode(engine.rows[key], type=AliasRow).host
            return target, (f"host {host}: alias {key[2:]} of {target}",)
    wildcard = f"*.{host.partition('.')[2]}"
    if wildcard in engine.hosts:
        return wildcard, (f"host {host}: wildcard {wildcard}",)
    return "_", (f"host {host}: no Ingress names it, the catch-all answers",)


def _backend(engine: Engine, key: str) -> BackendRow | None:
    raw = engine.rows.get(f"b/{key}")
    return msgspec.json.decode(raw, type=BackendRow) if raw else None


def _notes(
    engine: Engine, scheme: str, lowered: LoweredHost, route: Route, location: Location, backend: BackendRow | None
) -> Iterator[str]:
    if lowered.row.app_root:
        yield f"/ is redirected to {lowered.row.app_root} (app-root)"
    if route.redirect:
        yield f"{route.redirect.code} to {route.redirect.url}"
        return
    if route.deny:
        yield f"{route.deny}: closed, because a setting of this Ingress cannot be used"
        return
    if scheme == "http" and (route.ssl_redirect == "force" or (route.ssl_redirect == "tls" and lowered.row.tls)):
        yield f"{engine.settings.http_redirect_code} to https"
    if route.rewrite:
        yield f"the URI becomes {route.rewrite.target}"
    if route.block or route.allow:
        yield "clients: " + " ".join([*(f"not {c}" for c in route.block), *(f"only {c}" for c in route.allow)])
    if route.basic or route.auth:
        yield "authentication: " + ("basic" if route.basic else f"asks {route.auth.url if route.auth else ''}")
    for ref, problem in lowered.problems:
        if f"path {location.path} " in problem.message:
            yield f"Ingress {ref}: {problem.message}"
    if not route.backend:
        yield "no backend: the built-in 404 answers"
    elif backend is None:
        yield "the Service does not exist: 503"
    elif backend.external:
        yield f"ExternalName {backend.external}:{backend.external_port}, resolved on each node"
    elif not backend.endpoints:
        yield "no ready endpoint: 503"
    else:
        yield f"{len(backend.endpoints)} endpoints, {backend.balance}"
    if backend and backend.canary:
        yield f"canary {backend.canary.backend}, weight {backend.canary.weight} of {backend.canary.total}"
