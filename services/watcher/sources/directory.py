"""A directory of manifests as a source: looked at in a thread, whenever the file system says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from pathlib import Path

from services.shared.contracts.objects import AnyObject, Key
from services.shared.contracts.problem import Problem
from services.watcher.changes import Changes
from services.watcher.sources.manifests import ManifestSource
from services.watcher.sources.port import Hint
from services.watcher.sources.watching import watch


class DirectorySource:
    """See `sources.port.Source`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._manifests = ManifestSource(root)

    @property
    def name(self) -> str:
        return f"manifests {self._root}"

    @property
    def complete(self) -> bool:
        return self._manifests.complete

    @property
    def problems(self) -> tuple[Problem, ...]:
        return self._manifests.problems

    def adopt(self, former: Mapping[Key, AnyObject]) -> None:
        self._manifests.adopt(former)

    def hints(self, stop: asyncio.Event) -> AsyncIterator[Hint]:
        return watch(self._root, stop)

    async def catch_up(self, seconds: float) -> str:
        """Nothing to wait for: looking is reading."""
        return ""

    async def look(self, places: Collection[str] | None = None) -> Changes:
        return await asyncio.to_thread(self._manifests.look, places)
