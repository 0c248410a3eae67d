"""`sluice validate FILE...`: what admission would say, offline."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from msgspec import Struct

from services.cli import options
from services.cli.errors import FAILED
from services.cli.offline import compiled_files
from services.cli.running import print_json
from services.compiler.admission import admit
from services.shared.contracts.problem import Problem
from services.shared.contracts.question import AdmissionQuestion
from services.shared.flags import Flags


class Validated(Struct, frozen=True, kw_only=True):
    """One Ingress, as --json prints it; or, with an empty name, what could not be read."""

    namespace: str
    name: str
    allowed: bool
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]


@click.command("validate")
@click.argument("files", nargs=-1, required=True, type=options.path(exists=True), metavar="FILE...")
@options.flags
@options.as_json
def command(files: tuple[Path, ...], flags: Flags, as_json: bool) -> int:
    """What admission would say of the Ingresses in these files or directories, taken together. Exit status 1 if one would be refused."""
    engine, unreadable, ingresses = compiled_files(files, flags)
    results = []
    if unreadable:
        results.append(Validated(namespace="", name="", allowed=False, problems=unreadable, warnings=()))
    for ingress in ingresses:
        meta = ingress.metadata
        question = AdmissionQuestion(namespace=meta.namespace, name=meta.name, operation="CREATE", object=msgspec.to_builtins(ingress))
        answer = admit(engine, question)
        results.append(
            Validated(namespace=meta.namespace, name=meta.name, allowed=answer.allowed, problems=answer.problems, warnings=answer.warnings)
        )
    if as_json:
        print_json(results)
    else:
        for result in results:
            _show(result)
    return 0 if all(r.allowed for r in results) else FAILED


def _show(result: Validated) -> None:
    who = f"Ingress {result.namespace}/{result.name}" if result.name else "not readable"
    click.echo(f"{who}: {'allowed' if result.allowed else 'REFUSED'}")
    for problem in result.problems:
        click.echo(f"  error: {problem.sentence()}")
    for problem in result.warnings:
        click.echo(f"  warning: {problem.sentence()}")
