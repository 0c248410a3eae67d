"""What `up` says while it works: one value an event, shown as coloured lines, plain lines or JSON lines."""

from __future__ import annotations

import abc
import contextlib
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
import msgspec

if TYPE_CHECKING:
    from rich.status import Status

Say = Callable[..., None]
"""`say("event", field=value, ...)`. Events and fields: docs/cli.md, `sluice up --json`."""


def teller(*, as_json: bool) -> Teller:
    """The way of showing that fits: JSON lines when asked for, rich on a terminal, plain lines elsewhere."""
    if as_json:
        return JsonLines()
    return Fancy() if sys.stdout.isatty() else Lines()


class Teller(abc.ABC):
    """Shows events."""

    @abc.abstractmethod
    def __call__(self, event: str, /, **fields: Any) -> None: ...

    def close(self) -> None:  # noqa: B027 - most have nothing to end
        """Before the process ends."""


class JsonLines(Teller):
    def __call__(self, event: str, /, **fields: Any) -> None:
        _write(msgspec.json.encode({"event": event, "at": round(time.time(), 3), **fields}).decode())


class Lines(Teller):
    def __call__(self, event: str, /, **fields: Any) -> None:
        text = sentence(event, fields)
        if text:
            _write(text)


class Fancy(Teller):
    """Lines with colours, and below them, until all is ready, what is still missing."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(highlight=False)
        self._status: Status | None = None

    def __call__(self, event: str, /, **fields: Any) -> None:
        if event == "waiting":
            self._spin(fields["for"])
            return
        text = sentence(event, fields)
        if event in ("ready", "stopping"):
            self.close()
        if text:
            style = {"exited": "yellow", "crash-loop": "bold red", "ready": "bold green", "warning": "yellow"}.get(event, "")
            self._console.print(text, style=style, markup=False, soft_wrap=True)

    def _spin(self, text: str) -> None:
        from rich.markup import escape

        if self._status is None:
            self._status = self._console.status("")
            self._status.start()
        self._status.update(escape(text))

    def close(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


def sentence(event: str, fields: dict[str, Any]) -> str:
    """For people; empty: not worth a line."""
    match event:
        case "started":
            again = f" again ({fields['lives']}. time)" if fields["lives"] > 1 else ""
            return f"{fields['process']} started{again}, pid {fields['pid']}"
        case "exited":
            return _with_tail(f"{fields['process']} ended: {fields['how']}; again in {fields['restart_in_seconds']:.1f} s", fields)
        case "crash-loop":
            text = f"{fields['process']} is in a crash loop: {fields['exits']} short lives in a row, {fields['how']}"
            return _with_tail(f"{text}; again in {fields['restart_in_seconds']:.1f} s; its log is {fields['log']}", fields)
        case "waiting":
            return f"waiting for {fields['for']}"
        case "ready":
            nodes = "\n".join(f"  {n['name']}  {n['http']}  {n['https']}  {n['health']}" for n in fields["nodes"])
            return f"ready after {fields['seconds']:.1f} s, version {fields['version']}, {fields['rows']} rows\n{nodes}"
        case "stopping":
            return f"stopping ({fields['why']})"
        case "stopped":
            return "stopped, no process is left"
        case _:
            return str(fields.get("text", ""))


def _with_tail(text: str, fields: dict[str, Any]) -> str:
    tail = "".join(f"\n    {line}" for line in str(fields.get("tail", "")).splitlines())
    return text + tail


def _write(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads any more, which is no reason to stop serving
        click.echo(text)
