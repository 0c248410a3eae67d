"""Watchers, compilers, a webhook and edge nodes as processes on a cluster of NATS servers, and what nginx on the nodes really serves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from services.applier.control import Control
from services.applier.nodeconf import NodeSettings
from services.compiler.engine import Engine
from services.shared.contracts.version import VersionId, bundle_digest, version_digest
from services.shared.flags import Flags
from services.shared.versions.read import digest_of
from services.webhook.certificate import make_certificate
from tests.support.compiling import upsert
from tests.support.faults import Service
from tests.support.nats import free_port
from tests.support.nats_cluster import NatsCluster
from tests.support.sealing import key_directory
from tests.support.up import get

CONVERGED_SECONDS = 90
"""Generous: what is asserted is that it happens, on a slow machine beside other tests."""
LOOK_SECONDS = 0.03


class Node:
    """One applier with its nginx."""

    def __init__(self, directory: Path, cluster: NatsCluster, name: str) -> None:
        self.name = name
        self.directory = directory / name
        self.http, https, health = free_port(), free_port(), free_port()
        self._control = Control(NodeSettings(directory=self.directory, http_port=self.http, https_port=https).control_socket)
        self.service = Service(
            directory / f"{name}.log",
            *("applier", "--node", name, "--directory", str(self.directory)),
            *("--http-port", str(self.http), "--https-port", str(https), "--health-port", str(health)),
            *cluster.arguments(name),
        )

    async def live(self) -> tuple[VersionId, str] | None:
        """(version, digest of all its content; empty while a row waits for its policy), as a worker says; None: no worker answers."""
        found = await self._control.generation()
        if found is None or not found.version:
            return None
        epoch, _, number = found.version.partition(".")
        return VersionId(int(epoch), int(number)), found.digest

    async def generation(self) -> int:
        """Grows with each reload; 0: no worker answers."""
        found = await self._control.generation()
        return found.generation if found is not None else 0

    async def status(self, host: str) -> int:
        """Of a request; 0: none came."""
        try:
            return (await asyncio.to_thread(get, self.http, host))[0]
        except OSError:
            return 0

    async def close(self) -> None:
        await self.service.end()
        for process in psutil.process_iter(["cmdline"]):
            if str(self.directory) in " ".join(process.info["cmdline"] or []):
                for child in process.children():
                    child.kill()
                process.kill()


class Plane:
    """Services are made here, started and ended by `running`."""

    def __init__(self, directory: Path, cluster: NatsCluster, *, source: Sequence[str], compilers: int = 1, watchers: int = 1) -> None:
        """`source`: arguments of each watcher that say where its objects are."""
        self.cluster = cluster
        seal = ("--seal-keys", str(key_directory(directory / "seal")))
        self.watchers = [
            Service(directory / f"watcher-{n}.log", "watcher", *source, "--name", f"watcher-{n}", *seal, *cluster.arguments("watcher"))
            for n in range(watchers)
        ]
        self.compilers = [
            Service(directory / f"compiler-{n}.log", "compiler", "--name", f"compiler-{n}", *seal, *cluster.arguments("compiler"))
            for n in range(compilers)
        ]
        self.webhook_port = free_port()
        paths = make_certificate(directory / "webhook")
        self.webhook = Service(
            directory / "webhook.log",
            *("webhook", "--certificate", str(paths.certificate), "--key", str(paths.key), "--port", str(self.webhook_port)),
            *cluster.arguments("webhook"),
        )
        self._directory = directory
        self.nodes = [self.node(f"node-{n}") for n in range(2)]

    def node(self, name: str) -> Node:
        """One more; who starts it closes it."""
        return Node(self._directory, self.cluster, name)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Plane]:
        try:
            for one in (*(n.service for n in self.nodes), *self.compilers, *self.watchers, self.webhook):
                one.start()
            yield self
        finally:
            for one in (*self.watchers, *self.compilers, self.webhook):
                await one.end()
            for node in self.nodes:
                await node.close()

    async def serve(self, digest: str, *more: Node) -> list[VersionId]:
        """Wait until this is the whole content of each node (and of `more`); their versions."""
        nodes = (*self.nodes, *more)
        found: list[tuple[VersionId, str] | None] = []
        try:
            async with asyncio.timeout(CONVERGED_SECONDS):
                while True:
                    found = [await node.live() for node in nodes]
                    done = [f[0] for f in found if f is not None and f[1] == digest]
                    if len(done) == len(nodes):
                        return done
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError:
            raise AssertionError(f"nodes serve {found}, and not {digest}") from None


def digest_of_objects(objects: Iterable[Mapping[str, Any]]) -> str:
    """The oracle: the digest that a version of these objects must have."""
    engine = Engine(Flags())
    for obj in objects:
        engine.apply(upsert(obj))
    engine.compile()
    return version_digest(bundle_digest(engine.bundle), digest_of(engine.rows).hex)


class Observer:
    """What the nodes' nginx serves, from one moment to the next, while the block runs; no part of the bus has a part in it."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = nodes
        self.versions: dict[str, list[VersionId]] = {node.name: [] for node in nodes}
        """Node -> what it served, in order; the same version twice in a row is one entry."""
        self.contents: dict[VersionId, set[str]] = {}
        """Version -> the digests it was served with; there must be one."""
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Observer:
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _look(self) -> None:
        while True:
            for node in self._nodes:
                found = await node.live()
                if found is None:
                    continue
                version, digest = found
                served = self.versions[node.name]
                if not served or served[-1] != version:
                    served.append(version)
                if digest:
                    self.contents.setdefault(version, set()).add(digest)
            await asyncio.sleep(LOOK_SECONDS)

    def check(self) -> None:
        """No node ever went back, and no version was two contents."""
        for name, served in self.versions.items():
            assert served == sorted(set(served)), f"{name} went back: {served}"
        twice = {version: digests for version, digests in self.contents.items() if len(digests) > 1}
        assert not twice, f"one version, several contents: {twice}"
