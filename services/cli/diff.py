"""`sluice diff [A] B`: objects, policies and rows between two versions."""

from __future__ import annotations

import click
import msgspec

from services.cli import options
from services.cli.running import ask, print_json
from services.cli.state import StateDirectory, Up
from services.shared.bus.port import Bus
from services.shared.contracts.version import VersionId
from services.shared.versions.diff import VersionDiff, diff


@click.command("diff")
@click.argument("versions", metavar="[A] B", nargs=-1, required=True, type=options.VersionParameter())
@options.state
@options.as_json
def command(versions: tuple[VersionId, ...], state: StateDirectory, as_json: bool) -> None:
    """What changed from version A (the one before B, where it is not given) to version B: 1.88 or 88, as `sluice history` shows it."""
    if len(versions) not in (1, 2):
        raise click.UsageError("compares two versions, or one with its predecessor")
    a, b = None if len(versions) == 1 else versions[0], versions[-1]

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
