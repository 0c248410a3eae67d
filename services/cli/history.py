"""`sluice history`: the versions that are kept, and what caused them."""

from __future__ import annotations

import click
from msgspec import Struct

from services.cli import options
from services.cli.running import ask, print_json, table, when
from services.cli.state import StateDirectory, Up
from services.shared.bus.port import Bus
from services.shared.contracts.version import Cause, Manifest
from services.shared.versions.read import history


class Version(Struct, frozen=True, kw_only=True):
    """One version, as --json prints it."""

    epoch: int
    number: int
    digest: str
    committed_at: float
    rows: int
    cause_count: int
    causes: tuple[Cause, ...]
    pinned: int
    note: str


@click.command("history")
@options.state
@click.option("-n", "--last", default=20, show_default=True, type=click.IntRange(min=1), help="How many.")
@options.as_json
def command(state: StateDirectory, last: int, as_json: bool) -> None:
    """The versions that are kept (64), newest first, and what caused them."""

    async def run(bus: Bus, up: Up) -> list[Manifest]:
        return list(reversed(await history(bus, up.group)))

    manifests = ask(state, run)
    if as_json:
        print_json([_version(m) for m in manifests])
        return
    rows = []
    for m in manifests[:last]:
        what = m.note or ", ".join(f"{c.kind} {c.namespace}/{c.name}" for c in m.causes[:3]) + (" ..." if m.cause_count > 3 else "")
        rows.append([str(m.id), m.digest[:12], when(m.committed_at), str(m.rows), str(m.cause_count), what])
    table("Versions", ["version", "digest", "committed", "rows", "causes", "what"], rows)


def _version(m: Manifest) -> Version:
    return Version(
        epoch=m.epoch,
        number=m.number,
        digest=m.digest,
        committed_at=m.committed_at,
        rows=m.rows,
        cause_count=m.cause_count,
        causes=m.causes,
        pinned=m.pinned,
        note=m.note,
    )
