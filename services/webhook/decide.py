"""One review in; allowed or not, and why. The compiler knows; when it is silent, the object itself is all there is to judge by."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec
from msgspec import Struct

from services.shared.bus.port import BusUnavailable, NoAnswer, TooLarge
from services.shared.contracts import subjects
from services.shared.contracts.problem import Problem, Reason
from services.shared.contracts.question import AdmissionAnswer, AdmissionQuestion
from services.shared.telemetry import tracing
from services.shared.telemetry.logs import get_logger
from services.webhook.review import Review

log = get_logger(__name__)

LocalChecks = Callable[[dict[str, Any]], AdmissionAnswer]
"""What an Ingress by itself tells."""

SKIPPED: Final = "checks against other objects were skipped: the compiler did not answer in time"

_decode = msgspec.json.Decoder(AdmissionAnswer).decode


class Decision(Struct, frozen=True, kw_only=True):
    answer: AdmissionAnswer
    by: str
    """`compiler`, `local` (it was silent), or `rule` (nothing to check)."""
    notes: tuple[str, ...] = ()
    """Warnings that are not about the object."""


class Asker(Protocol):
    """The part of a bus that is needed here."""

    @property
    def connected(self) -> bool: ...

    async def request(self, subject: str, payload: bytes, *, timeout: float, headers: Mapping[str, str] | None = None) -> bytes: ...


class Decider:
    """Asks over the bus, within a deadline."""

    def __init__(self, bus: Asker, local_checks: LocalChecks, *, groups: Sequence[str], deadline_seconds: float) -> None:
        """`groups`: of nodes, each with its own compilers and classes: an object must be right for all."""
        self._bus = bus
        self._groups = tuple(groups)
        self._local_checks = local_checks
        self._deadline_seconds = deadline_seconds

    async def decide(self, review: Review) -> Decision:
        """Never raises for what is in the review."""
        if review.object is None or review.needs_no_check:
            return Decision(answer=AdmissionAnswer(allowed=True), by="rule")
        obj = _relevant(review.object)
        question = AdmissionQuestion(namespace=review.namespace, name=review.name, operation=review.operation, object=obj)
        try:
            payload = msgspec.json.encode(question)
        except (UnicodeEncodeError, msgspec.MsgspecError, RecursionError):
            problem = Problem(reason=Reason.INVALID_OBJECT, field="metadata", message="holds text that is not Unicode (a lone surrogate)")
            return Decision(answer=AdmissionAnswer(allowed=False, problems=(problem,)), by="rule")
        try:
            answers = await self._ask(payload, f"{review.namespace}/{review.name}")
        except TooLarge:
            message = f"the object has {len(payload)} bytes, more than the bus takes: split it, or raise nats-server's max_payload"
            problem = Problem(reason=Reason.TOO_LARGE, field="metadata", message=message)
            return Decision(answer=AdmissionAnswer(allowed=False, problems=(problem,)), by="rule")
        if len(answers) == len(self._groups):
            return Decision(answer=_together(answers), by="compiler")
        return Decision(answer=_together([*answers, self._local_checks(obj)]), by="local", notes=(SKIPPED,))

    async def _ask(self, payload: bytes, ingress: str) -> list[AdmissionAnswer]:
        """What the groups say; nothing of one whose compilers are silent, or not understood. Raises TooLarge."""
        started = time.time()
        # The trace of a question begins here; the compiler's part hangs under it.
        headers = {tracing.HEADER: tracing.record("asked", start=started, end=started)}
        subject = functools.partial(subjects.of_group, subjects.ASK_COMPILER_ADMIT)

        async def ask(group: str) -> AdmissionAnswer | None:
            try:
                if not self._bus.connected:
                    raise BusUnavailable("not connected")
                return _decode(await self._bus.request(subject(group), payload, timeout=self._deadline_seconds, headers=headers))
            except (NoAnswer, BusUnavailable) as error:
                log.warning("a compiler is silent, local checks only", group=group, error=error, ingress=ingress)
            except msgspec.MsgspecError as error:
                log.error("a compiler's answer cannot be read, local checks only", group=group, error=error, ingress=ingress)
            return None

        return [answer for answer in await asyncio.gather(*map(ask, self._groups)) if answer is not None]


def _together(answers: Sequence[AdmissionAnswer]) -> AdmissionAnswer:
    """Each group speaks of its own classes; what several say is said once."""
    if len(answers) == 1:
        return answers[0]
    return AdmissionAnswer(
        allowed=all(a.allowed for a in answers),
        problems=tuple(dict.fromkeys(p for a in answers for p in a.problems)),
        warnings=tuple(dict.fromkeys(w for a in answers for w in a.warnings)),
    )


def _relevant(obj: dict[str, Any]) -> dict[str, Any]:
    """Without what no check looks at and what may be most of the bytes."""
    slim = {key: value for key, value in obj.items() if key != "status"}
    metadata = slim.get("metadata")
    if isinstance(metadata, dict):
        slim["metadata"] = {key: value for key, value in metadata.items() if key != "managedFields"}
    return slim
