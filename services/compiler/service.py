"""The compiler as a service: deltas from the bus, versions onto it. What it knows is in `state`; questions are in `answer`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from services.compiler.answer import Answers
from services.compiler.commit import Change, Committer
from services.compiler.crashes import Crashes
from services.compiler.engine import Engine, Output
from services.compiler.gatekeeper import Gatekeeper
from services.compiler.hold import BETWEEN_SECONDS, quiet
from services.compiler.keys import Keys
from services.compiler.rollout import SOAK_SECONDS, Rollout
from services.compiler.state import State
from services.compiler.verdicts import Verdicts
from services.shared.bus.address import BusAddress
from services.shared.bus.port import Bus, BusError, CaughtUp, Message, Reset
from services.shared.contracts import subjects
from services.shared.contracts.delta import Delta, SyncMark, decode_delta, decode_sync_mark
from services.shared.contracts.report import NodeReport
from services.shared.contracts.version import Cause, VersionId
from services.shared.flags import Flags
from services.shared.sealing.material import open_delta
from services.shared.sealing.ring import CannotOpen
from services.shared.telemetry import lifecycle, tracing
from services.shared.telemetry.health import Health, Samples
from services.shared.telemetry.logs import get_logger

log = get_logger(__name__)

RESYNC_SECONDS = 5.0
"""Between two requests to the watcher."""
RETRY_SECONDS = 0.2
AUDIT_SECONDS = 60.0
"""Between two looks whether the bus still has what the head needs."""
CAUSES_KEPT = 1000
"""While a rollback holds them back; the newest."""

UNREADABLE = (msgspec.DecodeError, RecursionError)
"""What bytes that are no message of ours raise, however they came to be there."""


class CompilerOptions(Struct, frozen=True, kw_only=True):
    """What a compiler can be told."""

    bus: BusAddress = BusAddress()
    seal_keys: Path
    """The directory of `keys.json`: what Secrets and rows are sealed with."""
    name: str = "compiler"
    """In NATS' list of connections, and in logs; distinct for each compiler."""
    health_port: int = 0
    """`/healthz`, `/readyz`, `/metrics`; 0: none."""
    group: str = "default"
    flags: Flags = Flags()
    rollout_soak_seconds: float = SOAK_SECONDS
    canary_nodes: tuple[str, ...] = ()
    """Which nodes get new policies first; none: one is chosen."""
    any_address: bool = True
    """Endpoints may be loopback or link-local: the manifests source's owner decides; off for clusters."""
    nodes_here: int = 1
    """How many nodes share a machine, node i on each port + i."""
    crash_notes: Path | None = None
    """A directory of this compiler's own that outlives the process. None: an object that kills it does so each time."""


class _Waiting(Struct, frozen=True):
    delta: Delta
    sequence: int
    trace: str


class Compiler:
    """One compiler process for one group of nodes."""

    def __init__(self, bus: Bus, options: CompilerOptions) -> None:
        self._bus = bus
        self._options = options
        self._keys = Keys(bus, options.group, options.seal_keys)
        self._crashes = Crashes(options.crash_notes)
        self._state = State(self._new_engine(), Committer(bus, options.group, self._keys.group, staged=True), self._crashes)
        self._verdicts = Verdicts(bus, options.group)
        rollout = Rollout(soak_seconds=options.rollout_soak_seconds, canaries=options.canary_nodes)
        self._gatekeeper = Gatekeeper(bus, options.group, rollout, self._heard)
        self._inbox: list[_Waiting] = []
        self._locked: dict[str, Message] = {}
        """Subject -> a Secret whose key is not here yet."""
        self._mark: SyncMark | None = None
        self._received = 0
        """The last CLUSTER sequence that arrived."""
        self._compiled_before = 0
        """What came up to this sequence is in the version that stood at the start; only counted where that matters to `_crashes`."""
        self._wake = asyncio.Event()
        self._next_version = 0.0
        """When it may be made, in monotonic time."""
        self._suspect = asyncio.Event()
        """The stored versions are in doubt: audit now."""
        self._causes: list[Cause] = []
        self._asked_resync = -RESYNC_SECONDS
        self._resync: asyncio.Task[None] | None = None
        self._serving: list[Callable[[], Awaitable[None]]] = []

    def unready(self) -> str:
        """Why it cannot do its work."""
        return "" if self._state.synced else "the cluster's state is not complete yet"

    def samples(self) -> Samples:
        """For metrics."""
        state, head = self._state, self._state.committer.head
        return {
            "synced": state.synced,
            "epoch": head.epoch if head else 0,
            "version": head.number if head else 0,
            "rows": head.rows if head else 0,
            "pinned": state.committer.pinned,
            "waiting": len(self._inbox),
            "locked_secrets": len(self._locked),
            "policies_in_rollout": self._gatekeeper.waiting,
            "policies_halted": self._gatekeeper.halted,
            "left_alone": self._crashes.left_alone,
        }

    def _new_engine(self) -> Engine:
        options = self._options
        return Engine(options.flags, any_address=options.any_address, nodes=options.nodes_here, crashes=self._crashes)

    async def run(self, stop: asyncio.Event) -> None:
        await lifecycle.until(stop, self._start())
        try:
            if not stop.is_set():
                work = (
                    self._follow(),
                    self._follow_versions(),
                    self._audit(),
                    self._work(),
                    *self._gatekeeper.tasks(),
                )
                await lifecycle.until(stop, *work, self._keys.follow_file(self._unlock, self._seal_anew), *self._keys.handing_out())
        finally:
            for end in self._serving:
                await end()
            await self._state.committer.close()

    async def _start(self) -> None:
        """Take up where the stream ends, as soon as there is one to read."""
        answers = Answers(self._options.group, self._state, lambda: self._causes)
        while True:
            try:
                await self._bus.ensure()
                await self._state.committer.start()
                if self._crashes.doubtful:
                    self._crashes.doubtful -= await self._verdicts.refused()
                    head = self._state.committer.head
                    self._compiled_before = head.covers if head else 0
                for subject, handler in answers.handlers()[len(self._serving) :]:
                    self._serving.append(await self._bus.serve(subject, handler, queue="compiler"))
                return
            except BusError as error:
                log.warning("cannot read what is stored yet", error=error)
                await asyncio.sleep(RETRY_SECONDS)

    # --- deltas in

    async def _follow(self) -> None:
        async with contextlib.aclosing(self._bus.follow(subjects.CLUSTER_STREAM, subjects.CLUSTER_SUBJECTS, last_only=True)) as items:
            async for item in items:
                if isinstance(item, Reset):
                    self._forget(item.reason)
                elif isinstance(item, Message):
                    self._take(item)
                elif isinstance(item, CaughtUp):
                    self._received = max(self._received, item.sequence)
                    self._wake.set()

    def _take(self, message: Message) -> None:
        self._received = message.sequence
        try:
            if message.subject == subjects.SYNC_SUBJECT:
                self._mark = decode_sync_mark(message.payload)
            else:
                delta = open_delta(decode_delta(message.payload), self._keys.cluster)
                self._locked.pop(message.subject, None)
                self._mark = None  # it described the world before this delta; the next mark is on its way
                self._inbox.append(_Waiting(delta, message.sequence, message.headers.get(tracing.HEADER, "")))
        except CannotOpen as error:
            self._locked[message.subject] = message
            log.error("a Secret could not be opened; its last form stays", subject=message.subject, error=error)
        except UNREADABLE as error:
            log.error("a delta could not be read", subject=message.subject, error=error)
        self._wake.set()

    def _unlock(self) -> None:
        """Keys have come: they may open what waits for them."""
        for message in list(self._locked.values()):
            self._take(message)

    def _seal_anew(self) -> None:
        self._state.committer.seal_anew()
        self._wake.set()

    def _forget(self, reason: str) -> None:
        """The stream is not the one that was followed: nothing is known until a new sync mark."""
        log.warning("the cluster stream was lost; waiting for it to be published again", reason=reason)
        state = self._state
        state.engine = self._new_engine()
        state.synced = False
        state.covered = 0
        state.committer.another_engine()
        self._verdicts.distrust()
        self._inbox.clear()
        self._locked.clear()
        self._mark = None
        self._received = 0
        self._suspect.set()

    # --- compile and commit

    async def _work(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(self._next_version - time.monotonic())
            await quiet(lambda: self._received)
            self._wake.clear()
            try:
                async with self._state.working:
                    await self._compile()
            except BusError as error:
                log.warning("will try again", error=error)
                await asyncio.sleep(RETRY_SECONDS)
                self._wake.set()
            await self._state.progressed()

    async def _compile(self) -> None:
        engine, started = self._state.engine, time.time()
        batch, self._inbox = self._inbox, []
        received = self._received
        for number, waiting in enumerate(batch, 1):
            if waiting.sequence <= self._compiled_before and waiting.delta.kind == "Ingress":
                self._crashes.acquit(waiting.delta.namespace, waiting.delta.name)
            if engine.apply(waiting.delta):
                self._causes.append(_cause(waiting))
            if number % 500 == 0:
                await asyncio.sleep(0)
        if engine is not self._state.engine or not self._in_sync(engine):
            return
        for _ in engine.compile_steps():
            await asyncio.sleep(0)
        if engine is not self._state.engine:
            return  # the stream was lost meanwhile
        output = engine.take()
        self._verdicts.note(output.verdicts)
        await self._commit(engine, output, received, started)
        if engine is self._state.engine:
            self._state.covered = max(self._state.covered, received)
        await self._verdicts.publish()

    def _in_sync(self, engine: Engine) -> bool:
        """Whether the world is complete: it was once, or it agrees with the newest mark now."""
        mark, state = self._mark, self._state
        if mark is None:
            return state.synced
        if engine.world.agrees(mark):
            if not state.synced:
                lifecycle.settled()
            state.synced = True
        elif self._inbox:
            return state.synced  # it came while a batch was applied, and speaks of what is in the next one as well: it is judged then
        else:
            self._ask_resync()
        self._mark = None
        return state.synced

    def _ask_resync(self) -> None:
        now = time.monotonic()
        if now - self._asked_resync < RESYNC_SECONDS:
            return
        self._asked_resync = now
        log.warning("the world does not agree with the watcher's sync mark; asking for all that differs")
        self._resync = asyncio.create_task(self._request_resync())

    async def _request_resync(self) -> None:
        """Beside the compile loop: a watcher that does not answer must not hold it up."""
        with contextlib.suppress(BusError):
            await self._bus.request(subjects.ASK_WATCHER_RESYNC, b"{}", timeout=2)

    async def _commit(self, engine: Engine, output: Output, covers: int, started: float) -> None:
        committer = self._state.committer
        if output.empty and committer.settled:
            if not committer.pinned:
                self._causes.clear()
            return
        compiled = time.time()
        causes = self._causes
        parent = next((c.trace for c in causes if c.trace), "")
        attributes = {"causes": len(causes), "rows.changed": len(output.upsert) + len(output.delete)}
        links = [c.trace for c in causes[:50] if c.trace]
        trace = tracing.record("compiled", start=started, end=compiled, parent=parent, links=links, attributes=attributes)
        change = Change(
            rows=engine.rows,
            upsert=output.upsert,
            delete=output.delete,
            bundle=output.bundle,
            causes=causes,
            covers=covers,
            nodes=self._gatekeeper.nodes,
            compiled_at=compiled,
            trace=trace,
        )
        manifest = await committer.commit(change)
        self._next_version = time.monotonic() + BETWEEN_SECONDS
        self._causes = causes[-CAUSES_KEPT:] if committer.pinned else []
        if manifest is not None:
            tracing.record("committed", start=compiled, end=time.time(), parent=trace, attributes={"version": str(manifest.id)})
            log.info(
                "version", id=manifest.id, digest=manifest.digest[:12], rows=manifest.rows, causes=len(causes), note=manifest.note,
                changed=len(output.upsert) + len(output.delete), ms=round((time.time() - started) * 1000, 1),
            )  # fmt: skip

    # --- versions of others, and what became of one's own

    async def _follow_versions(self) -> None:
        subject, committer = subjects.config_subject(self._options.group), self._state.committer
        async with contextlib.aclosing(self._bus.follow(subjects.CONFIG_STREAM, subject, last_only=True)) as items:
            async for item in items:
                if isinstance(item, Reset):
                    log.warning("the stream of versions was lost or went back", reason=item.reason)
                    committer.distrust()
                    self._suspect.set()
                    self._wake.set()
                elif isinstance(item, Message) and committer.note_head(item.sequence):
                    self._wake.set()

    async def _audit(self) -> None:
        """NATS is transport, not truth: what it has lost is stored again. And what only time changes is noticed."""
        while True:
            self._suspect.clear()
            try:
                if not await self._state.committer.audit():
                    self._wake.set()
            except BusError as error:
                log.debug("no audit this time", error=error)
            if self._state.engine.notice_expiry():
                self._wake.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AUDIT_SECONDS):
                    await self._suspect.wait()

    async def _heard(self, report: NodeReport) -> None:
        """What one node says: it may know of versions that the bus has lost, and of policies that nginx refuses."""
        if self._state.committer.note_node(VersionId(report.epoch, report.number), report.digest):
            log.info("a node has a version that is not the head's; looking again", node=report.node)
            self._wake.set()
        refused = {p: words for p, words in report.refused.items() if not self._gatekeeper.runs_elsewhere(p, report.node)}
        if refused:
            async with self._state.working:
                culprits = self._state.engine.refuse(refused)
            if culprits:
                log.warning("nginx refuses policies; what made them keeps its last good form", node=report.node, objects=" ".join(culprits))
                self._wake.set()


def _cause(waiting: _Waiting) -> Cause:
    d = waiting.delta
    return Cause(
        kind=d.kind,
        namespace=d.namespace,
        name=d.name,
        op=d.op,
        resource_version=d.resource_version,
        observed_at=d.observed_at,
        published_at=d.published_at,
        trace=waiting.trace,
    )


async def serve(bus: Bus, options: CompilerOptions, stop: asyncio.Event, health: Health | None = None) -> None:
    """Compile until `stop` is set."""
    compiler = Compiler(bus, options)
    if health is not None:
        health.watch(compiler.unready, compiler.samples)
    await compiler.run(stop)
