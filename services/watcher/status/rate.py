"""A token bucket: how often something may be done. The clock is a parameter."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class Rate:
    """`burst` at once, `per_second` for ever."""

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._left = burst
        self._at = clock()

    def _refill(self) -> None:
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_second)
        self._at = now

    def try_take(self) -> bool:
        """Whether it may be done now; if so, it counts."""
        self._refill()
        if self._left < 1:
            return False
        self._left -= 1
        return True

    async def take(self) -> None:
        """Wait for one's turn."""
        self._refill()
        self._left -= 1  # below zero: a place in the queue
        if self._left < 0:
            await asyncio.sleep(-self._left / self._per_second)
