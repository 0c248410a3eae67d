"""`sluice webhook`: one admission webhook process."""

from __future__ import annotations

from pathlib import Path

import click

from services.cli import options
from services.shared.bus.address import BusAddress
from services.shared.flags import Flags


@click.command("webhook")
@click.option("--certificate", required=True, type=options.path(dir_okay=False), help="PEM; read again when it changes.")
@click.option("--key", required=True, type=options.path(dir_okay=False), help="PEM.")
@click.option("--client-ca", type=options.path(dir_okay=False), help="PEM: only clients with a certificate of this CA.")
@click.option("--port", default=9443, show_default=True, type=click.IntRange(1, 65535))
@click.option(
    "--group",
    "groups",
    multiple=True,
    default=("default",),
    show_default=True,
    help="A group of nodes whose compilers are asked; repeatable.",
)
@click.option("--name", default="webhook", show_default=True, help="Its name in NATS' list of connections.")
@options.health_port
@options.bus
@options.flags
def command(
    certificate: Path,
    key: Path,
    client_ca: Path | None,
    port: int,
    groups: tuple[str, ...],
    name: str,
    health_port: int,
    bus: BusAddress,
    flags: Flags,
) -> None:
    """Answer AdmissionReviews over HTTPS; asks the compiler."""
    from services.webhook.__main__ import main
    from services.webhook.options import WebhookOptions

    main(
        WebhookOptions(
            certificate=certificate, key=key, client_ca=client_ca, port=port, groups=groups, name=name, health_port=health_port, bus=bus
        )
    )
