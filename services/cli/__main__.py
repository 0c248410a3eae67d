"""The wiring of the `sluice` command: names to modules, each imported only when it is asked for."""

from __future__ import annotations

import importlib
import sys
from typing import Final

import click

from services.cli.errors import FAILED

COMMANDS: Final[dict[str, str]] = {
    "up": "Run everything on this machine: nats-server, watcher, compiler, webhook, and nodes with their nginx.",
    "status": "What runs where: nodes and versions, deferred rows, errors, problems of objects.",
    "wait": "Wait until everything the source holds now is live on all nodes.",
    "history": "The versions that are kept, newest first, and what caused them.",
    "diff": "What changed between two versions: objects, policies, rows.",
    "rollback": "Return to an older version's content, or release that.",
    "explain": "Which Ingress, rule, policy and backend answer a URL, and why.",
    "trace": "One change's way to every node, phase by phase, in milliseconds.",
    "validate": "What admission would say of these files, without a running sluice.",
    "compile": "Compile a directory of manifests to IR, nginx text or table rows, without a running sluice.",
    "keys": "The keys that secrets are sealed with on the bus: list, rotate; a release's secrets: create.",
    "node": "Shut a lost edge node out (revoke), or let it in again (admit).",
    "certgen": "Make the admission certificate in a cluster (create), and have the API server trust it (patch).",
    "annotations": "Every annotation that is honoured: type, default, risk, scope, effect.",
    "watcher": "Run a watcher (one process of `up`).",
    "compiler": "Run a compiler (one process of `up`).",
    "applier": "Run an applier with its nginx (one process of `up`).",
    "webhook": "Run the admission webhook (one process of `up`).",
}
"""Module `services.cli.<name>` holds `command`."""


class Commands(click.Group):
    """Imports nothing before it knows what is asked for: `sluice wait` is in scripts' loops."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        found = importlib.import_module(f"services.cli.{cmd_name}").command
        return found if isinstance(found, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="sluice-ingress", prog_name="sluice")
def sluice() -> None:
    """Sluice: from Ingress objects to live traffic on many nginx nodes, without a reload.

    Commands find a running `sluice up` by --state DIR or the default directory. Exit status: 0 it is so, 1 it is not (the reason is
    on stderr), 2 the command line is wrong.
    """


def main() -> None:
    """Mistakes of the user end in one sentence; only a bug shows a traceback."""
    try:
        result = sluice.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "sluice"
        click.echo(f"{where}: {error.format_message()} (see {where} --help)", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader is gone, `| head` for example: nothing to say to nobody
        sys.exit(FAILED)
    sys.exit(result if isinstance(result, int) else 0)


if __name__ == "__main__":
    main()
