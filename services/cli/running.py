"""A running `sluice up` or an installed release, from the outside: its bus, and how a command that asks it something runs and ends."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from services.cli.errors import Stop
from services.cli.state import StateDirectory, Up, require_up
from services.shared.bus.address import BusAddress
from services.shared.bus.jetstream import JetStreamBus
from services.shared.bus.port import Bus, BusError
from services.shared.versions.read import Unreadable

T = TypeVar("T")
CONNECT_SECONDS = 5.0


def ask(state: StateDirectory, question: Callable[[Bus, Up], Awaitable[T]]) -> T:
    """Connect, run, disconnect. What goes wrong on the way is one sentence."""
    address, up, hint = _found(state)

    async def run() -> T:
        bus = JetStreamBus(address, name="sluice")
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await bus.__aenter__()
        except TimeoutError:
            raise Stop(f"nats-server does not answer; {hint}") from None
        try:
            return await question(bus, up)
        finally:
            await bus.__aexit__(None, None, None)

    try:
        return asyncio.run(run())
    except (BusError, Unreadable) as error:
        raise Stop(str(error)) from None


def is_release(state: StateDirectory) -> bool:
    """Whether commands speak to an installed release: the environment names its bus, and nobody named a directory."""
    return not state.named and bool(os.environ.get("SLUICE_NATS_URL"))


def _found(state: StateDirectory) -> tuple[BusAddress, Up, str]:
    """How to reach the bus, what is known of the nodes, and what to look at when nobody answers.

    In a pod of an installed release the environment says how; then no node is expected but those that report.
    """
    if is_release(state):
        url = os.environ["SLUICE_NATS_URL"]
        credentials, ca = (Path(value) if (value := os.environ.get(name)) else None for name in ("SLUICE_NATS_CREDS", "SLUICE_NATS_CA"))
        up = Up(ready=True, nats=url, group=os.environ.get("SLUICE_GROUP", "default"))
        return BusAddress(url=url, credentials=credentials, ca=ca), up, f"$SLUICE_NATS_URL is {url}"
    up = require_up(state)
    return state.bus(up.nats, "command"), up, f"is `sluice up` still running? (its directory is {state.root})"


def print_json(value: Any) -> None:
    """Indented, keys in the order of their definition."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table for people."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*(escape(cell) for cell in row))
    Console().print(shown)


def when(seconds: float) -> str:
    """Local time of day with milliseconds, for people."""
    import datetime

    return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S") if seconds else ""
