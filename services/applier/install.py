"""New policies: a generation is written, tested, switched to, reloaded, and believed only when a worker says so; else all goes back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping
from typing import Final

import aiohttp
from msgspec import Struct

from services.applier.control import Control
from services.applier.nginx import Nginx
from services.applier.nodeconf import NodeSettings, write_generation
from services.applier.store import Header, Store
from services.shared.contracts.version import PolicyBundle
from services.shared.telemetry.logs import get_logger

log = get_logger(__name__)

CONFIRM_SECONDS: Final = 3.0
MOST_REFUSALS: Final = 50
"""Policies refused in one installation before the rest is given up for now."""
DRAINING_GENERATIONS: Final = 3


class Installed(Struct, frozen=True, kw_only=True):
    """How an installation ended."""

    ok: bool
    generation: int = 0
    refused: dict[str, str] = {}
    """Location policies left out: hash -> nginx's words."""
    error: str = ""
    tested_at: float = 0.0
    loaded_at: float = 0.0


def failpoint(name: str) -> None:
    """For tests: a process with SLUICE_FAILPOINT=name dies here, as by kill -9."""
    if os.environ.get("SLUICE_FAILPOINT") == name:
        os.kill(os.getpid(), 9)


class Installer:
    """Generations of one node."""

    def __init__(self, store: Store, nginx: Nginx, control: Control) -> None:
        self._store = store
        self._nginx = nginx
        self._control = control

    async def install(
        self, settings: NodeSettings, bundle: PolicyBundle, header: Header, rows: Mapping[str, bytes], refused: Mapping[str, str]
    ) -> Installed:
        """Make nginx run this bundle, without the policies it refuses. `rows`: what tables.tsv holds, for a start from this generation.

        With nginx not running it is started; the outcome is judged the same way.
        """
        before = self._store.current
        generation = max([0, before, *self._store.generations()]) + 1
        out = dict(refused)
        try:
            while True:
                kept = PolicyBundle(policies=tuple(p for p in bundle.policies if p.hash not in out))
                directory = self._store.path(generation)
                write_generation(directory, settings, kept, generation=generation, version=header.version)
                self._store.write_rows(generation, header, rows, kept)
                failpoint("written")
                test = await self._nginx.test(directory)
                if test.ok:
                    break
                culprit = test.policy or await self._find(settings, kept, generation, header)
                if not culprit or len(out) >= MOST_REFUSALS:
                    return Installed(ok=False, refused=out, error=f"nginx refuses the configuration: {test.words}")
                log.warning("nginx refuses a policy", policy=culprit, words=test.words)
                out[culprit] = test.words
        except OSError as problem:
            return Installed(ok=False, refused=out, error=f"a new generation could not be written: {problem}")
        tested = time.time()
        failpoint("tested")
        error = await self._take_effect(settings, generation, before)
        if error:
            return Installed(ok=False, refused=out, error=error, tested_at=tested)
        failpoint("confirmed")
        self._store.forget_old()
        return Installed(ok=True, generation=generation, refused=out, tested_at=tested, loaded_at=time.time())

    async def _find(self, settings: NodeSettings, bundle: PolicyBundle, generation: int, header: Header) -> str:
        """Bisect for the location policy that nginx refuses where it names no file of ours; empty: it is none of them."""
        fixed = [p for p in bundle.policies if p.scope != "location"]
        suspects = [p for p in bundle.policies if p.scope == "location"]
        directory = self._store.path(generation)

        async def passes(policies: list) -> bool:  # type: ignore[type-arg]
            part = PolicyBundle(policies=tuple(fixed + policies))
            write_generation(directory, settings, part, generation=generation, version=header.version)
            return (await self._nginx.test(directory)).ok

        if not await passes([]):
            return ""
        while len(suspects) > 1:
            half = suspects[: len(suspects) // 2]
            suspects = suspects[len(half) :] if await passes(half) else half
        return suspects[0].hash if suspects else ""

    async def _take_effect(self, settings: NodeSettings, generation: int, before: int) -> str:
        """Switch and reload, or start; empty, or why it did not take (everything is as it was then)."""
        self._store.switch(generation)
        failpoint("switched")
        running = self._nginx.pid
        if running:
            self._nginx.bound_draining(DRAINING_GENERATIONS * max(1, len(self._nginx.workers()[0])))
            self._nginx.reload()
            failpoint("reloaded")
        else:
            words = await self._nginx.start(settings.control_socket)
            if words:
                return await self._back(before, generation, f"nginx does not start: {words}")
        error = await self.confirm(settings, generation)
        if not error:
            if not running:
                self._nginx.end_orphans()
            return ""
        return await self._back(before, generation, error)

    async def confirm(self, settings: NodeSettings, generation: int) -> str:
        """Wait for a worker of this generation, and for a request to come through; empty, or what did not happen."""
        deadline = time.monotonic() + CONFIRM_SECONDS
        answer = None
        while time.monotonic() < deadline:
            answer = await self._control.generation()
            if answer is not None and answer.generation == generation:
                return await self._probe(settings)
            await asyncio.sleep(0.02)
        running = answer.generation if answer else "none"
        return f"the reload did not take: no worker of generation {generation} answered within {CONFIRM_SECONDS:g} s (running: {running})"

    async def _probe(self, settings: NodeSettings) -> str:
        """One request through the router. The catch-all answers /healthz whatever hosts there are."""
        host = settings.address or "127.0.0.1"
        url = f"http://{host}:{settings.http_port}/healthz"
        last = ""
        for _ in range(20):
            try:
                async with (
                    aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1)) as session,
                    session.get(url, headers={"Host": "_"}, allow_redirects=False) as answer,
                ):
                    if answer.status < 500:
                        return ""
                    last = f"status {answer.status}"
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                last = type(error).__name__
            await asyncio.sleep(0.05)
        return f"the new generation answers, but a request does not come through: {last}"

    async def _back(self, before: int, generation: int, error: str) -> str:
        """Return to the generation before; the failed one is forgotten."""
        log.error("going back", generation=generation, to=before, error=error)
        if before:
            self._store.switch(before)
            if self._nginx.pid:
                self._nginx.reload()
        else:
            with contextlib.suppress(OSError):
                (self._store.directory / "current").unlink()
        return error
