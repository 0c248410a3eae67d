"""What a benchmark says: named figures with their targets, printed as a table and written as JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table


class Result(Struct, frozen=True, kw_only=True):
    """One figure, measured in one run."""

    name: str
    value: float
    unit: str
    target: str = ""
    """As text, `<= 5` or `>= 0.95`; empty: reported, not judged."""
    met: bool | None = None
    detail: str = ""


def judged(name: str, value: float, unit: str, sense: Literal["<=", ">="], bound: float, detail: str = "") -> Result:
    """A figure with a target."""
    met = value <= bound if sense == "<=" else value >= bound
    return Result(name=name, value=value, unit=unit, target=f"{sense} {bound:g}", met=met, detail=detail)


def reported(name: str, value: float, unit: str, detail: str = "") -> Result:
    """A figure without a target."""
    return Result(name=name, value=value, unit=unit, detail=detail)


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` (0..1) of the values lie, by the nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]


def show(results: list[Result]) -> None:
    table = Table(title="Sluice benchmarks")
    for column, justify in (
        ("name", "left"),
        ("value", "right"),
        ("unit", "left"),
        ("target", "left"),
        ("met", "left"),
        ("detail", "left"),
    ):
        table.add_column(column, justify="right" if justify == "right" else "left", overflow="fold")
    for r in results:
        met = "" if r.met is None else "yes" if r.met else "NO"
        table.add_row(r.name, f"{r.value:,.3g}" if r.value < 1000 else f"{r.value:,.0f}", r.unit, r.target, met, r.detail)
    Console(width=160).print(table)


def write(results: list[Result], path: Path) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")


Benchmark = Callable[[], list[Result]]
