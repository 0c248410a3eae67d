"""New policies: a generation is written, tested, switched to, reloaded, and believed only when a worker says so; else all goes back."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import os
import time
from collections.abc import Container, Mapping
from typing import Final

import aiohttp
import msgspec
from msgspec import Struct

from services.applier.control import Control
from services.applier.decide import composed, introduced
from services.applier.nginx import Nginx, TestResult
from services.applier.nodeconf import LUA, NodeSettings, nginx_conf, stream_conf, write_generation
from services.applier.store import Header, Made, Store
from services.applier.streamports import held, missing, taken
from services.applier.streams import NJS, Listener
from services.shared.contracts.version import OPTIONAL_SCOPES, PolicyBundle
from services.shared.telemetry.logs import get_logger

log = get_logger(__name__)

CONFIRM_SECONDS: Final = 3.0
RETIRE_SECONDS: Final = 2.0
"""For the workers of the generation before to take no requests any more."""
MOST_REFUSALS: Final = 50
"""Policies refused in one installation before the rest is given up for now."""
DRAINING_GENERATIONS: Final = 3


class Installed(Struct, frozen=True, kw_only=True):
    """How an installation ended."""

    ok: bool
    generation: int = 0
    bundle: PolicyBundle = PolicyBundle(policies=())
    """What nginx runs now."""
    made_of: str = ""
    refused: dict[str, str] = {}
    """Policies left out (a global one: replaced by the one before): hash -> nginx's words."""
    taken: tuple[str, ...] = ()
    """Ports of TCP and UDP services that could not be had: a sentence each."""
    error: str = ""
    tested_at: float = 0.0
    loaded_at: float = 0.0


def failpoint(name: str) -> None:
    """For tests: a process with SLUICE_FAILPOINT=name dies here, as by kill -9."""
    if os.environ.get("SLUICE_FAILPOINT") == name:
        os.kill(os.getpid(), 9)


@functools.cache
def _lua_digest() -> str:
    """Of the constant Lua and njs: workers keep what they were started with."""
    digest = hashlib.sha256()
    for file in (*sorted(LUA.rglob("*.lua")), *sorted(NJS.rglob("*.js"))):
        digest.update(f"{file.relative_to(LUA.parent)}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def made_of(settings: NodeSettings) -> str:
    """Digest of everything in a generation that is this node's own; the size of its tables grows by itself and is not looked at."""
    return _made_of(msgspec.structs.replace(settings, tables_bytes=0))


@functools.cache
def _made_of(fixed: NodeSettings) -> str:
    """Asked for at each version and four times a second."""
    parts = (str(msgspec.structs.asdict(fixed)), nginx_conf(fixed, PolicyBundle(policies=())), stream_conf(fixed), _lua_digest())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


class Installer:
    """Generations of one node."""

    def __init__(self, store: Store, nginx: Nginx, control: Control) -> None:
        self._store = store
        self._nginx = nginx
        self._control = control
        self._highest = 0
        """A number that failed is not used again: a worker of the failed generation may still answer."""

    async def install(
        self,
        settings: NodeSettings,
        bundle: PolicyBundle,
        stand_in: PolicyBundle,
        header: Header,
        rows: Mapping[str, bytes],
        refused: Mapping[str, str],
    ) -> Installed:
        """Make nginx run this bundle, without the policies it refuses. `rows`: what tables.tsv holds, for a start from this generation.

        `stand_in`: what nginx runs now, and ran before: a global policy that is refused stays as it was there.
        With nginx not running it is started; the outcome is judged the same way.
        """
        before = self._store.current
        generation = self._highest = max(self._highest, before, *self._store.generations(), 0) + 1
        made = Made(of=made_of(settings), tables_bytes=settings.tables_bytes)
        ports = taken(settings, bundle, self._store.path(before), running=bool(self._nginx.pid))
        try:
            error, kept, out = await self._write(settings, bundle, stand_in, generation, header, rows, refused, frozenset(ports))
            if not error:
                self._store.seal(generation, kept, made)
        except OSError as problem:
            error, kept, out = f"a new generation could not be written: {problem}", bundle, dict(refused)
        if error:
            self._store.discard(generation)
            return Installed(ok=False, refused=out, error=error)
        tested = time.time()
        failpoint("tested")
        error = await self._take_effect(settings, generation, before)
        if error:
            self._store.discard(generation)
            return Installed(ok=False, refused=out, error=error, tested_at=tested)
        failpoint("confirmed")
        self._store.keep((generation, before))
        return Installed(
            ok=True,
            generation=generation,
            bundle=kept,
            made_of=made.of,
            refused=out,
            taken=tuple(ports.values()),
            tested_at=tested,
            loaded_at=time.time(),
        )

    def lost(self, settings: NodeSettings, bundle: PolicyBundle) -> bool:
        """Whether nginx, which does not run, would not start: somebody has a port of the current generation now. `bundle`: its policies."""
        current = self._store.path(self._store.current)
        return bool(taken(settings, bundle, current, running=False).keys() & held(current, settings.stream_port_offset))

    def freed(self, settings: NodeSettings, loaded: PolicyBundle) -> bool:
        """Whether a port that could not be had can be now. `loaded`: what nginx runs."""
        return missing(settings, loaded, self._store.path(self._store.current))

    async def _write(
        self,
        settings: NodeSettings,
        bundle: PolicyBundle,
        stand_in: PolicyBundle,
        generation: int,
        header: Header,
        rows: Mapping[str, bytes],
        refused: Mapping[str, str],
        without: frozenset[Listener],
    ) -> tuple[str, PolicyBundle, dict[str, str]]:
        """Write and test, without what is refused and ports that others have, until nginx agrees: (empty or why it does not, what is left,
        what is refused)."""
        out = dict(refused)
        while True:
            kept = composed(bundle, stand_in, out)
            if kept is None:
                return f"a policy that nginx needs is refused: {'; '.join(sorted(set(out.values())))}", bundle, out
            self._store.discard(generation)
            directory = self._store.path(generation)
            write_generation(directory, settings, kept, generation=generation, version=header.version, without=without)
            self._store.write_rows(generation, header, rows)
            failpoint("written")
            test = await self._nginx.test(self._store.path(generation))
            if test.ok:
                return "", kept, out
            culprit = _named(test, kept, stand_in, out) or await self._find(settings, kept, stand_in, out, generation, header, without)
            if not culprit or culprit in out or len(out) >= MOST_REFUSALS:
                return f"nginx refuses the configuration: {test.words}", kept, out
            log.warning("nginx refuses a policy", policy=culprit, words=test.words)
            out[culprit] = test.words

    async def _find(
        self,
        settings: NodeSettings,
        kept: PolicyBundle,
        stand_in: PolicyBundle,
        out: Container[str],
        generation: int,
        header: Header,
        without: frozenset[Listener],
    ) -> str:
        """The policy that nginx refuses where it names no file of ours (for a cipher list, say); empty: it is no single one.

        A new global one is tried against the one before it; location policies are bisected.
        """

        async def passes(part: PolicyBundle) -> bool:
            self._store.discard(generation)
            directory = self._store.path(generation)
            write_generation(directory, settings, part, generation=generation, version=header.version, without=without)
            return (await self._nginx.test(self._store.path(generation))).ok

        usable = PolicyBundle(policies=tuple(p for p in stand_in.policies if p.hash not in out))
        fresh = introduced(kept, stand_in)
        for policy in kept.policies:
            if policy.scope != "location" and policy.hash in fresh:
                part = composed(kept, usable, {policy.hash})
                if part is not None and await passes(part):
                    return policy.hash
        fixed = tuple(p for p in kept.policies if p.scope != "location")
        suspects = [p for p in kept.policies if p.scope == "location"]
        if not suspects or not await passes(PolicyBundle(policies=fixed)):
            return ""
        while len(suspects) > 1:
            half = suspects[: len(suspects) // 2]
            suspects = suspects[len(half) :] if await passes(PolicyBundle(policies=(*fixed, *half))) else half
        return suspects[0].hash

    async def _take_effect(self, settings: NodeSettings, generation: int, before: int) -> str:
        """Switch and reload, or start; empty, or why it did not take (everything is as it was then)."""
        try:
            self._store.switch(generation)
        except OSError as problem:
            return f"the new generation could not be switched to: {problem}"
        failpoint("switched")
        running = self._nginx.pid
        serving = self._nginx.workers()[0] if running else set[int]()
        if running:
            # this reload adds one
            self._nginx.bound_draining((DRAINING_GENERATIONS - 1) * max(1, len(serving)))
            self._nginx.reload()
            failpoint("reloaded")
        else:
            words = await self._nginx.start(settings.sockets)
            if words:
                return await self._back(before, generation, f"nginx does not start: {words}")
        error = await self.confirm(settings, generation)
        if not error:
            if running:
                await self._nginx.retired(serving, RETIRE_SECONDS)
            else:
                self._nginx.end_orphans()
            return ""
        return await self._back(before, generation, error)

    async def confirm(self, settings: NodeSettings, generation: int, *, probe: bool = True) -> str:
        """Wait for a worker of this generation, and for a request to come through; empty, or what did not happen."""
        deadline = time.monotonic() + CONFIRM_SECONDS
        answer = None
        while time.monotonic() < deadline:
            answer = await self._control.generation()
            if answer is not None and answer.generation == generation:
                return await self._probe(settings) if probe else ""
            await asyncio.sleep(0.02)
        running = answer.generation if answer else "none"
        return f"the reload did not take: no worker of generation {generation} answered within {CONFIRM_SECONDS:g} s (running: {running})"

    async def _probe(self, settings: NodeSettings) -> str:
        """One request through the router. The catch-all answers /healthz whatever hosts there are."""
        host = settings.address or "127.0.0.1"
        url = f"http://{host}:{settings.http_port}/healthz"
        last = ""
        deadline = time.monotonic() + CONFIRM_SECONDS
        while time.monotonic() < deadline:
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
        """Return to the generation before."""
        log.error("going back", generation=generation, to=before, error=error)
        if before:
            self._store.switch(before)
            if self._nginx.pid:
                self._nginx.reload()
        else:
            with contextlib.suppress(OSError):
                (self._store.directory / "current").unlink()
        return error


def _named(test: TestResult, kept: PolicyBundle, stand_in: PolicyBundle, refused: Container[str]) -> str:
    """The policy whose file nginx complains of; a global one only where another can stand in for it, or none is needed."""
    if test.policy or not test.scope:
        return test.policy
    others = {p.hash for p in stand_in.policies if p.scope == test.scope and p.hash not in refused}
    dispensable = test.scope in OPTIONAL_SCOPES
    return next((p.hash for p in kept.policies if p.scope == test.scope and (dispensable or others - {p.hash})), "")
