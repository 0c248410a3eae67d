"""`sluice diff A B`: objects, policies and rows between two versions."""

from __future__ import annotations

import click
import msgspec

from services.cli import options
from services.cli.running import ask, print_json
from services.cli.state import StateDirectory, Up
from services.shared.bus.port import Bus
from services.shared.versions.diff import VersionDiff, diff


@click.command("diff")
@click.argument("a", type=int)
@click.argument("b", type=int)
@options.state
@options.as_json
def command(a: int, b: int, state: StateDirectory, as_json: bool) -> None:
    """What changed from version A to version B (numbers, as `sluice history` shows them)."""

    async def run(bus: Bus, up: Up) -> VersionDiff:
        return await diff(bus, up.group, a, b)

    found = ask(state, run)
    if as_json:
        print_json(found)
        return
    click.echo(f"from version {found.before} to {found.after}")
    for cause in found.causes:
        click.echo(f"  {cause.op:6} {cause.kind} {cause.namespace}/{cause.name}")
    for policy in found.policies_removed:
        click.echo(f"- policy {policy.hash} ({policy.scope})")
    for policy in found.policies_added:
        click.echo(f"+ policy {policy.hash} ({policy.scope})")
    for row in found.rows:
        if row.before is not None:
            click.echo(f"- {row.key} {_short(row.before)}")
        if row.after is not None:
            click.echo(f"+ {row.key} {_short(row.after)}")
    if not (found.rows or found.policies_added or found.policies_removed):
        click.echo("the same content")


def _short(value: object) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 400 else text[:397] + "..."
