"""`sluice compiler`: one compiler process."""

from __future__ import annotations

from pathlib import Path

import click

from services.cli import options
from services.shared.bus.address import BusAddress
from services.shared.flags import Flags


@click.command("compiler")
@click.option("--group", default="default", show_default=True, help="The group of nodes to compile for.")
@click.option("--any-address/--no-any-address", default=True, show_default=True, help="Whether endpoints may be loopback or link-local.")
@click.option(
    "--nodes-here",
    default=1,
    show_default=True,
    type=click.IntRange(1, 64),
    help="So many nodes share one machine, node i on each port + i: TCP and UDP services must keep that distance.",
)
@click.option("--name", default="compiler", show_default=True, help="Its name in NATS' list of connections.")
@click.option(
    "--crash-notes",
    type=options.path(file_okay=False),
    metavar="DIR",
    help="A directory of this compiler's own that outlives it: an Ingress that it dies of twice is left alone.  [default: none]",
)
@click.option(
    "--rollout-soak",
    envvar="SLUICE_ROLLOUT_SOAK",
    default=2.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Seconds that nodes must have run a new policy before more get it.",
)
@click.option(
    "--canary-nodes",
    envvar="SLUICE_CANARY_NODES",
    default="",
    metavar="NAMES",
    help="Nodes that get new policies first, with commas.  [default: one is chosen]",
)
@options.health_port
@options.seal_keys
@options.bus
@options.flags
def command(
    group: str,
    any_address: bool,
    nodes_here: int,
    name: str,
    crash_notes: Path | None,
    rollout_soak: float,
    canary_nodes: str,
    health_port: int,
    seal_keys: Path,
    bus: BusAddress,
    flags: Flags,
) -> None:
    """Compile the CLUSTER stream into versions, and answer questions."""
    from services.compiler.__main__ import main
    from services.compiler.service import CompilerOptions

    main(
        CompilerOptions(
            seal_keys=seal_keys,
            bus=bus,
            group=group,
            flags=flags,
            any_address=any_address,
            nodes_here=nodes_here,
            name=name,
            crash_notes=crash_notes,
            rollout_soak_seconds=rollout_soak,
            canary_nodes=tuple(n.strip() for n in canary_nodes.split(",") if n.strip()),
            health_port=health_port,
        )
    )
