"""`sluice applier`: one applier process, beside its nginx."""

from __future__ import annotations

from pathlib import Path

import click

from services.cli import options
from services.shared.bus.address import BusAddress
from services.shared.flags import Flags


@click.command("applier")
@click.option("--node", required=True, help="The node's name: the key of its report.")
@click.option("--group", default="default", show_default=True, help="The group whose versions it applies.")
@click.option("--directory", required=True, type=options.path(file_okay=False), help="The node's directory: versions, nginx's prefix.")
@click.option("--http-port", required=True, type=click.IntRange(1, 65535))
@click.option("--https-port", required=True, type=click.IntRange(1, 65535))
@click.option("--health-port", required=True, type=click.IntRange(1, 65535), help="/healthz, /readyz, /metrics.")
@click.option(
    "--stream-port-offset",
    default=0,
    show_default=True,
    type=click.IntRange(0, 65534),
    help="Added to the ports of TCP and UDP services, where several nodes share a machine.",
)
@click.option("--nginx", default="/usr/sbin/nginx", show_default=True, help="The nginx binary.")
@click.option(
    "--drain-seconds",
    default=5.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="At the end, for nginx to finish what it has begun; then it is killed. In a pod: somewhat less than its grace period.",
)
@click.option("--keep-nginx", is_flag=True, help="Leave nginx running when the applier ends.")
@click.option(
    "--enrol-token",
    type=options.path(dir_okay=False),
    help="The file with this pod's token: the node asks for a NATS credential of its own, as whom --nats-creds says.",
)
@options.bus
@options.flags
def command(
    node: str,
    group: str,
    directory: Path,
    http_port: int,
    https_port: int,
    health_port: int,
    stream_port_offset: int,
    nginx: str,
    drain_seconds: float,
    keep_nginx: bool,
    enrol_token: Path | None,
    bus: BusAddress,
    flags: Flags,
) -> None:
    """Fetch versions, run nginx with them, report what is live."""
    from services.applier.__main__ import main
    from services.applier.options import ApplierOptions, EnrolOptions

    main(
        ApplierOptions(
            node=node,
            group=group,
            directory=directory.absolute(),
            http_port=http_port,
            https_port=https_port,
            healthz_port=health_port,
            stream_port_offset=stream_port_offset,
            nginx=nginx,
            drain_seconds=drain_seconds,
            stop_nginx=not keep_nginx,
            bus=bus,
            enrol=EnrolOptions(token=enrol_token) if enrol_token is not None else None,
            flags=flags,
        )
    )
