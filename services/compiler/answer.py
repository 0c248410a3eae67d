"""Questions to the compiler: admission, which version covers a sequence, why a URL goes where it goes, rollback."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec

from services.compiler.admission import admit
from services.compiler.commit import Change
from services.compiler.crashes import suspect_of_review
from services.compiler.explain import explain
from services.compiler.state import State
from services.shared.bus.port import BusError, Handler, Request
from services.shared.contracts import subjects
from services.shared.contracts.objects import Key
from services.shared.contracts.problem import printable
from services.shared.contracts.question import (
    AdmissionAnswer,
    AdmissionQuestion,
    CoverAnswer,
    CoverQuestion,
    ExplainQuestion,
    RollbackAnswer,
    RollbackQuestion,
)
from services.shared.contracts.version import Cause
from services.shared.versions.read import Unreadable

COVER_SECONDS = 30.0


class Answers:
    """`causes`: what has changed since the last version; a release names it."""

    def __init__(self, group: str, state: State, causes: Callable[[], Sequence[Cause]]) -> None:
        self._group = group
        self._state = state
        self._causes = causes

    def handlers(self) -> list[tuple[str, Handler]]:
        found = [
            (subjects.ASK_COMPILER_ADMIT, self._admit),
            (subjects.ASK_COMPILER_COVER, self._cover),
            (subjects.ASK_COMPILER_EXPLAIN, self._explain),
            (subjects.ASK_COMPILER_ROLLBACK, self._rollback),
        ]
        return [(subjects.of_group(question, self._group), handler) for question, handler in found]

    async def _admit(self, request: Request) -> bytes:
        question = msgspec.json.decode(request.payload, type=AdmissionQuestion)
        return msgspec.json.encode(self._admitted(question))

    def _admitted(self, question: AdmissionQuestion) -> AdmissionAnswer:
        """An object that compilers died of is refused unread."""
        crashes, suspect = self._state.crashes, suspect_of_review(question.namespace, question.object)
        strikes = crashes.held(suspect)
        if strikes is not None:
            who = f"Ingress {printable(question.namespace)}/{printable(question.name)}"
            return AdmissionAnswer(allowed=False, problems=(msgspec.structs.replace(strikes.problem(), object=who),))
        crashes.note(suspect)
        try:
            answer = admit(self._state.engine, question)
        finally:
            crashes.done()
        crashes.fine(suspect)
        return answer

    async def _explain(self, request: Request) -> bytes:
        question = msgspec.json.decode(request.payload, type=ExplainQuestion)
        return msgspec.json.encode(explain(self._state.engine, question, self._state.committer.served))

    async def _cover(self, request: Request) -> bytes:
        question = msgspec.json.decode(request.payload, type=CoverQuestion)
        if not await self._state.reaches(question.sequence, COVER_SECONDS):
            why = "no version could be committed" if self._state.synced else "the compiler has no complete picture of the cluster yet"
            return msgspec.json.encode(CoverAnswer(epoch=0, number=0, digest="", error=why))
        return msgspec.json.encode(self._covering(question))

    def _covering(self, question: CoverQuestion) -> CoverAnswer:
        head, engine = self._state.committer.head, self._state.engine
        if head is None:
            return CoverAnswer(epoch=0, number=0, digest="", error="there is no version yet")
        answer = CoverAnswer(epoch=head.epoch, number=head.number, digest=head.digest, pinned=head.pinned)
        if not question.ingress:
            return answer
        namespace, _, name = question.ingress.partition("/")
        verdict = engine.verdict(Key("Ingress", namespace, name))
        return msgspec.structs.replace(
            answer,
            found=engine.knows(namespace, name),
            accepted=verdict is None or verdict.accepted,
            problems=verdict.problems if verdict else (),
            row_keys=engine.row_keys(namespace, name),
        )

    async def _rollback(self, request: Request) -> bytes:
        question = msgspec.json.decode(request.payload, type=RollbackQuestion)
        async with self._state.working:
            try:
                answer = await (self._release() if question.release else self._roll_back(question))
            except (Unreadable, BusError) as error:
                answer = RollbackAnswer(error=str(error))
        await self._state.progressed()
        return msgspec.json.encode(answer)

    async def _roll_back(self, question: RollbackQuestion) -> RollbackAnswer:
        manifest = await self._state.committer.roll_back(question.number, question.epoch)
        return RollbackAnswer(epoch=manifest.epoch, number=manifest.number)

    async def _release(self) -> RollbackAnswer:
        state, committer = self._state, self._state.committer
        if not committer.pinned or committer.head is None:
            return RollbackAnswer(error="nothing is pinned: live changes are already applied")
        if not state.synced:
            return RollbackAnswer(error="the compiler has no complete picture of the cluster yet; the rollback stays")
        rows, bundle = state.engine.rows, state.engine.bundle
        causes = tuple(self._causes())
        change = Change(
            rows=rows, upsert={}, delete=(), bundle=bundle, causes=causes, covers=state.covered, compiled_at=time.time()
        )  # fmt: skip
        manifest = await committer.release(change) or committer.head
        return RollbackAnswer(epoch=manifest.epoch, number=manifest.number)
