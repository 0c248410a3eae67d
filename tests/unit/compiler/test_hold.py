"""Coalescing with a clock of the test's own."""

from __future__ import annotations

from services.compiler.hold import CEILING_SECONDS, QUIET_SECONDS, quiet


class Clock:
    """Time passes only in `sleep`; `arrivals` are the times at which something comes."""

    def __init__(self, arrivals: list[float]) -> None:
        self.now = 0.0
        self._arrivals = arrivals

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    def arrived(self) -> int:
        return sum(1 for at in self._arrivals if at <= self.now)


async def _ends(arrivals: list[float]) -> float:
    clock = Clock(arrivals)
    await quiet(clock.arrived, clock=clock, sleep=clock.sleep)
    return clock.now


async def test_a_lone_change_waits_for_quiet_only() -> None:
    assert await _ends([0.0]) == QUIET_SECONDS


async def test_what_comes_close_behind_goes_along() -> None:
    assert QUIET_SECONDS < await _ends([0.0, QUIET_SECONDS / 2]) <= 3 * QUIET_SECONDS


async def test_a_stream_without_end_waits_to_the_ceiling() -> None:
    assert abs(await _ends([n * QUIET_SECONDS / 3 for n in range(1000)]) - CEILING_SECONDS) < 1e-9
