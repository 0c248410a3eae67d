"""The watcher dies between two publishes, is cut off, is fed poison, is overrun, or meets another: the stream ends as the directory is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import nats
import psutil
import pytest
from nats.aio.msg import Msg

from services.compiler import service as compiler
from services.shared.bus.jetstream import JetStreamBus
from services.shared.bus.port import BusError
from services.shared.contracts import subjects
from services.shared.contracts.delta import decode_delta, decode_sync_mark, object_digest, set_digest
from services.shared.contracts.objects import KINDS, AnyObject, Ingress, Key
from services.shared.contracts.question import BarrierAnswer
from services.watcher.__main__ import WatcherOptions, serve
from tests.support.faults import PeakMemory, Proxy, Service, services, until
from tests.support.manifests import ingress
from tests.support.nats import NatsServer
from tests.support.sealing import key_directory

pytestmark = pytest.mark.nats

PUBLISH = re.compile(rb"H?PUB cluster\.v1\.")
SECONDS = 60


class Rig:
    """A server, a directory of manifests, and everything that was ever published, compacted away or not."""

    def __init__(self, server: NatsServer, bus: JetStreamBus, directory: Path) -> None:
        self.server = server
        self.bus = bus
        self.root = directory / "m"
        self.root.mkdir()
        self.seal = key_directory(directory / "seal")
        self._log = directory / "watcher.log"
        self.published: list[tuple[str, bytes]] = []

    async def hear(self, message: Msg) -> None:
        if message.subject.startswith("cluster.v1."):
            self.published.append((message.subject, message.data))

    def watcher(self, url: str = "", name: str = "watcher") -> Service:
        where = ("--manifests", str(self.root), "--seal-keys", str(self.seal), "--nats-url", url or self.server.url)
        return Service(self._log, "watcher", *where, "--name", name)

    def write(self, name: str, host: str) -> None:
        """One Ingress, as an editor saves it."""
        fresh = self.root / f".{name}.tmp"
        fresh.write_text(ingress(name, host=host))
        fresh.rename(self.root / f"{name}.yaml")

    async def covered(self) -> BarrierAnswer:
        """A watcher has published all that is in the directory now."""
        async with asyncio.timeout(SECONDS):
            while True:
                with contextlib.suppress(BusError):
                    return msgspec.json.decode(await self.bus.request(subjects.ASK_WATCHER_BARRIER, b"{}", timeout=20), type=BarrierAnswer)
                await asyncio.sleep(0.02)

    async def world(self) -> dict[Key, AnyObject]:
        messages = await self.bus.history(subjects.CLUSTER_STREAM, subjects.CLUSTER_SUBJECTS)
        deltas = [decode_delta(m.payload) for m in messages if m.subject != subjects.SYNC_SUBJECT]
        return {d.key: d.object for d in deltas if d.object is not None}

    async def hosts(self) -> dict[str, str]:
        """Ingress -> host."""
        return {k.name: obj.spec.rules[0].host for k, obj in (await self.world()).items() if isinstance(obj, Ingress)}

    def deleted(self) -> set[str]:
        """Ingresses of which a tombstone was ever published."""
        return {d.name for s, p in self.published if s != subjects.SYNC_SUBJECT and (d := decode_delta(p)).op == "delete"}

    async def agrees(self) -> bool:
        """The newest mark says what the stream holds."""
        mark = await self.bus.last(subjects.CLUSTER_STREAM, subjects.SYNC_SUBJECT)
        assert mark is not None
        world, said = await self.world(), decode_sync_mark(mark.payload).kinds
        digests = {kind: [object_digest(obj) for k, obj in world.items() if k.kind == kind] for kind in KINDS}
        return all((said[k].count, said[k].digest) == (len(d), set_digest(d)) for k, d in digests.items())


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with NatsServer(tmp_path / "nats") as server, JetStreamBus(server.url, name="test") as bus:
        await bus.ensure()
        made = Rig(server, bus, tmp_path)
        listener = await nats.connect(server.url)
        await listener.subscribe("cluster.v1.>", cb=made.hear)
        await listener.flush()
        try:
            yield made
        finally:
            await listener.close()


async def test_killed_between_any_two_publishes_nothing_is_lost_and_nothing_deleted_that_is_there(rig: Rig) -> None:
    hosts = {f"h{n}": f"h{n}.example" for n in range(60)}
    for name, host in hosts.items():
        rig.write(name, host)
    async with services(rig.watcher()):
        await rig.covered()
    assert await rig.hosts() == hosts

    gone: set[str] = set()
    for round_, point in enumerate((1, 8, 15)):  # of 15 deltas and their mark
        for n in range(12):
            name = f"h{(round_ * 7 + n) % 40}"
            if name not in gone:
                hosts[name] = f"r{round_}-{n}.example"
                rig.write(name, hosts[name])
        for n in range(3):
            name = f"h{40 + round_ * 3 + n}"
            (rig.root / f"{name}.yaml").unlink()
            del hosts[name]
            gone.add(name)
        await _killed_after(rig, point)
        assert rig.deleted() <= gone
        assert hosts.keys() <= (await rig.hosts()).keys()

    async with services(rig.watcher()):
        await rig.covered()
        assert await rig.hosts() == hosts
        assert await rig.agrees()
    assert rig.deleted() == gone


async def _killed_after(rig: Rig, point: int) -> None:
    """A watcher that dies in the middle of its message number `point`."""
    seen = 0

    def passes(data: bytes) -> int:
        nonlocal seen
        for found in PUBLISH.finditer(data):
            if seen == point:
                watcher.send(signal.SIGKILL)
                return found.start() + 40
            seen += 1
        return len(data)

    async with Proxy(rig.server.port, passes) as proxy:
        watcher = rig.watcher(proxy.url)
        async with services(watcher):
            assert await watcher.ended() == -signal.SIGKILL


async def test_cut_off_from_the_bus_it_keeps_the_newest_state_alone(rig: Rig) -> None:
    async with Proxy(rig.server.port) as proxy:
        watcher = rig.watcher(proxy.url)
        async with services(watcher):
            for n in range(20):
                rig.write(f"h{n}", f"h{n}.example")
            await rig.covered()
            proxy.cut()
            before = len(rig.published)
            for edit in range(100):
                for n in range(5):
                    rig.write(f"h{n}", f"e{edit}-{n}.example")
                await asyncio.sleep(0.01)
            (rig.root / "h19.yaml").unlink()
            assert len(rig.published) == before
            proxy.heal()
            await until(lambda: proxy.connections >= 2)

            async with asyncio.timeout(12):  # without waiting for acknowledgements that the cut has swallowed
                await rig.covered()
            wanted = {f"h{n}": f"e99-{n}.example" if n < 5 else f"h{n}.example" for n in range(19)}
            assert await rig.hosts() == wanted
            assert await rig.agrees()
            assert watcher.running, "the same process"
            assert len(rig.published) - before < 60, "500 edits of 5 objects"


async def test_edits_faster_than_the_bus_takes_them_are_few_messages(rig: Rig) -> None:
    async with Proxy(rig.server.port) as proxy:
        watcher = rig.watcher(proxy.url)
        async with services(watcher):
            for n in range(200):
                rig.write(f"h{n}", f"h{n}.example")
            await rig.covered()
            before = len(rig.published)
            with PeakMemory(watcher.process) as memory:
                proxy.hold()
                for edit in range(15):
                    for n in range(200):
                        rig.write(f"h{n}", f"e{edit}-{n}.example")
                    await asyncio.sleep(0.05)
                proxy.release()
                await rig.covered()
            assert await rig.hosts() == {f"h{n}": f"e14-{n}.example" for n in range(200)}
            assert await rig.agrees()
            assert len(rig.published) - before < 800, "3,000 edits of 200 objects"
            assert memory.growth < 64 << 20


async def test_poison_beside_good_files_touches_nothing_else(rig: Rig, tmp_path: Path) -> None:
    for n in range(10):
        rig.write(f"good{n}", f"good{n}.example")
    watcher = rig.watcher()
    async with services(watcher):
        await rig.covered()
        with PeakMemory(watcher.process) as memory:
            _poison(rig.root)
            rig.write("good0", "edited.example")
            answer = await rig.covered()
            hosts = await rig.hosts()
            assert hosts["good0"] == "edited.example"
            assert {f"good{n}" for n in range(10)} <= hosts.keys()
            assert rig.deleted() == set()
            told = " ".join(p.field for p in answer.problems)
            for name in ("bomb.yaml", "binary.yaml", "deep.json", "unclosed.yaml"):
                assert name in told, (name, told)
            for n in range(20):
                rig.write("good1", f"after{n}.example")
                await rig.covered()
                assert (await rig.hosts())["good1"] == f"after{n}.example"
        assert await rig.agrees()
        assert memory.growth < 256 << 20, memory.growth


def _poison(root: Path) -> None:
    """What a directory may hold by mistake or by malice."""
    anchors = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    (root / "bomb.yaml").write_text(anchors)
    (root / "binary.yaml").write_bytes(os.urandom(100_000))
    (root / "deep.json").write_text("[" * 200_000)
    (root / "unclosed.yaml").write_text('a: "\n' * 10)
    (root / "large.yaml").write_bytes(b"# " + b"x" * (8 << 20))
    (root / "null.yaml").write_bytes(b"\0" * 1000)
    (root / "long-line.yaml").write_text("kind: " + "y" * 1_000_000)
    (root / "loop.yaml").symlink_to("loop.yaml")
    (root / "endless.yaml").symlink_to("/dev/zero")
    (root / "up").symlink_to("..")
    (root / "broken\nname.yaml").write_text("{}")
    os.mkfifo(root / "pipe.yaml")
    (root / "directory.yaml").mkdir()
    (root / "huge-name.yaml").write_text(ingress("n" * 5000))
    (root / "wildcard.yaml").write_text(ingress("x").replace("name: x,", "name: '*.>',"))


async def test_what_a_watcher_publishes_late_beside_its_successor_does_not_stay(rig: Rig) -> None:
    """It was cut off with edits on their way, which arrive after a successor has published newer ones."""
    rig.write("h", "first.example")
    async with Proxy(rig.server.port) as proxy, _inside(rig, proxy.url):
        await rig.covered()
        proxy.hold()
        rig.write("h", "older.example")
        await asyncio.sleep(1)  # it has sent that, to nobody
        async with _inside(rig, rig.server.url), _compiling(rig):
            rig.write("h", "newest.example")
            await _host_is(rig, "newest.example")
            proxy.release()
            async with asyncio.timeout(SECONDS):
                while ("older.example" not in str(rig.published)) or await rig.hosts() != {"h": "newest.example"} or not await rig.agrees():
                    await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def _compiling(rig: Rig) -> AsyncIterator[None]:
    """A compiler in this process: it is who notices that the stream is not what its mark says."""
    stop = asyncio.Event()
    async with JetStreamBus(rig.server.url, name="compiler") as bus:
        task = asyncio.ensure_future(compiler.serve(bus, compiler.CompilerOptions(group="default", seal_keys=rig.seal), stop))
        try:
            yield
        finally:
            stop.set()
            await task


async def _host_is(rig: Rig, host: str) -> None:
    async with asyncio.timeout(SECONDS):
        while await rig.hosts() != {"h": host}:
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def _inside(rig: Rig, url: str) -> AsyncIterator[None]:
    """A watcher in this process, that looks for what is wrong twice a second."""
    stop = asyncio.Event()
    async with JetStreamBus(url, name="watcher") as bus:
        options = WatcherOptions(seal_keys=rig.seal, manifests=rig.root, verify_seconds=0.5, name=url[-5:])
        task = asyncio.ensure_future(serve(bus, options, stop))
        try:
            yield
        finally:
            stop.set()
            await task


async def test_stopped_and_continued_at_random_it_catches_up(rig: Rig) -> None:
    watcher = rig.watcher()
    async with services(watcher):
        rig.write("h", "first.example")
        await rig.covered()
        for n in range(10):
            watcher.send(signal.SIGSTOP)
            assert psutil.Process(watcher.process.pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_RUNNING)
            for edit in range(20):
                rig.write("h", f"e{n}-{edit}.example")
                await asyncio.sleep(0.005)
            watcher.send(signal.SIGCONT)
            await rig.covered()
            assert await rig.hosts() == {"h": f"e{n}-19.example"}
        assert rig.deleted() == set()
