"""What is decided of one review when the groups' compilers answer, and when some do not."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest

from services.shared.bus.port import BusError, BusUnavailable, NoAnswer, TooLarge
from services.shared.contracts.problem import Problem, Reason
from services.shared.contracts.question import AdmissionAnswer
from services.webhook.decide import SKIPPED, Decider, Decision
from services.webhook.local import check_alone
from services.webhook.review import Review
from tests.support.reviews import ingress

PROBLEM = Problem(reason=Reason.INVALID_OBJECT, field="spec", message="is another's")
YES = AdmissionAnswer(allowed=True, warnings=(Problem(reason=Reason.UNKNOWN_ANNOTATION, field="metadata", message="said by all"),))
NO = AdmissionAnswer(allowed=False, problems=(PROBLEM,))


class Compilers:
    """Group -> what its compilers say."""

    connected = True

    def __init__(self, **says: AdmissionAnswer | bytes | BusError) -> None:
        self.says = says

    async def request(self, subject: str, payload: bytes, *, timeout: float, headers: Mapping[str, str] | None = None) -> bytes:
        said = self.says[subject.rpartition(".")[2]]
        if isinstance(said, BusError):
            raise said
        return said if isinstance(said, bytes) else msgspec.json.encode(said)


async def decided(compilers: Compilers, host: str = "web.example.com") -> Decision:
    obj = ingress()
    obj["spec"]["rules"][0]["host"] = host
    review = Review(uid="x", operation="CREATE", namespace="default", name="web", object=obj)
    return await Decider(compilers, check_alone, groups=tuple(compilers.says), deadline_seconds=1).decide(review)


async def test_what_one_group_denies_is_denied_and_what_several_say_is_said_once() -> None:
    assert await decided(Compilers(a=YES)) == Decision(answer=YES, by="compiler")
    assert await decided(Compilers(a=YES, b=YES)) == Decision(answer=YES, by="compiler")
    both = AdmissionAnswer(allowed=False, problems=(PROBLEM,), warnings=YES.warnings)
    assert await decided(Compilers(a=YES, b=NO, c=NO)) == Decision(answer=both, by="compiler")


@pytest.mark.parametrize("silence", [NoAnswer("nobody"), BusUnavailable("away"), b"{"])
async def test_one_silent_group_does_not_silence_the_others(silence: BusError | bytes) -> None:
    denied = await decided(Compilers(a=NO, b=silence))
    assert (denied.answer.allowed, denied.answer.problems, denied.by, denied.notes) == (False, (PROBLEM,), "local", (SKIPPED,))
    allowed = await decided(Compilers(a=silence, b=YES))
    assert (allowed.answer, allowed.by, allowed.notes) == (YES, "local", (SKIPPED,))


async def test_with_all_silent_the_object_itself_is_judged() -> None:
    for host, allowed in (("web.example.com", True), ("web.example.com\n", False)):
        decision = await decided(Compilers(a=NoAnswer("nobody"), b=BusUnavailable("away")), host)
        assert (decision.answer.allowed, decision.by, decision.notes) == (allowed, "local", (SKIPPED,))


async def test_without_a_connection_nobody_is_asked() -> None:
    compilers = Compilers(a=NO)
    compilers.connected = False
    assert (await decided(compilers)).answer.allowed


async def test_an_object_that_is_too_large_is_denied() -> None:
    decision = await decided(Compilers(a=YES, b=TooLarge("no")))
    assert (decision.answer.allowed, decision.by) == (False, "rule")
    (problem,) = decision.answer.problems
    assert problem.reason == Reason.TOO_LARGE and "split it" in problem.message
