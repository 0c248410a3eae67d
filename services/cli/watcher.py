"""`sluice watcher`: one watcher process."""

from __future__ import annotations

from pathlib import Path

import click

from services.cli import options
from services.shared.bus.address import BusAddress
from services.shared.flags import Flags


@click.command("watcher")
@click.option("--manifests", required=True, type=options.path(exists=True, file_okay=False), help="The directory of manifests.")
@click.option("--name", default="watcher", show_default=True, help="The key of its report.")
@options.seal_keys
@options.bus
@options.flags
def command(manifests: Path, name: str, seal_keys: Path, bus: BusAddress, flags: Flags) -> None:
    """Publish a directory of manifests on the CLUSTER stream."""
    from services.watcher.__main__ import main
    from services.watcher.options import WatcherOptions

    main(WatcherOptions(manifests=manifests, name=name, seal_keys=seal_keys, bus=bus, flags=flags))
