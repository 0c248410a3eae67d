"""How a command ends when it cannot do what was asked: one sentence on stderr, exit status 1."""

from __future__ import annotations

import sys
from typing import IO, Any

import click

FAILED = 1
"""Exit status: what was asked for is not so, or could not be done; the reason is on stderr."""


class Stop(click.ClickException):
    """The sentence says what is wrong and what helps."""

    exit_code = FAILED

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"sluice: {self.message}", file=file or sys.stderr)
