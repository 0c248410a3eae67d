"""`sluice status`: nodes and versions, what waits, what is wrong."""

from __future__ import annotations

import click
import msgspec
from msgspec import Struct

from services.cli import options
from services.cli.running import ask, print_json, table, when
from services.cli.state import StateDirectory, Up
from services.shared.bus.port import Bus
from services.shared.contracts import subjects
from services.shared.contracts.problem import Problem, Verdict
from services.shared.contracts.report import NodeReport, WatcherReport, decode_node_report, decode_watcher_report
from services.shared.versions.read import head


class Status(Struct, frozen=True, kw_only=True):
    """Everything, as --json prints it."""

    version: str
    """The head's `epoch.number`; empty: there is none."""
    digest: str
    pinned: int
    rows: int
    converged: bool
    """All expected nodes report the head, with nothing deferred."""
    nodes: tuple[NodeReport, ...]
    missing: tuple[str, ...]
    """Expected nodes that do not report."""
    revoked: tuple[str, ...] = ()
    """Nodes that were shut out of the bus."""
    watchers: tuple[WatcherReport, ...]
    verdicts: tuple[Verdict, ...]
    """Objects with problems."""


@click.command("status")
@options.state
@options.as_json
def command(state: StateDirectory, as_json: bool) -> None:
    """What runs where: nodes and versions, deferred rows, errors, problems of objects and files."""
    status = ask(state, _gather)
    if as_json:
        print_json(status)
        return
    _show(status)


async def _gather(bus: Bus, up: Up) -> Status:
    newest = await head(bus, up.group)
    nodes = [decode_node_report(v) for v in (await bus.entries(subjects.NODES_BUCKET)).values()]
    nodes = sorted((n for n in nodes if n.group == up.group), key=lambda n: n.node)
    watchers = [decode_watcher_report(v) for v in (await bus.entries(subjects.WATCHERS_BUCKET)).values()]
    verdicts = [msgspec.json.decode(v, type=Verdict) for v in (await bus.entries(subjects.VERDICTS_BUCKET)).values()]
    shut_out = {subjects.untoken(key) for key in await bus.entries(subjects.REVOKED_BUCKET)}
    missing = tuple(sorted({n.name for n in up.nodes} - {n.node for n in nodes} - shut_out))
    nodes = [n for n in nodes if n.node not in shut_out]
    manifest = newest[0] if newest else None
    done = manifest is not None and all((n.epoch, n.number) == (manifest.epoch, manifest.number) and not n.deferred_count for n in nodes)
    return Status(
        version=str(manifest.id) if manifest else "",
        digest=manifest.digest if manifest else "",
        pinned=manifest.pinned if manifest else 0,
        rows=manifest.rows if manifest else 0,
        converged=done and not missing,
        nodes=tuple(nodes),
        missing=missing,
        revoked=tuple(sorted(shut_out)),
        watchers=tuple(sorted(watchers, key=lambda w: w.watcher)),
        verdicts=tuple(sorted(verdicts, key=lambda v: (v.kind, v.namespace, v.name))),
    )


def _show(status: Status) -> None:
    pinned = f", pinned to the content of {status.pinned}" if status.pinned else ""
    click.echo(f"head: version {status.version or 'none'} {status.digest[:12]}, {status.rows} rows{pinned}")
    rows = []
    for n in status.nodes:
        reloads = " ".join(f"{c}={k}" for c, k in sorted(n.reloads.items()))
        error = f"{n.last_error} ({when(n.last_error_at)})" if n.last_error else ""
        state = "ready" if n.ready else "not ready"
        rows.append([n.node, f"{n.epoch}.{n.number}", n.digest[:12], state, str(n.deferred_count), str(n.generation), reloads, error])
    rows += [[name, "", "", "does not report", "", "", "", ""] for name in status.missing]
    rows += [[name, "", "", "revoked", "", "", "", ""] for name in status.revoked]
    table("Nodes", ["node", "version", "digest", "state", "deferred", "generation", "reloads", "last error"], rows)
    for n in status.nodes:
        for policy, words in sorted(n.refused.items()):
            click.echo(f"{n.node} refuses policy {policy}: {words}")
    for w in status.watchers:
        objects = ", ".join(f"{count} {kind}" for kind, count in sorted(w.objects.items()) if count)
        click.echo(f"watcher {w.watcher}: {w.source}, {'synced' if w.synced else 'NOT SYNCED'}: {objects}")
    problems: list[tuple[str, Problem]] = [(f"watcher {w.watcher}", p) for w in status.watchers for p in w.problems]
    problems += [(f"{v.kind} {v.namespace}/{v.name}", p) for v in status.verdicts for p in v.problems]
    if problems:
        table("Problems", ["object", "severity", "problem"], [[who, p.severity, p.sentence()] for who, p in problems])
