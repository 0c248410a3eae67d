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
from services.shared.contracts.rollout import Gate, decode_gate, lets_in
from services.shared.versions.read import head


class Step(Struct, frozen=True, kw_only=True):
    """How far one new policy is."""

    policy: str
    stage: str
    """`canaries`, or `N %` of the nodes besides."""
    let_in: tuple[str, ...]
    """Nodes that may install it, of those that report."""
    halted: str = ""
    """Why it goes no further: which node refuses it, with nginx's words. Empty: it does go on."""


class Status(Struct, frozen=True, kw_only=True):
    """Everything, as --json prints it."""

    version: str
    """The head's `epoch.number`; empty: there is none."""
    digest: str
    pinned: int
    rows: int
    converged: bool
    """All expected nodes report the head, with nothing deferred and all its policies running."""
    rollout: tuple[Step, ...] = ()
    """New policies that are not open to all nodes yet."""
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
    stored = (await bus.entries(subjects.VERDICTS_BUCKET)).items()
    verdicts = [msgspec.json.decode(v, type=Verdict) for k, v in stored if k.startswith(f"{subjects.token(up.group)}.")]
    shut_out = {subjects.untoken(key) for key in await bus.entries(subjects.REVOKED_BUCKET)}
    missing = tuple(sorted({n.name for n in up.nodes} - {n.node for n in nodes} - shut_out))
    nodes = [n for n in nodes if n.node not in shut_out]
    manifest = newest[0] if newest else None
    done = manifest is not None and all(
        (n.epoch, n.number) == (manifest.epoch, manifest.number) and not n.deferred_count and not n.unloaded for n in nodes
    )
    return Status(
        version=str(manifest.id) if manifest else "",
        digest=manifest.digest if manifest else "",
        pinned=manifest.pinned if manifest else 0,
        rows=manifest.rows if manifest else 0,
        converged=done and not missing,
        rollout=_steps(await _gate(bus, up.group), nodes),
        nodes=tuple(nodes),
        missing=missing,
        revoked=tuple(sorted(shut_out)),
        watchers=tuple(sorted(watchers, key=lambda w: w.watcher)),
        verdicts=tuple(sorted(verdicts, key=lambda v: (v.kind, v.namespace, v.name))),
    )


async def _gate(bus: Bus, group: str) -> Gate | None:
    subject = subjects.bucket_subject(subjects.ROLLOUTS_BUCKET, subjects.token(group))
    found = await bus.last(f"KV_{subjects.ROLLOUTS_BUCKET}", subject)
    return decode_gate(found.payload) if found is not None else None


def _steps(gate: Gate | None, nodes: list[NodeReport]) -> tuple[Step, ...]:
    if gate is None:
        return ()
    words = {(n.node, policy): why for n in nodes for policy, why in n.refused.items()}
    return tuple(
        Step(
            policy=policy,
            stage=f"{waiting.percent} %" if waiting.percent else "canaries",
            let_in=tuple(n.node for n in nodes if lets_in(gate, n.node, waiting)),
            halted=waiting.halted and f"{waiting.halted} refuses it: {words.get((waiting.halted, policy), 'it does not say why any more')}",
        )
        for policy, waiting in sorted(gate.waiting.items())
    )


def _show(status: Status) -> None:
    pinned = f", pinned to the content of {status.pinned}" if status.pinned else ""
    click.echo(f"head: version {status.version or 'none'} {status.digest[:12]}, {status.rows} rows{pinned}")
    for step in status.rollout:
        halted = f"; HALTED: {step.halted}" if step.halted else ""
        where = f"{len(step.let_in)} of {len(status.nodes)} nodes ({', '.join(step.let_in)})"
        click.echo(f"rollout: policy {step.policy}, stage {step.stage}, let in on {where}{halted}")
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
