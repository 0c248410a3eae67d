"""Why a URL goes where it goes: the router's steps, told from the rows that nodes serve.

Rows say all that decides. What they do not carry (the rule in the Ingress, the path's type) comes from the compiler's own state, where
that has made the very row.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping

import msgspec
from msgspec.structs import replace

from services.compiler.engine import Engine
from services.compiler.head import Served
from services.compiler.hosts import LoweredHost
from services.compiler.locations import Location
from services.compiler.matching import HostMatch, Patience, RouteMatch, Rows, matching_host, matching_route
from services.compiler.outcome import Outcome, app_root, own_answer, routed, settings_of, unrouted
from services.compiler.request import Request, request_of
from services.shared.contracts.question import ExplainAnswer, ExplainQuestion
from services.shared.contracts.tables import HostRow, SettingsRow, TLSNameRow


def explain(engine: Engine, question: ExplainQuestion, served: Served | None = None) -> ExplainAnswer:
    """Host, path, route, policy, backend and endpoints of one URL, and why these. `served` None: the compiler's own rows tell."""
    request = request_of(question.url, question.method)
    answer = ExplainAnswer(
        host=_shown(request.host),
        matched_host="",
        path=_shown(request.path),
        version=served.version if served else "",
        pinned=served.pinned if served else 0,
        notes=tuple(_version_notes(served)),
    )
    if request.refused:
        note = f"{request.refused}: nginx refuses this before it looks for a host: {request.why}"
        return replace(answer, status=request.refused, notes=(*answer.notes, note))
    rows = engine.rows if served is None or served.rows is None else served.rows
    bundles = (engine.bundle, *([served.bundle] if served and served.bundle else ()))
    texts = {p.hash: p.text for bundle in bundles for p in bundle.policies}
    return _answered(answer, engine, rows, request, question.method, texts)


def _answered(answer: ExplainAnswer, engine: Engine, rows: Rows, request: Request, method: str, texts: Mapping[str, str]) -> ExplainAnswer:
    """Of a request that nginx takes."""
    patience = Patience()
    host = matching_host(rows, request.host, patience)
    route = matching_route(host.row, request.path, patience) if host.row is not None else RouteMatch()
    notes = (*answer.notes, *_blocks(settings_of(rows)), *host.notes, *route.notes)
    answer = replace(answer, matched_host=host.name, certificate=_certificate(rows, request.host), notes=notes)
    if own := own_answer(host.name, request.path):
        return _ended(answer, own)
    answer = replace(answer, match=route.how)
    if host.row is None or route.index < 0:
        return _ended(answer, unrouted(host.row, route.how, request.path, answer.path))
    found = host.row.routes[route.index]
    if request.path == b"/" and host.row.app_root:
        outcome = app_root(host.row, found.backend)
    else:
        outcome = routed(rows, request, method, host.name, host.row, found, texts.get(found.policy, ""))
    return _described(_ended(answer, outcome), host.row, route, _origin(engine, rows, host), texts)


def _shown(text: bytes) -> str:
    return text.decode("utf-8", "backslashreplace")


def _version_notes(served: Served | None) -> Iterator[str]:
    if served is None:
        yield "there is no version yet: this is what would be served"
    elif served.pinned and served.rows is not None:
        yield f"a rollback to version {served.pinned} is pinned: this is its content, without what changed since"
    if served is not None and served.rows is None:
        yield f"version {served.version} cannot be read: this is what the present objects give"


def _blocks(settings: SettingsRow) -> Iterator[str]:
    """Who gets 403 whatever the host."""
    for what, said in (
        ("addresses", settings.block_cidrs),
        ("user agents", settings.block_user_agents),
        ("referers", settings.block_referers),
    ):
        if said:
            yield f"403 to {what} {' '.join(said)}"


def _certificate(rows: Rows, host: bytes) -> str:
    """The digest of what is shown to an SNI of this name; empty: the node's own certificate."""
    name = host.decode("utf-8", "surrogateescape")
    names = [name, f"*.{name.partition('.')[2]}"] if "." in name else [name]
    for key in ("t/_",) if _is_address(name) else (*(f"t/{n}" for n in names), "t/_"):
        raw = rows.get(key)
        if raw is not None:
            digest = msgspec.json.decode(raw, type=TLSNameRow).certificate
            return digest if f"c/{digest}" in rows else ""
    return ""


def _is_address(host: str) -> bool:
    """Clients send no SNI for it."""
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _ended(answer: ExplainAnswer, outcome: Outcome) -> ExplainAnswer:
    return replace(
        answer,
        status=outcome.status,
        backend=outcome.backend,
        endpoints=outcome.endpoints,
        notes=(*answer.notes, *outcome.notes),
    )


def _origin(engine: Engine, rows: Rows, host: HostMatch) -> LoweredHost | None:
    """What the compiler made the row from; None: it has made another one since."""
    key = f"h/{host.name}"
    return engine.hosts.get(host.name) if engine.rows.get(key) == rows.get(key) else None


def _described(
    answer: ExplainAnswer, row: HostRow, found: RouteMatch, origin: LoweredHost | None, texts: Mapping[str, str]
) -> ExplainAnswer:
    route = row.routes[found.index]
    answer = replace(
        answer,
        matched_path=route.path,
        ingress=f"{route.namespace}/{route.ingress}" if route.ingress else "",
        policy=route.policy,
        policy_text=texts.get(route.policy, ""),
    )
    if origin is None:
        note = "its Ingress or another one of this host is not the same any more: the rule is not known"
        return replace(answer, path_type=_path_type(row, found.index), notes=(*answer.notes, note))
    location = origin.locations[found.index]
    return replace(
        answer,
        path_type=location.path_type,
        match="default" if location.automatic else found.how,
        rule=location.field,
        notes=(*answer.notes, *_losers(origin, location)),
        problems=tuple(p for ref, p in origin.problems if location.ingress and ref == location.ingress.ref),
    )


def _path_type(row: HostRow, index: int) -> str:
    if row.regex:
        return ""
    return "Prefix" if index in row.prefix.values() else "Exact"


def _losers(origin: LoweredHost, location: Location) -> Iterator[str]:
    for ref, problem in origin.problems:
        if f"path {location.path} " in problem.message:
            yield f"Ingress {ref}: {problem.message}"
