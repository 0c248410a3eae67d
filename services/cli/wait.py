"""`sluice wait`: returns when everything the source holds now is live on all nodes."""

from __future__ import annotations

import time

import click
from msgspec import Struct

from services.cli import options
from services.cli.barrier import Barrier, Lack, Step, TimeUp
from services.cli.errors import Stop
from services.cli.running import ask, print_json
from services.cli.state import StateDirectory, Up
from services.shared.bus.port import Bus
from services.shared.contracts.problem import Problem
from services.shared.contracts.question import CoverAnswer


class Waited(Struct, frozen=True, kw_only=True):
    """The result, as --json prints it."""

    live: bool
    version: str = ""
    digest: str = ""
    seconds: float = 0.0
    step: str = ""
    """Where it ended, if not live: watcher, compiler, nodes, ingress."""
    reason: str = ""
    nodes: tuple[Lack, ...] = ()
    problems: tuple[Problem, ...] = ()
    """Why not; if live, the objects that could not be read or published: for all others it holds."""


@click.command("wait")
@options.state
@click.option("--for", "ingress", metavar="NAMESPACE/INGRESS", help="This Ingress in particular: it must be accepted, and live everywhere.")
@click.option("--timeout", default=30.0, show_default=True, type=click.FloatRange(min=0.1), help="Seconds.")
@options.as_json
def command(state: StateDirectory, ingress: str | None, timeout: float, as_json: bool) -> int:
    """Wait until everything the source holds now (files written an instant before included) is live on all nodes.

    Exit status 0 when it is; 1 with the reason on stderr otherwise. Single objects that cannot be published are named on stderr: for all
    others it holds.
    """
    if ingress is not None and ingress.count("/") != 1:
        raise Stop(f"--for takes namespace/ingress, for example default/shop; got {ingress!r}")
    began = time.monotonic()

    async def run(bus: Bus, up: Up) -> Waited:
        barrier = Barrier(bus, group=up.group, expected=[n.name for n in up.nodes], deadline=began + timeout)
        return await until_live(barrier, ingress or "", began)

    result = ask(state, run)
    if as_json:
        print_json(result)
    if not result.live:
        raise Stop(result.reason)
    if result.problems:
        click.echo(f"without {_words(result.problems)}", err=True)
    if not as_json:
        click.echo(f"version {result.version} is live on all nodes after {result.seconds * 1000:.0f} ms")
    return 0


async def until_live(barrier: Barrier, ingress: str, began: float) -> Waited:
    """The wait itself, until the barrier's deadline. `ingress` is empty: for everything."""
    try:
        source = await barrier.source()
        cover = await barrier.cover(source.sequence, ingress)
    except TimeUp as up:
        return _not(began, up.step, f"time is up: {up.detail}")
    if cover.error:
        return _not(began, Step.COMPILER, cover.error)
    own = tuple(p for p in source.problems if ingress and p.object == f"Ingress {ingress}")
    if own:
        return _not(began, "ingress", f"Ingress {ingress} is not published as it stands: {_words(own)}", own)
    if ingress and not cover.found:
        return _not(began, "ingress", f"Ingress {ingress} does not exist, is being deleted, or is not of our class", source.problems)
    lacking = await barrier.nodes(cover, cover.row_keys if ingress else None)
    if ingress and not cover.accepted:
        return _not(began, "ingress", f"Ingress {ingress} is not in effect: {_words(cover.problems)}", cover.problems)
    if lacking:
        words = "; ".join(f"{lack.node} {lack.reason}" for lack in lacking)
        return _not(began, Step.NODES, f"not live on all nodes: {words}", nodes=tuple(lacking))
    # One object that cannot be published keeps nobody else waiting; behind a file that cannot be read there may be anything.
    counting = tuple(p for p in source.problems if not p.of_one_object)
    if counting and not ingress:
        return _not(began, Step.WATCHER, f"not everything can be read: {_words(counting)}", source.problems, cover)
    if cover.pinned:
        return _not(began, Step.COMPILER, f"a rollback to version {cover.pinned} is pinned; `sluice rollback --release` ends it")
    return Waited(
        live=True,
        version=f"{cover.epoch}.{cover.number}",
        digest=cover.digest,
        seconds=time.monotonic() - began,
        problems=() if ingress else source.problems,
    )


def _not(
    began: float,
    step: str,
    reason: str,
    problems: tuple[Problem, ...] = (),
    cover: CoverAnswer | None = None,
    nodes: tuple[Lack, ...] = (),
) -> Waited:
    version = f"{cover.epoch}.{cover.number}" if cover else ""
    return Waited(
        live=False, version=version, step=str(step), reason=reason, problems=problems, nodes=nodes, seconds=time.monotonic() - began
    )


def _words(problems: tuple[Problem, ...]) -> str:
    return "; ".join(p.sentence() for p in problems if p.severity == "error") or "; ".join(p.sentence() for p in problems)
