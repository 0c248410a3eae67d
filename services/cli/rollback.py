"""`sluice rollback N`: a new version with the old content, pinned until `--release`."""

from __future__ import annotations

import click
import msgspec

from services.cli import options
from services.cli.errors import Stop
from services.cli.running import ask, print_json
from services.cli.state import StateDirectory, Up
from services.shared.bus.port import Bus
from services.shared.contracts.question import RollbackAnswer, RollbackQuestion
from services.shared.contracts.subjects import ASK_COMPILER_ROLLBACK, of_group
from services.shared.contracts.version import VersionId


@click.command("rollback")
@click.argument("version", type=options.VersionParameter(), required=False)
@click.option("--release", is_flag=True, help="End the rollback: live changes apply again.")
@options.state
@options.as_json
def command(version: VersionId | None, release: bool, state: StateDirectory, as_json: bool) -> None:
    """Commit a new version with the content of VERSION (1.88 or 88), and hold live changes back until `sluice rollback --release`."""
    if (version is None) == (not release):
        raise click.UsageError("give a version number, or --release")

    async def run(bus: Bus, up: Up) -> RollbackAnswer:
        wanted = version or VersionId(0, 0)
        question = RollbackQuestion(number=wanted.number, epoch=wanted.epoch, release=release)
        answer = await bus.request(of_group(ASK_COMPILER_ROLLBACK, up.group), msgspec.json.encode(question), timeout=60)
        return msgspec.json.decode(answer, type=RollbackAnswer)

    answer = ask(state, run)
    if as_json:
        print_json(answer)
    if answer.error:
        raise Stop(answer.error)
    if not as_json:
        what = "live changes apply again" if release else f"it has the content of version {version.number if version else 0}, pinned"
        click.echo(f"version {answer.epoch}.{answer.number}: {what}")
