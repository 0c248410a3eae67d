"""`sluice up`: everything on this machine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click
from msgspec.structs import replace

from services.cli import options
from services.cli.errors import Stop
from services.cli.state import StateDirectory
from services.cli.supervisor.events import teller
from services.cli.supervisor.plan import UpOptions
from services.shared.flags import Flags


@click.command("up")
@click.option("--manifests", type=options.path(), default=Path("manifests"), show_default=True, help="The directory of manifests.")
@click.option("--kubeconfig", type=options.path(exists=True, dir_okay=False), help="The source is this cluster instead of a directory.")
@click.option("--context", default="", help="Of the kubeconfig.  [default: its current one]")
@click.option(
    "--nodes",
    default=2,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Edge nodes; node i listens on each port + i, those of TCP and UDP services too.",
)
@click.option("--http-port", type=click.IntRange(1, 65535), help="[default: 8080, or the flag of this name]")
@click.option("--https-port", type=click.IntRange(1, 65535), help="[default: 8443, or the flag of this name]")
@click.option("--healthz-port", type=click.IntRange(1, 65535), help="/healthz, /readyz, /metrics. [default: 10254]")
@click.option("--webhook-port", default=9443, show_default=True, type=click.IntRange(1, 65535), help="Admission over HTTPS.")
@click.option("--demo", is_flag=True, help="The shipped example application, with real backends behind it.")
@click.option("--json", "as_json", is_flag=True, help="Events as JSON lines (docs/cli.md).")
@options.state
@options.flags
def command(
    manifests: Path,
    kubeconfig: Path | None,
    context: str,
    nodes: int,
    http_port: int | None,
    https_port: int | None,
    healthz_port: int | None,
    webhook_port: int,
    demo: bool,
    as_json: bool,
    state: StateDirectory,
    flags: Flags,
) -> int:
    """Run nats-server, watcher, compiler, webhook and edge nodes with their nginx, until SIGINT or SIGTERM.

    When every node serves everything that the source holds, DIR/up.json says so. State survives a restart, and a kill -9 of this
    process: the next `sluice up` with the same --state takes over what still runs.
    """
    from services.cli.supervisor.run import Supervisor, check

    if kubeconfig is not None and demo:
        raise Stop("--demo is a directory of manifests; it cannot be had with --kubeconfig")
    defaults = Flags()
    chosen = UpOptions(
        state=state,
        manifests=manifests.absolute() if kubeconfig is None else None,
        kubeconfig=kubeconfig.absolute() if kubeconfig is not None else None,
        context=context,
        nodes=nodes,
        http_port=http_port or _unless_default(flags.http_port, defaults.http_port, 8080),
        https_port=https_port or _unless_default(flags.https_port, defaults.https_port, 8443),
        healthz_port=healthz_port or flags.healthz_port,
        webhook_port=webhook_port,
        flags=flags,
        demo=demo,
    )
    check(chosen)
    if demo:
        from services.cli.demo.manifests import write_demo

        chosen = replace(chosen, manifests=write_demo(state))
    say = teller(as_json=as_json)
    try:
        return asyncio.run(Supervisor(chosen, say).run())
    except OSError as error:
        raise Stop(str(error)) from None
    finally:
        say.close()


def _unless_default(value: int, default: int, otherwise: int) -> int:
    return value if value != default else otherwise
