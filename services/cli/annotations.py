"""`sluice annotations`: the registry as a table."""

from __future__ import annotations

import click
from msgspec import Struct

from services.cli import options
from services.cli.running import print_json, table
from services.compiler.annotations.families import ANNOTATIONS
from services.compiler.annotations.registry import PREFIX


class AnnotationInfo(Struct, frozen=True, kw_only=True):
    """One annotation, as --json prints it."""

    name: str
    default: str
    risk: str
    scope: str
    kind: str
    """`data`: live without a reload; `policy`: a combination that no route has yet costs one reload."""
    invalid: str
    """What an invalid value does."""
    example: str
    effect: str


@click.command("annotations")
@options.as_json
def command(as_json: bool) -> None:
    """Every annotation that is honoured: default, risk, scope, data or policy, effect."""
    found = [
        AnnotationInfo(
            name=PREFIX + a.name,
            default=_text(a.default),
            risk=str(a.risk),
            scope=a.scope,
            kind=a.kind,
            invalid=str(a.invalid),
            example=a.example,
            effect=a.effect,
        )
        for a in sorted(ANNOTATIONS.values(), key=lambda a: a.name)
    ]
    if as_json:
        print_json(found)
        return
    rows = [[a.name.removeprefix(PREFIX), a.default, a.risk, a.scope, a.kind, a.invalid, a.effect] for a in found]
    table(f"Annotations ({PREFIX}...)", ["name", "default", "risk", "scope", "kind", "an invalid value", "effect"], rows)


def _text(value: object) -> str:
    if value is None:
        return "ConfigMap"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
