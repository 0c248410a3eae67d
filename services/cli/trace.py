"""`sluice trace namespace/ingress`: the newest change of an Ingress, phase by phase, on each node."""

from __future__ import annotations

import click
from msgspec import Struct

from services.cli import options
from services.cli.errors import Stop
from services.cli.running import ask, print_json, table, when
from services.cli.state import StateDirectory, Up
from services.shared.bus.port import Bus
from services.shared.contracts.report import Applied, decode_applied
from services.shared.contracts.subjects import APPLIED_STREAM, APPLIED_SUBJECTS
from services.shared.contracts.version import Cause, Manifest
from services.shared.versions.read import stored


class NodeTrace(Struct, frozen=True, kw_only=True):
    """One node's part; milliseconds since the change was observed. None: the phase did not occur."""

    node: str
    version: str
    """The first one that this node applied with the change in it."""
    received: float
    verified: float | None
    tested: float | None
    loaded: float | None
    live: float | None
    reload: str


class Trace(Struct, frozen=True, kw_only=True):
    """A change's way, as --json prints it. Times in milliseconds since it was observed."""

    object: str
    version: str
    trace_id: str
    observed_at: float
    published: float
    compiled: float
    committed: float
    nodes: tuple[NodeTrace, ...]


@click.command("trace")
@click.argument("ingress", metavar="NAMESPACE/INGRESS")
@options.state
@options.as_json
def command(ingress: str, state: StateDirectory, as_json: bool) -> None:
    """The newest change of an Ingress: observed, published, compiled, committed, and live on each node, in milliseconds."""
    if ingress.count("/") != 1:
        raise Stop(f"trace takes namespace/ingress, for example default/shop; got {ingress!r}")

    async def run(bus: Bus, up: Up) -> Trace | None:
        manifests = await stored(bus, up.group)
        applied = [decode_applied(m.payload) for m in await bus.history(APPLIED_STREAM, APPLIED_SUBJECTS)]
        return trace_of(ingress, manifests, applied)

    found = ask(state, run)
    if found is None:
        raise Stop(f"no version that is kept was caused by Ingress {ingress}")
    if as_json:
        print_json(found)
        return
    click.echo(f"{found.object}, observed {when(found.observed_at)}, version {found.version}, trace {found.trace_id}")
    click.echo(f"  published {found.published:8.1f} ms\n  compiled  {found.compiled:8.1f} ms\n  committed {found.committed:8.1f} ms")
    columns = ["node", "version", "received", "verified", "tested", "loaded", "live", "waterfall"]
    table("Nodes (ms since observed)", columns, [_row(n, _longest(found)) for n in found.nodes])


def trace_of(ingress: str, manifests: list[Manifest], applied: list[Applied]) -> Trace | None:
    """The newest version caused by the Ingress, and what each node did with it (or with the first later one that it applied)."""
    for manifest in reversed(manifests):
        cause = next((c for c in manifest.causes if c.kind == "Ingress" and f"{c.namespace}/{c.name}" == ingress), None)
        if cause is not None:
            return _trace(ingress, manifest, cause, applied)
    return None


def _trace(ingress: str, manifest: Manifest, cause: Cause, applied: list[Applied]) -> Trace:
    start = cause.observed_at

    def since(at: float) -> float:
        return round((at - start) * 1000, 3)

    def maybe(at: float) -> float | None:
        return since(at) if at else None

    nodes: dict[str, NodeTrace] = {}
    for a in applied:
        if (a.epoch, a.number) >= (manifest.epoch, manifest.number) and a.node not in nodes:
            nodes[a.node] = NodeTrace(
                node=a.node,
                version=f"{a.epoch}.{a.number}",
                received=since(a.received_at),
                verified=maybe(a.verified_at),
                tested=maybe(a.tested_at),
                loaded=maybe(a.loaded_at),
                live=maybe(a.live_at),
                reload=a.reload,
            )
    return Trace(
        object=f"Ingress {ingress}",
        version=str(manifest.id),
        trace_id=(cause.trace or manifest.trace or "--").split("-")[1],
        observed_at=start,
        published=since(cause.published_at),
        compiled=since(manifest.compiled_at),
        committed=since(manifest.committed_at),
        nodes=tuple(nodes[n] for n in sorted(nodes)),
    )


def _longest(found: Trace) -> float:
    return max([n.live or n.received for n in found.nodes], default=1.0) or 1.0


def _row(n: NodeTrace, longest: float) -> list[str]:
    def ms(value: float | None) -> str:
        return "" if value is None else f"{value:.1f}"

    width = 30
    start, end = n.received / longest, (n.live or n.received) / longest
    left = int(start * width)
    bar = " " * left + "█" * max(1, int(end * width) - left)
    return [n.node, n.version, ms(n.received), ms(n.verified), ms(n.tested), ms(n.loaded), ms(n.live), bar]
