"""Events on Ingresses, as `kubectl describe` shows them: what was refused and why, and when a change is live on every node.

An Event's name is made of its object, reason and message: the same thing said again only counts, by whichever leader. What was wrong
before this process looked is not said again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections import deque
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec

from services.shared.bus.port import Bus, CaughtUp, Message
from services.shared.contracts import subjects
from services.shared.contracts.problem import Problem, Verdict, printable
from services.shared.contracts.report import NodeReport, decode_node_report
from services.shared.contracts.version import VersionId
from services.shared.kube.client import Api, ApiError, KubeError
from services.shared.telemetry.lifecycle import until
from services.shared.telemetry.logs import get_logger
from services.shared.versions.read import manifest_of

log = get_logger(__name__)

MESSAGE_CHARACTERS: Final = 1000
"""The API takes 1,024."""
WAITING: Final = 1000
"""Events that wait to be written; of more the oldest are dropped."""
PER_SECOND: Final = 20
LIVE_WAITING: Final = 10_000
"""Ingresses whose change is on its way; of more the newest are not announced."""
CONFLICT: Final = 409

Type = Literal["Normal", "Warning"]


class EventWriter:
    """`run` while leading."""

    def __init__(self, api: Api, bus: Bus, reporter: str) -> None:
        self._api = api
        self._bus = bus
        self._reporter = reporter
        self._waiting: deque[dict[str, Any]] = deque(maxlen=WAITING)
        self._wake = asyncio.Event()
        self._on_its_way: dict[tuple[str, str], VersionId] = {}
        self._uids: dict[tuple[str, str], str] = {}
        self._nodes: dict[str, NodeReport] = {}

    async def run(self) -> None:
        """For ever; cancelled when leadership ends."""
        await until(asyncio.Event(), self._follow_verdicts(), self._follow_versions(), self._follow_nodes(), self._write())

    def note(self, namespace: str, name: str, uid: str) -> None:
        """An Ingress's uid; empty: it is gone. Without it `kubectl describe` does not find its Events."""
        if uid:
            self._uids[(namespace, name)] = uid
        else:
            self._uids.pop((namespace, name), None)
            self._on_its_way.pop((namespace, name), None)

    # --- what is said

    async def _follow_verdicts(self) -> None:
        known = False
        async with contextlib.aclosing(self._bus.watch(subjects.VERDICTS_BUCKET)) as entries:
            async for entry in entries:
                if isinstance(entry, CaughtUp):
                    known = True
                elif known and entry.value is not None:
                    self._say_verdict(entry.value)

    def _say_verdict(self, value: bytes) -> None:
        with contextlib.suppress(msgspec.DecodeError):
            verdict = msgspec.json.decode(value, type=Verdict)
            if verdict.kind != "Ingress":
                return
            for problem in verdict.problems[:3]:
                reason = "Rejected" if not verdict.accepted and problem.severity == "error" else str(problem.reason)
                self._say(verdict.namespace, verdict.name, "Warning", reason, _words(problem))

    async def _follow_versions(self) -> None:
        known = False
        async with contextlib.aclosing(self._versions()) as messages:
            async for item in messages:
                if isinstance(item, CaughtUp):
                    known = True
                elif known and (manifest := manifest_of(item)) is not None:
                    for cause in manifest.causes:
                        if cause.kind == "Ingress" and cause.op == "upsert" and len(self._on_its_way) < LIVE_WAITING:
                            self._on_its_way[(cause.namespace, cause.name)] = manifest.id
                    self._say_live()

    async def _versions(self) -> AsyncGenerator[Message | CaughtUp, None]:
        follower = self._bus.follow(subjects.CONFIG_STREAM, subjects.CONFIG_SUBJECTS, last_only=True)
        async with contextlib.aclosing(follower) as items:
            async for item in items:
                if isinstance(item, Message | CaughtUp):
                    yield item

    async def _follow_nodes(self) -> None:
        async with contextlib.aclosing(self._bus.watch(subjects.NODES_BUCKET)) as entries:
            async for entry in entries:
                if isinstance(entry, CaughtUp):
                    continue
                self._nodes.pop(entry.key, None)
                if entry.value is not None:
                    with contextlib.suppress(msgspec.DecodeError):
                        self._nodes[entry.key] = decode_node_report(entry.value)
                self._say_live()

    def _say_live(self) -> None:
        """What every node has, with nothing deferred."""
        if not self._on_its_way or not self._nodes or any(n.deferred_count for n in self._nodes.values()):
            return
        everywhere = min(VersionId(n.epoch, n.number) for n in self._nodes.values())
        for place, version in list(self._on_its_way.items()):
            if version <= everywhere:
                del self._on_its_way[place]
                self._say(*place, "Normal", "Live", f"live on all {len(self._nodes)} nodes as of version {version}")

    def _say(self, namespace: str, name: str, type_: Type, reason: str, message: str) -> None:
        message = printable(message)[:MESSAGE_CHARACTERS]
        uid = self._uids.get((namespace, name), "")
        digest = hashlib.sha256("\0".join((uid, type_, reason, message)).encode()).hexdigest()[:16]
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._waiting.append(
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": f"{name[:200]}.{digest}", "namespace": namespace},
                "involvedObject": {
                    "kind": "Ingress", "apiVersion": "networking.k8s.io/v1", "namespace": namespace, "name": name, "uid": uid
                },
                "type": type_,
                "reason": reason,
                "message": message,
                "source": {"component": "sluice"},
                "reportingComponent": "sluice",
                "reportingInstance": self._reporter,
                "firstTimestamp": now,
                "lastTimestamp": now,
                "count": 1,
            }
        )  # fmt: skip
        self._wake.set()

    # --- writing

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                began = time.monotonic()
                event = self._waiting.popleft()
                try:
                    await self._store(event)
                except KubeError as error:
                    # An Event is news: it is not kept for later.
                    log.warning("an Event could not be written", object=event["metadata"]["name"], error=error)
                await asyncio.sleep(max(0.0, 1 / PER_SECOND - (time.monotonic() - began)))

    async def _store(self, event: dict[str, Any]) -> None:
        path = f"/api/v1/namespaces/{event['metadata']['namespace']}/events"
        try:
            await self._api.request("POST", path, body=event)
        except ApiError as error:
            if error.status != CONFLICT:
                raise
            name = f"{path}/{event['metadata']['name']}"
            count = msgspec.json.decode(await self._api.request("GET", name)).get("count") or 1
            body = {"count": count + 1, "lastTimestamp": event["lastTimestamp"]}
            await self._api.request("PATCH", name, body=body, content_type="application/merge-patch+json")


def _words(problem: Problem) -> str:
    example = f" (for example: {problem.example})" if problem.example else ""
    return f"{problem.field}: {problem.message}{example}"
