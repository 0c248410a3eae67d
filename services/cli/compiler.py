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
@click.option("--name", default="compiler", show_default=True, help="Its name in NATS' list of connections.")
@options.health_port
@options.seal_keys
@options.bus
@options.flags
def command(group: str, any_address: bool, name: str, health_port: int, seal_keys: Path, bus: BusAddress, flags: Flags) -> None:
    """Compile the CLUSTER stream into versions, and answer questions."""
    from services.compiler.__main__ import main
    from services.compiler.service import CompilerOptions

    main(
        CompilerOptions(seal_keys=seal_keys, bus=bus, group=group, flags=flags, any_address=any_address, name=name, health_port=health_port)
    )
