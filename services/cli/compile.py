"""`sluice compile DIR --to ir|nginx|tables`: each stage's output, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from services.cli import options
from services.cli.errors import FAILED
from services.cli.offline import compiled
from services.cli.running import print_json
from services.compiler.engine import Engine
from services.shared.flags import Flags

SECRET_ROWS = ("c/", "f/")


@click.command("compile")
@click.argument("directory", type=options.path(exists=True, file_okay=False))
@click.option("--to", "stage", type=click.Choice(["ir", "nginx", "tables"]), default="tables", show_default=True)
@options.flags
@options.as_json
def command(directory: Path, stage: str, flags: Flags, as_json: bool) -> int:
    """Compile a directory of manifests: hosts and locations (ir), policies (nginx text), or rows (tables, secrets redacted)."""
    engine, problems, _ = compiled(directory, flags)
    if stage == "nginx":
        _nginx(engine, as_json)
    else:
        print_json(_ir(engine) if stage == "ir" else _tables(engine))
    for problem in problems:
        click.echo(f"sluice: {problem.sentence()}", err=True)
    return FAILED if problems else 0


def _tables(engine: Engine) -> dict[str, Any]:
    return {k: "<redacted>" if k.startswith(SECRET_ROWS) else msgspec.Raw(v) for k, v in sorted(engine.rows.items())}


def _nginx(engine: Engine, as_json: bool) -> None:
    if as_json:
        print_json(engine.bundle.policies)
        return
    for policy in engine.bundle.policies:
        head = f"location @p_{policy.hash} {{" if policy.scope == "location" else f"# {policy.scope} {policy.hash}"
        click.echo(head)
        click.echo(policy.text.rstrip())
        if policy.scope == "location":
            click.echo("}")


def _ir(engine: Engine) -> list[dict[str, Any]]:
    out = []
    for host in sorted(engine.hosts):
        lowered = engine.hosts[host]
        locations = [
            {
                "path": location.path,
                "path_type": location.path_type,
                "ingress": location.ingress.ref if location.ingress else "",
                "field": location.field,
                "automatic": location.automatic,
                "policy": location.policy,
                "route": location.route,
            }
            for location in lowered.locations
        ]
        certificate = lowered.certificate.digest if lowered.certificate else ""
        out.append({"host": host, "tls": lowered.row.tls, "certificate": certificate, "aliases": lowered.aliases, "locations": locations})
    return out
