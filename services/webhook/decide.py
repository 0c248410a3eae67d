"""One review in; allowed or not, and why. The compiler knows; when it is silent, the object itself is all there is to judge by."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
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

    def __init__(self, bus: Asker, local_checks: LocalChecks, *, deadline_seconds: float) -> None:
        self._bus = bus
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
            return Decision(answer=await self._ask(payload), by="compiler")
        except TooLarge:
            problem = Problem(
                reason=Reason.TOO_LARGE, field="metadata", message=f"the object has {len(payload)} bytes, more than the bus takes"
            )
            return Decision(answer=AdmissionAnswer(allowed=False, problems=(problem,)), by="rule")
        except (NoAnswer, BusUnavailable) as error:
            log.warning("the compiler is silent, local checks only", error=error, ingress=f"{review.namespace}/{review.name}")
        except msgspec.MsgspecError as error:
            log.error("the compiler's answer cannot be read, local checks only", error=error)
        return Decision(answer=self._local_checks(obj), by="local", notes=(SKIPPED,))

    async def _ask(self, payload: bytes) -> AdmissionAnswer:
        if not self._bus.connected:
            raise BusUnavailable("not connected")
        started = time.time()
        # The trace of a question begins here; the compiler's part hangs under it.
        header = tracing.record("asked", start=started, end=started)
        answer = await self._bus.request(
            subjects.ASK_COMPILER_ADMIT, payload, timeout=self._deadline_seconds, headers={tracing.HEADER: header}
        )
        return _decode(answer)


def _relevant(obj: dict[str, Any]) -> dict[str, Any]:
    """Without what no check looks at and what may be most of the bytes."""
    slim = {key: value for key, value in obj.items() if key != "status"}
    metadata = slim.get("metadata")
    if isinstance(metadata, dict):
        slim["metadata"] = {key: value for key, value in metadata.items() if key != "managedFields"}
    return slim
