"""Keeps one group's gate in the bucket `rollouts`: versions and reports in; what the state machine makes of them out, published."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Final

import msgspec
from msgspec.structs import replace

from services.compiler.rollout import Rollout
from services.shared.bus.port import Bus, BusError, CaughtUp, Conflict, Message, Reset
from services.shared.contracts.identity import decode_identity
from services.shared.contracts.report import NodeReport, decode_node_report
from services.shared.contracts.rollout import Gate, decode_gate, encode_gate
from services.shared.contracts.subjects import (
    CONFIG_STREAM,
    IDENTITIES_BUCKET,
    NODES_BUCKET,
    ROLLOUTS_BUCKET,
    bucket_subject,
    config_subject,
    token,
)
from services.shared.contracts.version import Manifest, decode_bundle
from services.shared.telemetry.logs import get_logger
from services.shared.versions.read import Unreadable, manifest_of

log = get_logger(__name__)

AUDIT_SECONDS: Final = 60.0
"""Between two looks whether the bus still has the gate."""
RETRY_SECONDS: Final = 0.5
UNREADABLE: Final = (msgspec.DecodeError, RecursionError)


class Gatekeeper:
    """One compiler's. Several may run: what each writes, it writes over what it has read (compare-and-set)."""

    def __init__(self, bus: Bus, group: str, rollout: Rollout, heard: Callable[[NodeReport], Awaitable[None]]) -> None:
        """`heard` is told of each report of the group's nodes, once all that there were are known."""
        self._heard = heard
        self._bus = bus
        self._group = group
        self._subject = bucket_subject(ROLLOUTS_BUCKET, token(group))
        self._rollout = rollout
        self._head: Manifest | None = None
        self._nodes: dict[str, NodeReport] = {}
        """Bucket key -> the report of a live node."""
        self._reports = asyncio.Event()
        """All reports there were have been heard."""
        self._wake = asyncio.Event()
        self._stored: Gate | None = None
        self._revision: int | None = None
        """Of what is stored, 0: nothing; None: to be looked up."""
        self._resumed = False

    def tasks(self) -> tuple[Coroutine[None, None, None], ...]:
        return self._follow_versions(), self._watch_nodes(), self._run()

    @property
    def waiting(self) -> int:
        """Policies that are not open to all nodes yet, the halted ones included."""
        return len(self._rollout.gate.waiting) if self._rollout.gate else 0

    @property
    def halted(self) -> int:
        return sum(bool(w.halted) for w in self._rollout.gate.waiting.values()) if self._rollout.gate else 0

    @property
    def nodes(self) -> int:
        """How many report."""
        return len(self._nodes)

    async def _follow_versions(self) -> None:
        subject = config_subject(self._group)
        async with contextlib.aclosing(self._bus.follow(CONFIG_STREAM, subject, last_only=True)) as items:
            async for item in items:
                if isinstance(item, Reset):
                    self._revision = None
                elif isinstance(item, Message):
                    self._head = manifest_of(item) or self._head
                self._wake.set()

    async def _watch_nodes(self) -> None:
        async with contextlib.aclosing(self._bus.watch(NODES_BUCKET)) as entries:
            async for entry in entries:
                if isinstance(entry, CaughtUp):
                    self._reports.set()
                    news = list(self._nodes.values())
                else:
                    noted = self._note(entry.key, entry.value)
                    news = [noted] if noted is not None and self._reports.is_set() else []
                self._wake.set()
                for report in news:
                    await self._heard(report)

    def _note(self, key: str, value: bytes | None) -> NodeReport | None:
        report = None
        if value is not None:
            try:
                report = decode_node_report(value)
            except UNREADABLE as error:
                log.error("a node's report could not be read", key=key, error=error)
        # a node may write its own key only, whatever name it gives itself inside
        if report is not None and report.group == self._group and token(report.node) == key:
            self._nodes[key] = report
            return report
        self._nodes.pop(key, None)
        return None

    def runs_elsewhere(self, policy: str, node: str) -> bool:
        """Whether another node runs a policy of the head: then it is no word of `node` that makes it a bad one."""
        head = self._head
        return head is not None and any(
            n.node != node and n.ready and n.policy_digest == head.policy_digest and policy not in (*n.unloaded, *n.refused)
            for n in self._nodes.values()
        )

    async def _run(self) -> None:
        await self._reports.wait()
        while True:
            self._wake.clear()
            due: float | None
            try:
                due = await self._step()
            except (BusError, Unreadable) as error:
                log.warning("the rollout cannot go on yet", error=error)
                due = time.monotonic() + RETRY_SECONDS
            seconds = AUDIT_SECONDS if due is None else max(0.0, due - time.monotonic())
            try:
                async with asyncio.timeout(seconds):
                    await self._wake.wait()
            except TimeoutError:
                self._revision = self._revision if due is not None else None

    async def _step(self) -> float | None:
        """Returns when to look again, monotonic seconds; None: when something is heard."""
        head = self._head
        if head is None:
            return None
        if not self._resumed:
            await self._resume()
        if not self._rollout.follows(head):
            self._rollout.take(head, await self._policies(head.policy_digest))
        due = self._rollout.step({n.node: n for n in self._nodes.values()}, time.monotonic())
        await self._publish(head)
        return due

    async def _resume(self) -> None:
        identities = (await self._bus.entries(IDENTITIES_BUCKET)).values()
        for value in identities:
            with contextlib.suppress(*UNREADABLE):
                identity = decode_identity(value)
                if identity.group == self._group:
                    self._rollout.know([identity.node])
        await self._look()
        if self._stored is not None:
            try:
                policies = await self._policies(self._stored.policy_digest)
            except Unreadable:
                policies = {}
            self._rollout.resume(self._stored, policies)
        self._resumed = True

    async def _policies(self, digest: str) -> dict[str, str]:
        """Hash -> scope. Raises Unreadable."""
        data = await self._bus.get_blob(digest)
        if data is None:
            raise Unreadable(f"the policies {digest[:12]} are not stored")
        try:
            return {p.hash: p.scope for p in decode_bundle(data).policies}
        except UNREADABLE as error:
            raise Unreadable(f"the policies {digest[:12]} cannot be decoded") from error

    async def _look(self) -> None:
        found = await self._bus.last(f"KV_{ROLLOUTS_BUCKET}", self._subject)
        self._revision, self._stored = (found.sequence, None) if found is not None else (0, None)
        if found is not None:
            try:
                self._stored = decode_gate(found.payload)
            except UNREADABLE as error:
                log.error("the stored gate cannot be read; it is replaced", error=error)

    async def _publish(self, head: Manifest) -> None:
        """Store the gate where another one is stored, unless that is of a newer version: its compiler is ahead."""
        while True:
            if self._revision is None:
                await self._look()
            gate, stored = self._rollout.gate, self._stored
            if gate is None or (stored is not None and (stored.id > head.id or _same(gate, stored))):
                return
            gate = replace(gate, epoch=head.epoch, number=head.number)
            try:
                self._revision = await self._bus.publish(self._subject, encode_gate(gate), expected_last=self._revision)
            except Conflict:
                await self._look()
                if self._stored is not None:
                    self._rollout.merge(self._stored)
                continue
            except BusError:
                self._revision = None  # it may have been stored
                raise
            self._stored = gate
            steps = {p: f"halted by {w.halted}" if w.halted else f"{w.percent} %" for p, w in gate.waiting.items()}
            log.info("rollout", bundle=gate.policy_digest[:12], canaries=" ".join(gate.canaries), **steps)


def _same(gate: Gate, stored: Gate) -> bool:
    """Whichever versions they were made for."""
    return replace(gate, epoch=stored.epoch, number=stored.number) == stored
