"""The barrier: is everything that the source holds *now* live on all nodes? (design: Barrier)

Three steps: the watcher looks at its source and answers with a sequence of the CLUSTER stream; the compiler answers with the version that
covers it; every node reports that version or a later one. `lacks` is the whole decision about the third, without I/O.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from enum import StrEnum
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from services.shared.bus.port import Bus, BusUnavailable, CaughtUp, NoAnswer
from services.shared.contracts import subjects
from services.shared.contracts.question import BarrierAnswer, BarrierQuestion, CoverAnswer, CoverQuestion
from services.shared.contracts.report import NodeReport, decode_node_report
from services.shared.contracts.version import VersionId

T = TypeVar("T")

AGAIN_SECONDS: Final = 1.0
"""After so long a question is asked once more, for one who has taken the place of who died on it."""
ANSWER_SECONDS: Final = 30.0
"""How long an answer to each is waited for: looking at a large source takes longer than `AGAIN_SECONDS`."""
RETRY_SECONDS: Final = 0.1
"""After the word that there is no answer."""


class Step(StrEnum):
    """Where a wait stands, and so where it ended when time was up."""

    WATCHER = "watcher"
    COMPILER = "compiler"
    NODES = "nodes"


class Lack(Struct, frozen=True, kw_only=True):
    """Why one node is not there yet."""

    node: str
    reason: str
    final: bool = False
    """Waiting longer does not help."""


class TimeUp(Exception):
    """The deadline passed in this step."""

    def __init__(self, step: Step, detail: str) -> None:
        super().__init__(f"{step}: {detail}")
        self.step = step
        self.detail = detail


Watching = Callable[[Step, Collection[Lack]], None]


class Barrier:
    """One wait. `expected`: nodes that must report, whether or not they do now; nodes that report besides count as well."""

    def __init__(self, bus: Bus, *, group: str, expected: Collection[str], deadline: float, watching: Watching | None = None) -> None:
        self._bus = bus
        self._group = group
        self._expected = tuple(expected)
        self._deadline = deadline
        """Monotonic seconds."""
        self._watching = watching or (lambda _step, _lacks: None)
        self.reports: dict[str, NodeReport] = {}
        """By node, as last seen."""

    async def source(self) -> BarrierAnswer:
        """Raises TimeUp."""
        self._watching(Step.WATCHER, ())
        while True:
            answer = await self._ask(Step.WATCHER, subjects.ASK_WATCHER_BARRIER, BarrierQuestion(), BarrierAnswer)
            if not answer.again:
                return answer
            await asyncio.sleep(RETRY_SECONDS)

    async def cover(self, sequence: int, ingress: str = "") -> CoverAnswer:
        """Raises TimeUp. An answer with `error` is final."""
        self._watching(Step.COMPILER, ())
        question = CoverQuestion(sequence=sequence, ingress=ingress)
        return await self._ask(Step.COMPILER, subjects.of_group(subjects.ASK_COMPILER_COVER, self._group), question, CoverAnswer)

    async def nodes(self, goal: CoverAnswer, row_keys: Collection[str] | None = None) -> list[Lack]:
        """Until no node lacks anything (empty), or one does finally, or time is up: then what is lacking.

        `row_keys`: only these rows' deferral counts; None: any.
        """
        self.reports.clear()
        revoked = await self._revoked()
        expected = [n for n in self._expected if subjects.token(n) not in revoked]
        lacking = lacks(goal, expected, self.reports, row_keys)
        changes = self._bus.watch(subjects.NODES_BUCKET)
        caught_up = False
        try:
            async with _until(self._deadline):
                async for change in changes:
                    if isinstance(change, CaughtUp):
                        caught_up = True
                    elif change.value is None:
                        self.reports = {n: r for n, r in self.reports.items() if subjects.token(n) != change.key and n != change.key}
                    else:
                        report = decode_node_report(change.value)
                        if report.group == self._group and subjects.token(report.node) not in revoked:
                            self.reports[report.node] = report
                    if not caught_up:
                        continue
                    lacking = lacks(goal, expected, self.reports, row_keys)
                    self._watching(Step.NODES, lacking)
                    if not lacking or any(lack.final for lack in lacking):
                        break
        except TimeoutError:
            pass
        finally:
            close = getattr(changes, "aclose", None)
            if close is not None:
                await close()
        return lacking

    async def _revoked(self) -> frozenset[str]:
        """Keys of nodes that were shut out: nothing can be live there."""
        with contextlib.suppress(BusUnavailable):
            return frozenset(await self._bus.entries(subjects.REVOKED_BUCKET))
        return frozenset()

    async def _ask(self, step: Step, subject: str, question: Struct, answer: type[T]) -> T:
        """Ask until somebody answers or time is up. The first answer counts, to whichever of the questions."""
        detail = f"the {step} does not answer"
        payload = msgspec.json.encode(question)
        asked: set[asyncio.Task[bytes]] = set()
        try:
            while (left := self._deadline - time.monotonic()) > 0:
                asked.add(asyncio.create_task(self._bus.request(subject, payload, timeout=min(left, ANSWER_SECONDS))))
                done, _ = await asyncio.wait(asked, timeout=min(left, AGAIN_SECONDS), return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    try:
                        return msgspec.json.decode(task.result(), type=answer)
                    except NoAnswer:
                        pass
                    except BusUnavailable as error:
                        detail = str(error)
                asked -= done
                if done:
                    await asyncio.sleep(min(RETRY_SECONDS, left))
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        raise TimeUp(step, detail)


def lacks(
    goal: CoverAnswer, expected: Collection[str], reports: Mapping[str, NodeReport], row_keys: Collection[str] | None = None
) -> list[Lack]:
    """What keeps the goal from being live, a node at a time, in the order of names."""
    names = sorted({*expected, *reports})
    found = (_lack(goal, name, reports.get(name), row_keys) for name in names)
    return [lack for lack in found if lack is not None]


def _lack(goal: CoverAnswer, name: str, report: NodeReport | None, row_keys: Collection[str] | None) -> Lack | None:
    if report is None:
        return Lack(node=name, reason="does not report")
    if report.epoch == 0:
        return Lack(node=name, reason=report.last_error or "has applied nothing yet")
    mine = [d for d in report.deferred if row_keys is None or d.key in row_keys]
    if mine and mine[0].policy in report.refused:
        return Lack(node=name, reason=f"its nginx refuses a policy: {report.refused[mine[0].policy]}", final=True)
    have, want = VersionId(report.epoch, report.number), VersionId(goal.epoch, goal.number)
    if have < want:
        why = f"; last error: {report.last_error}" if report.last_error else ""
        return Lack(node=name, reason=f"has version {have}, not {want}{why}")
    if have == want and report.digest and report.digest != goal.digest:
        return Lack(node=name, reason=f"has other content under version {have}")
    if mine:
        return Lack(node=name, reason=f"waits with {mine[0].key} for policy {mine[0].policy}")
    if report.unloaded and row_keys is None:
        return Lack(node=name, reason=f"does not run policy {report.unloaded[0]} yet")
    return None


@contextlib.asynccontextmanager
async def _until(deadline: float) -> AsyncIterator[None]:
    async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
        yield
