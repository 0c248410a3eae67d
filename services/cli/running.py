"""A running `sluice up`, from the outside: its bus, and how a command that asks it something runs and ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import click
import msgspec

from services.cli.errors import Stop
from services.cli.state import StateDirectory, Up, require_up
from services.shared.bus.jetstream import JetStreamBus
from services.shared.bus.port import Bus, BusError
from services.shared.versions.read import Unreadable

T = TypeVar("T")
CONNECT_SECONDS = 5.0


def ask(state: StateDirectory, question: Callable[[Bus, Up], Awaitable[T]]) -> T:
    """Connect, run, disconnect. What goes wrong on the way is one sentence."""
    up = require_up(state)

    async def run() -> T:
        bus = JetStreamBus(state.bus(up.nats, "command"), name="sluice")
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await bus.__aenter__()
        except TimeoutError:
            raise Stop(f"nats-server does not answer; is `sluice up` still running? (its directory is {state.root})") from None
        try:
            return await question(bus, up)
        finally:
            await bus.__aexit__(None, None, None)

    try:
        return asyncio.run(run())
    except (BusError, Unreadable) as error:
        raise Stop(str(error)) from None


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
