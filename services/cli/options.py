"""Options that several commands share."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from services.cli.errors import Stop
from services.cli.state import StateDirectory, default_state
from services.shared.bus.address import BusAddress
from services.shared.contracts.version import VersionId
from services.shared.flags import FlagError, Flags, parse_flags


def _state(_: click.Context, __: click.Parameter, value: Path | None) -> StateDirectory:
    return StateDirectory(value or default_state(), named=value is not None)


def _flags(_: click.Context, __: click.Parameter, value: tuple[str, ...]) -> Flags:
    try:
        return parse_flags(value)
    except FlagError as error:
        raise Stop(str(error)) from None


state = click.option(
    "--state",
    type=click.Path(path_type=Path),
    callback=_state,
    metavar="DIR",
    help="The state directory of `sluice up`.  [default: what $SLUICE_NATS_URL names, where it is set (docs/installation.md); "
    "else /var/lib/sluice for root, $XDG_STATE_HOME/sluice for others]",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON (docs/cli.md has its shape).")
flags = click.option(
    "--set-flag",
    "flags",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_flags,
    help="A controller flag under ingress-nginx's own name; repeatable.",
)


def bus(command: Callable[..., Any]) -> Callable[..., Any]:
    """How to reach NATS; the command gets a `BusAddress` as `bus`."""

    @click.option(
        "--nats-url",
        envvar="SLUICE_NATS_URL",
        default="nats://127.0.0.1:4222",
        show_default=True,
        help="Where nats-server listens; tls:// for TLS; several separated by commas.",
    )
    @click.option(
        "--nats-creds", envvar="SLUICE_NATS_CREDS", type=path(dir_okay=False), help="A NATS credentials file: as whom to connect."
    )
    @click.option("--nats-ca", envvar="SLUICE_NATS_CA", type=path(dir_okay=False), help="PEM: who signed the servers' certificates.")
    @click.option(
        "--nats-replicas",
        envvar="SLUICE_NATS_REPLICAS",
        default=1,
        show_default=True,
        type=click.IntRange(1, 5),
        help="Copies of each stream.",
    )
    @functools.wraps(command)
    def wrapped(nats_url: str, nats_creds: Path | None, nats_ca: Path | None, nats_replicas: int, **rest: Any) -> Any:
        return command(bus=BusAddress(url=nats_url, credentials=nats_creds, ca=nats_ca, replicas=nats_replicas), **rest)

    return wrapped


seal_keys = click.option(
    "--seal-keys",
    envvar="SLUICE_SEAL_KEYS",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="The directory of the sealing keys (`sluice keys create` makes them).",
)


health_port = click.option(
    "--health-port",
    default=0,
    type=click.IntRange(0, 65535),
    help="Plain HTTP for /healthz, /readyz and /metrics.  [default: none]",
)


class VersionParameter(click.ParamType[VersionId]):
    """A version as `history` and `status` name it; epoch 0: only its number was given."""

    name = "version"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> VersionId:
        found = re.fullmatch(r"(?:([0-9]{1,9})\.)?([0-9]{1,18})", str(value), re.ASCII)
        if found is None or int(found[2]) == 0:
            self.fail(f"{value!r} is no version: it is written 1.88 or 88, as `sluice history` shows it", param, ctx)
        return VersionId(int(found[1] or 0), int(found[2]))


def path(**more: Any) -> click.Path:
    """A path argument, as a Path."""
    return click.Path(path_type=Path, **more)
