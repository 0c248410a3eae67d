"""The compiler as a service: deltas from the bus, versions onto it, questions answered. All state is the engine's and the committer's."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

import msgspec
from msgspec import Struct

from services.compiler.admission import admit
from services.compiler.commit import Change, Committer
from services.compiler.engine import Engine, Output
from services.compiler.explain import explain
from services.compiler.verdicts import Verdicts
from services.shared.bus.port import Bus, BusError, CaughtUp, Message, Request, Reset
from services.shared.contracts import subjects
from services.shared.contracts.delta import Delta, SyncMark, decode_delta, decode_sync_mark
from services.shared.contracts.objects import Key
from services.shared.contracts.question import (
    AdmissionQuestion,
    CoverAnswer,
    CoverQuestion,
    ExplainQuestion,
    RollbackAnswer,
    RollbackQuestion,
)
from services.shared.contracts.report import decode_node_report
from services.shared.contracts.version import Cause, VersionId
from services.shared.flags import Flags
from services.shared.telemetry import lifecycle, tracing
from services.shared.telemetry.logs import get_logger
from services.shared.versions.read import Unreadable

log = get_logger(__name__)

QUIET_SECONDS = 0.002
"""A compile begins when no delta has come for this long ..."""
CEILING_SECONDS = 0.05
"""... or when one has waited this long."""
COVER_SECONDS = 30.0
RESYNC_SECONDS = 5.0


class CompilerOptions(Struct, frozen=True, kw_only=True):
    """What a compiler can be told."""

    nats_url: str = "nats://127.0.0.1:4222"
    group: str = "default"
    flags: Flags = Flags()
    any_address: bool = True
    """Endpoints may be loopback or link-local: the manifests source's owner decides; off for clusters."""


class _Waiting(Struct, frozen=True):
    delta: Delta
    sequence: int
    trace: str


class Compiler:
    """One compiler process for one group of nodes."""

    def __init__(self, bus: Bus, options: CompilerOptions) -> None:
        self._bus = bus
        self._options = options
        self._engine = Engine(options.flags, any_address=options.any_address)
        self._committer = Committer(bus, options.group)
        self._verdicts = Verdicts(bus)
        self._inbox: list[_Waiting] = []
        self._mark: SyncMark | None = None
        self._received = 0
        """The last CLUSTER sequence that arrived."""
        self._synced = False
        self._covered = 0
        """Everything up to this sequence is in the head (or changes nothing in it)."""
        self._wake = asyncio.Event()
        self._news = asyncio.Condition()
        self._causes: list[Cause] = []
        self._force = False
        """Commit even without a change: a node contradicts the head."""
        self._asked_resync = 0.0
        self._resync: asyncio.Task[None] | None = None
        self._compiling = asyncio.Lock()

    async def run(self, stop: asyncio.Event) -> None:
        await self._bus.ensure()
        await self._committer.start()
        await self._verdicts.start()
        stops = [await self._bus.serve(subject, handler, queue="compiler") for subject, handler in self._questions()]
        try:
            await lifecycle.until(stop, self._follow(), self._watch_nodes(), self._work())
        finally:
            for end in stops:
                await end()

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
                delta = decode_delta(message.payload)
                self._mark = None  # it described the world before this delta; the next mark is on its way
                self._inbox.append(_Waiting(delta, message.sequence, message.headers.get(tracing.HEADER, "")))
        except msgspec.ValidationError as error:
            log.error("a delta could not be read", subject=message.subject, error=error)
        self._wake.set()

    def _forget(self, reason: str) -> None:
        """The stream is not the one that was followed: nothing is known until a new sync mark."""
        log.warning("the cluster stream was lost; waiting for it to be published again", reason=reason)
        self._engine = Engine(self._options.flags, any_address=self._options.any_address)
        self._inbox.clear()
        self._mark = None
        self._synced = False
        self._received = self._covered = 0

    # --- compile and commit

    async def _work(self) -> None:
        while True:
            await self._wake.wait()
            await self._settle()
            self._wake.clear()
            try:
                await self._compile()
            except BusError as error:
                log.warning("will try again", error=error)
                await asyncio.sleep(0.2)
                self._wake.set()

    async def _settle(self) -> None:
        """Wait for quiet, but not for ever."""
        deadline = time.monotonic() + CEILING_SECONDS
        seen = -1
        while self._received != seen and time.monotonic() < deadline:
            seen = self._received
            await asyncio.sleep(QUIET_SECONDS)

    async def _compile(self) -> None:
        async with self._compiling:
            await self._compile_alone()
        async with self._news:
            self._news.notify_all()

    async def _compile_alone(self) -> None:
        engine, started = self._engine, time.time()
        batch, self._inbox = self._inbox, []
        received = self._received
        for number, waiting in enumerate(batch):
            if engine.apply(waiting.delta):
                self._causes.append(_cause(waiting))
            if number % 500 == 499:
                await asyncio.sleep(0)
        if not await self._in_sync(engine):
            return
        for _ in engine.compile_steps():
            await asyncio.sleep(0)
        if engine is not self._engine:
            return  # the stream was lost meanwhile
        output = engine.take()
        await self._commit(engine, output, received, started)
        self._covered = max(self._covered, received)
        await self._verdicts.publish(output.verdicts)

    async def _in_sync(self, engine: Engine) -> bool:
        """Whether the world is complete: it was once, or it agrees with the newest mark now."""
        mark, self._mark = self._mark, None
        if mark is None:
            return self._synced
        if engine.world.agrees(mark):
            if not self._synced:
                lifecycle.settled()
            self._synced = True
        elif not self._inbox:
            self._ask_resync()
        return self._synced

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
        if output.empty and self._committer.head is not None and self._committer.in_step and not self._force:
            self._causes.clear()
            return
        compiled = time.time()
        causes, self._causes = self._causes, []
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
            compiled_at=compiled,
            trace=trace,
        )
        manifest = await self._committer.commit(change)
        self._force = False
        if manifest is not None:
            tracing.record("committed", start=compiled, end=time.time(), parent=trace, attributes={"version": str(manifest.id)})
            log.info(
                "version", id=manifest.id, digest=manifest.digest[:12], rows=manifest.rows, causes=len(causes),
                changed=len(output.upsert) + len(output.delete), ms=round((time.time() - started) * 1000, 1),
            )  # fmt: skip

    # --- nodes

    async def _watch_nodes(self) -> None:
        async with contextlib.aclosing(self._bus.watch(subjects.NODES_BUCKET)) as entries:
            async for entry in entries:
                if isinstance(entry, CaughtUp) or entry.value is None:
                    continue
                try:
                    report = decode_node_report(entry.value)
                except msgspec.ValidationError as error:
                    log.error("a node's report could not be read", key=entry.key, error=error)
                    continue
                if report.group != self._options.group:
                    continue
                if self._committer.note_node(VersionId(report.epoch, report.number), report.digest):
                    log.warning("a node is ahead of the head or contradicts it; a new epoch begins", node=report.node)
                    self._force = True
                    self._wake.set()
                self._refused(report.refused)

    def _refused(self, refused: dict[str, str]) -> None:
        for policy, words in refused.items():
            if self._engine.uses_policy(policy):
                culprits = self._engine.quarantine(policy, words)
                log.warning("nginx refuses a policy; its Ingresses keep their last good form", policy=policy, ingresses=" ".join(culprits))
                self._wake.set()

    # --- questions

    def _questions(self) -> list[tuple[str, Callable[[Request], Awaitable[bytes]]]]:
        return [
            (subjects.ASK_COMPILER_ADMIT, self._admit),
            (subjects.ASK_COMPILER_COVER, self._cover),
            (subjects.ASK_COMPILER_EXPLAIN, self._explain),
            (subjects.ASK_COMPILER_ROLLBACK, self._rollback),
        ]

    async def _admit(self, request: Request) -> bytes:
        question = msgspec.json.decode(request.payload, type=AdmissionQuestion)
        return msgspec.json.encode(admit(self._engine, question))

    async def _explain(self, request: Request) -> bytes:
        question = msgspec.json.decode(request.payload, type=ExplainQuestion)
        return msgspec.json.encode(explain(self._engine, question))

    async def _cover(self, request: Request) -> bytes:
        question = msgspec.json.decode(request.payload, type=CoverQuestion)
        try:
            async with asyncio.timeout(COVER_SECONDS), self._news:
                await self._news.wait_for(lambda: self._synced and self._covered >= question.sequence and self._committer.head is not None)
        except TimeoutError:
            why = "the compiler has no complete picture of the cluster yet" if not self._synced else "no version could be committed"
            return msgspec.json.encode(CoverAnswer(epoch=0, number=0, digest="", error=why))
        return msgspec.json.encode(self._cover_answer(question))

    def _cover_answer(self, question: CoverQuestion) -> CoverAnswer:
        head = self._committer.head
        if head is None:
            return CoverAnswer(epoch=0, number=0, digest="", error="there is no version yet")
        answer = CoverAnswer(epoch=head.epoch, number=head.number, digest=head.digest, pinned=head.pinned)
        if not question.ingress:
            return answer
        namespace, _, name = question.ingress.partition("/")
        key = Key("Ingress", namespace, name)
        verdict = self._engine.verdict(key)
        return msgspec.structs.replace(
            answer,
            found=self._engine.knows(namespace, name),
            accepted=verdict is None or verdict.accepted,
            problems=verdict.problems if verdict else (),
            row_keys=self._engine.row_keys(namespace, name),
        )

    async def _rollback(self, request: Request) -> bytes:
        question = msgspec.json.decode(request.payload, type=RollbackQuestion)
        async with self._compiling:
            try:
                if question.release:
                    answer = await self._release()
                else:
                    manifest = await self._committer.roll_back(question.number)
                    answer = RollbackAnswer(epoch=manifest.epoch, number=manifest.number)
            except (Unreadable, BusError) as error:
                answer = RollbackAnswer(error=str(error))
        return msgspec.json.encode(answer)

    async def _release(self) -> RollbackAnswer:
        head = self._committer.head
        if head is None or not head.pinned:
            return RollbackAnswer(error="nothing is pinned: live changes are already applied")
        engine = self._engine
        change = Change(rows=engine.rows, upsert={}, delete=(), bundle=engine.take().bundle, covers=self._covered, compiled_at=time.time())
        manifest = await self._committer.release(change) or head
        return RollbackAnswer(epoch=manifest.epoch, number=manifest.number)


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


async def serve(bus: Bus, options: CompilerOptions, stop: asyncio.Event) -> None:
    """Compile until `stop` is set."""
    await Compiler(bus, options).run(stop)
