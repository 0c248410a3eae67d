"""Coalescing: wait for quiet, but not for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

QUIET_SECONDS: Final = 0.002
"""A compile begins when nothing has come for this long ..."""
CEILING_SECONDS: Final = 0.05
"""... or when something has waited this long."""

BETWEEN_SECONDS: Final = 0.025
"""From one version to the next: changes that never end make 40 versions a second at most, and a single one waits for nothing."""


async def quiet(
    arrived: Callable[[], int],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Return once `arrived()` has not changed for `QUIET_SECONDS`, at the latest after `CEILING_SECONDS`."""
    deadline = clock() + CEILING_SECONDS
    seen = arrived()
    while (left := deadline - clock()) > 0:
        await sleep(min(QUIET_SECONDS, left))
        before, seen = seen, arrived()
        if seen == before:
            return
