"""What has happened to Ingresses, from verdicts, versions and node reports: what Events are to say.

Only what changes is news: what is there when following begins, or comes again after the bus was away, is not said.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection
from typing import Final, Literal

import msgspec
from msgspec import Struct

from services.shared.bus.port import Bus, CaughtUp, Message, Reset
from services.shared.contracts import subjects
from services.shared.contracts.problem import Problem, Reason, Verdict
from services.shared.contracts.report import NodeReport, decode_node_report
from services.shared.contracts.version import Manifest, VersionId
from services.shared.telemetry.lifecycle import until
from services.shared.versions.read import manifest_of
from services.watcher.status.ours import OurIngresses, hosts_of

PROBLEMS_SAID: Final = 3
"""Of one verdict; of more, how many they are."""
LIVE_SECONDS: Final = 10.0
"""At least so much between two `Live` of one Ingress."""
SETTLE_SECONDS: Final = 1.0
"""How long a version must be known before it is called live: the verdict of the same change may come after it."""
DEFERRED_SECONDS: Final = 10.0
"""How long a host must wait for a policy before it is said: a reload takes less."""
TICK_SECONDS: Final = 1.0
ON_THEIR_WAY: Final = 10_000
"""Ingresses whose change is on its way to the nodes; of more the newest are not announced."""

Place = tuple[str, str]
"""(namespace, name) of an Ingress."""


class Note(Struct, frozen=True, kw_only=True):
    """One thing to say of one Ingress."""

    namespace: str
    name: str
    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    at: float
    """Monotonic."""
    topic: str = ""
    """Notes of one reason and topic are one Event with the newest message; empty: each message is an Event of its own."""
    lasting: bool = False
    """It may have been said before, by whichever leader: not again where the Event has this message."""


class News:
    """`follow` whether leading or not: who takes over knows what was said last. `say` gets each note once."""

    def __init__(self, bus: Bus, ours: OurIngresses, say: Callable[[Note], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._bus = bus
        self._ours = ours
        self._take = say
        self._clock = clock
        self._verdicts: dict[str, Verdict] = {}
        self._rejected: set[Place] = set()
        self._unpublished: frozenset[Problem] = frozenset()
        self._on_their_way: dict[Place, tuple[dict[str, VersionId], float]] = {}
        """Group of nodes -> version, and since when."""
        self._live_said: dict[Place, float] = {}
        self._nodes: dict[str, NodeReport] = {}
        self._deferred: dict[tuple[str, str], float] = {}
        """(node, row) -> since when it waits."""
        self._deferred_said: set[str] = set()

    async def follow(self) -> None:
        """For ever."""
        await until(asyncio.Event(), self._follow_verdicts(), self._follow_versions(), self._follow_nodes(), self._ticks())

    async def _ticks(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.tick()

    def _say(
        self, place: Place, type_: Literal["Normal", "Warning"], reason: str, message: str, topic: str = "", *, lasting: bool = False
    ) -> None:
        namespace, name = place
        note = Note(
            namespace=namespace, name=name, type=type_, reason=reason, message=message, at=self._clock(), topic=topic, lasting=lasting
        )
        self._take(note)

    # --- what never comes to the compilers, and so has no verdict

    def take_refused(self, problems: Collection[Problem]) -> None:
        """All that the bus does not take now. A new leader learns it as if it were news."""
        for problem in sorted(set(problems) - self._unpublished, key=lambda p: p.object):
            kind, _, name = problem.object.partition(" ")
            if kind == "Ingress":
                namespace, _, name = name.partition("/")
                self._say((namespace, name), "Warning", "Rejected", words(problem), topic="unpublished", lasting=True)
        self._unpublished = frozenset(problems)

    # --- verdicts

    async def _follow_verdicts(self) -> None:
        known = False
        async with contextlib.aclosing(self._bus.watch(subjects.VERDICTS_BUCKET)) as entries:
            async for entry in entries:
                if isinstance(entry, CaughtUp):
                    known = True
                else:
                    self.take_verdict(entry.key, entry.value, quiet=not known)

    def take_verdict(self, key: str, value: bytes | None, *, quiet: bool = False) -> None:
        """An entry of bucket `verdicts`; None: no problem is left. `quiet`: it was there before."""
        former = self._verdicts.pop(key, None)
        if former is not None:
            self._rejected.discard((former.namespace, former.name))
        verdict = _verdict(value)
        if verdict is None:
            return
        self._verdicts[key] = verdict
        if not verdict.accepted:
            self._rejected.add((verdict.namespace, verdict.name))
        if not quiet:
            self._say_verdict(verdict, former)

    def _say_verdict(self, verdict: Verdict, former: Verdict | None) -> None:
        place = (verdict.namespace, verdict.name)
        before = set(former.problems) if former is not None and former.accepted == verdict.accepted else set()
        new = [p for p in verdict.problems if p not in before]
        if not verdict.accepted and not verdict.problems:
            self._say(place, "Warning", "Rejected", "it is not in effect")
        for problem in new[:PROBLEMS_SAID]:
            self._say(place, "Warning", _reason(verdict, problem), words(problem))
        if len(new) > PROBLEMS_SAID:
            more = f"and {len(new) - PROBLEMS_SAID} more problems; `sluice status` has them all"
            self._say(place, "Warning", "Rejected" if not verdict.accepted else "MoreProblems", more, topic="more")

    # --- versions and nodes

    async def _follow_versions(self) -> None:
        known = False
        follower = self._bus.follow(subjects.CONFIG_STREAM, subjects.CONFIG_SUBJECTS, last_only=True)
        async with contextlib.aclosing(follower) as items:
            async for item in items:
                if isinstance(item, Reset):
                    known = False
                elif isinstance(item, CaughtUp):
                    known = True
                elif isinstance(item, Message) and known and (manifest := manifest_of(item)) is not None:
                    self.take_version(manifest)

    def take_version(self, manifest: Manifest) -> None:
        """A new version: the Ingresses whose change it brings are on their way."""
        for cause in manifest.causes:
            place = (cause.namespace, cause.name)
            if cause.kind != "Ingress" or cause.op != "upsert" or (place not in self._on_their_way and self._full):
                continue
            versions, _ = self._on_their_way.get(place, ({}, 0.0))
            self._on_their_way[place] = (versions | {manifest.group: manifest.id}, self._clock())

    @property
    def _full(self) -> bool:
        return len(self._on_their_way) >= ON_THEIR_WAY

    async def _follow_nodes(self) -> None:
        async with contextlib.aclosing(self._bus.watch(subjects.NODES_BUCKET)) as entries:
            async for entry in entries:
                if not isinstance(entry, CaughtUp):
                    self.take_report(entry.key, entry.value)

    def take_report(self, key: str, value: bytes | None) -> None:
        """An entry of bucket `nodes`; None: the node is gone or silent."""
        report = None
        if value is not None:
            with contextlib.suppress(msgspec.DecodeError):
                report = decode_node_report(value)
        self._nodes.pop(key, None)
        waiting = {row.key for row in report.deferred} if report is not None else set()
        self._deferred = {k: since for k, since in self._deferred.items() if k[0] != key or k[1] in waiting}
        if report is not None:
            self._nodes[key] = report
            for row in waiting:
                self._deferred.setdefault((key, row), self._clock())

    # --- what takes time

    def tick(self) -> None:
        """Once a second: say what has become true, or has been so for long enough."""
        now = self._clock()
        self._live_said = {place: at for place, at in self._live_said.items() if now - at < LIVE_SECONDS}
        self._say_deferred()
        self._say_live()

    def _say_deferred(self) -> None:
        now = self._clock()
        lasting = {row for (_, row), since in self._deferred.items() if now - since >= DEFERRED_SECONDS}
        for row in sorted(lasting - self._deferred_said):
            nodes = [n for n in self._nodes.values() if any(d.key == row for d in n.deferred)]
            policies = {d.policy for n in nodes for d in n.deferred if d.key == row}
            refusals = {n.refused[p] for n in nodes for p in policies if p in n.refused}
            why = f": {min(refusals)}" if refusals else ", which lack a policy that it needs"
            host = row.removeprefix("h/")
            message = f"host {host} keeps its previous form on {len(nodes)} of {len(self._nodes)} nodes{why}"
            for ingress in self._ours.with_host(host):
                self._say((ingress.metadata.namespace, ingress.metadata.name), "Warning", "Deferred", message, topic=row)
        self._deferred_said = lasting

    def _say_live(self) -> None:
        now = self._clock()
        everywhere: dict[str, VersionId] = {}
        for node in self._nodes.values():
            version = VersionId(node.epoch, node.number)
            everywhere[node.group] = min(everywhere.get(node.group, version), version)
        for place, (versions, since) in list(self._on_their_way.items()):
            there = all(group in everywhere and version <= everywhere[group] for group, version in versions.items())
            if not there or now - since < SETTLE_SECONDS:
                continue
            ingress = self._ours.get(*place)
            if ingress is None or place in self._rejected:
                del self._on_their_way[place]
            elif place not in self._live_said and not self._waits(hosts_of(ingress)):
                del self._on_their_way[place]
                self._live_said[place] = now
                nodes = sum(node.group in versions for node in self._nodes.values())
                shown = " and ".join(str(version) for _, version in sorted(versions.items()))
                on = f"all {nodes} nodes" if nodes > 1 else "the one node there is"
                self._say(place, "Normal", "Live", f"live on {on} as of version {shown}", topic="live")

    def _waits(self, hosts: set[str]) -> bool:
        """Whether a node waits with one of these hosts. A report names at most 100 of its rows: with more any may be one."""
        deferred = [n for n in self._nodes.values() if n.deferred_count]
        return any(n.deferred_count > len(n.deferred) or any(d.key.removeprefix("h/") in hosts for d in n.deferred) for n in deferred)


def _verdict(value: bytes | None) -> Verdict | None:
    if value is None:
        return None
    try:
        verdict = msgspec.json.decode(value, type=Verdict)
    except msgspec.DecodeError:
        return None
    return verdict if verdict.kind == "Ingress" else None


def _reason(verdict: Verdict, problem: Problem) -> str:
    if problem.reason is Reason.REFUSED_BY_NGINX:
        return "Quarantined"
    return "Rejected" if not verdict.accepted and problem.severity == "error" else str(problem.reason)


def words(problem: Problem) -> str:
    """Field, problem, good value."""
    example = f" (for example: {problem.example})" if problem.example else ""
    return f"{problem.field}: {problem.message}{example}"
