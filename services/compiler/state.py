"""What one compiler process knows and has done: shared by the loop that compiles and by the answers to questions."""

from __future__ import annotations

import asyncio

from services.compiler.commit import Committer
from services.compiler.crashes import Crashes
from services.compiler.engine import Engine


class State:
    """The engine, the committer, and how far they are."""

    def __init__(self, engine: Engine, committer: Committer, crashes: Crashes) -> None:
        self.engine = engine
        """Replaced when the CLUSTER stream is lost."""
        self.committer = committer
        self.crashes = crashes
        self.synced = False
        """Whether the world was complete once: it agreed with a sync mark."""
        self.covered = 0
        """Everything up to this CLUSTER sequence is in the head, or changes nothing in it."""
        self.working = asyncio.Lock()
        """Held while deltas are applied, compiled and committed, and while a rollback is."""
        self._news = asyncio.Condition()

    async def progressed(self) -> None:
        """Wake who waits in `reaches`."""
        async with self._news:
            self._news.notify_all()

    async def reaches(self, sequence: int, seconds: float) -> bool:
        """Wait until there is a version that covers `sequence`; False: not within so many seconds."""
        try:
            async with asyncio.timeout(seconds), self._news:
                await self._news.wait_for(lambda: self.synced and self.covered >= sequence and self.committer.head is not None)
        except TimeoutError:
            return False
        return True
