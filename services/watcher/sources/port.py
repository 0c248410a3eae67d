"""What a source of objects is to the rest of the watcher."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from typing import Protocol

from msgspec import Struct

from services.shared.contracts.objects import AnyObject, Key
from services.shared.contracts.problem import Problem
from services.watcher.changes import Changes


class Hint(Struct, frozen=True, kw_only=True):
    """Something may have changed."""

    paths: frozenset[str] = frozenset()
    """What the source itself calls the places; files, relative to the root, for manifests."""
    everything: bool = False


class Source(Protocol):
    """`hints` says when to look; `look` says what is different."""

    @property
    def name(self) -> str:
        """For people: `manifests /path`, `kubernetes https://...`."""
        ...

    @property
    def complete(self) -> bool:
        """Everything has been listed once: what was not found then is not there."""
        ...

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong now."""
        ...

    def adopt(self, former: Mapping[Key, AnyObject]) -> None:
        """What the stream held before this process started. Called before the first look."""
        ...

    def hints(self, stop: asyncio.Event) -> AsyncIterator[Hint]:
        """Until `stop`. Whoever looks after each of them misses nothing."""
        ...

    async def catch_up(self, seconds: float) -> str:
        """Return once the next look shows everything that is there *now*; empty, or why it cannot."""
        ...

    async def look(self, places: Collection[str] | None = None) -> Changes:
        """What is different since the last look: at these places, or (None) anywhere."""
        ...
