"""The watcher whole: real files, real watching, a real nats-server that is killed and wiped."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from services.shared.bus.jetstream import JetStreamBus
from services.shared.bus.port import BusError, Message
from services.shared.contracts import subjects
from services.shared.contracts.delta import decode_delta, decode_sync_mark, object_digest, set_digest
from services.shared.contracts.objects import KINDS, AnyObject, Ingress, Key
from services.shared.contracts.question import BarrierAnswer
from services.shared.contracts.report import WatcherReport, decode_watcher_report
from services.watcher.__main__ import WatcherOptions, serve
from tests.support.manifests import ingress, secret, service, several
from tests.support.nats import NatsServer
from tests.support.sealing import key_directory

pytestmark = pytest.mark.nats


def key(name: str, kind: str = "Ingress") -> Key:
    return Key(kind, "default", name)


CLASS = Key("IngressClass", "", "nginx")


class Cell:
    """A nats-server, a directory, and a bus to look with."""

    def __init__(self, server: NatsServer, bus: JetStreamBus, root: Path) -> None:
        self.server = server
        self.bus = bus
        self.root = root

    @contextlib.asynccontextmanager
    async def watcher(self, **options: object) -> AsyncIterator[None]:
        """A watcher that has answered once."""
        stop = asyncio.Event()
        async with JetStreamBus(self.server.url, name="watcher") as bus:
            settings = msgspec.structs.replace(
                WatcherOptions(seal_keys=key_directory(self.root.parent / "seal"), manifests=self.root), **options
            )
            task = asyncio.ensure_future(serve(bus, settings, stop))
            try:
                await until(lambda: self.answered(task))
                yield
            finally:
                stop.set()
                await task

    async def answered(self, task: asyncio.Task[None]) -> bool:
        if task.done():
            task.result()
        try:
            await self.barrier()
        except BusError:
            return False
        return True

    async def barrier(self) -> BarrierAnswer:
        return msgspec.json.decode(await self.bus.request(subjects.ASK_WATCHER_BARRIER, b"{}", timeout=5), type=BarrierAnswer)

    async def messages(self) -> list[Message]:
        return await self.bus.history(subjects.CLUSTER_STREAM, subjects.CLUSTER_SUBJECTS)

    async def world(self) -> dict[Key, AnyObject]:
        deltas = [decode_delta(m.payload) for m in await self.messages() if m.subject != subjects.SYNC_SUBJECT]
        return {d.key: d.object for d in deltas if d.object is not None}

    async def hosts(self) -> dict[str, str]:
        return {k.name: obj.spec.rules[0].host for k, obj in (await self.world()).items() if isinstance(obj, Ingress)}

    async def report(self) -> WatcherReport:
        return decode_watcher_report((await self.bus.entries(subjects.WATCHERS_BUCKET))["watcher"])

    async def assert_marked(self) -> None:
        """The stream ends with a mark that agrees with it."""
        messages = await self.messages()
        assert messages[-1].subject == subjects.SYNC_SUBJECT
        mark, world = decode_sync_mark(messages[-1].payload), await self.world()
        for kind in KINDS:
            digests = [object_digest(obj) for k, obj in world.items() if k.kind == kind]
            assert (mark.kinds[kind].count, mark.kinds[kind].digest) == (len(digests), set_digest(digests))


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.005)


@pytest.fixture
async def cell(tmp_path: Path) -> AsyncIterator[Cell]:
    (tmp_path / "m").mkdir()
    server = NatsServer(tmp_path / "nats")
    await server.start()
    try:
        async with JetStreamBus(server.url, name="test") as bus:
            await bus.ensure()
            yield Cell(server, bus, tmp_path / "m")
    finally:
        server.kill()


async def test_edits_renames_and_deletions_reach_the_stream_by_themselves(cell: Cell) -> None:
    (cell.root / "a.yaml").write_text(several(ingress("a"), service("web")))
    async with cell.watcher(verify_seconds=3600.0):
        assert set(await cell.world()) == {key("a"), key("web", "Service"), CLASS}

        (cell.root / "sub").mkdir()
        (cell.root / "sub" / "b.json").write_text('{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}')
        await until(lambda: holds(cell, Key("Namespace", "", "n")))

        (cell.root / "a.yaml").write_text(ingress("a", host="new.example"))
        await until(lambda: has_hosts(cell, {"a": "new.example"}))
        await until(lambda: lacks(cell, key("web", "Service")))

        (cell.root / ".tmp").write_text(ingress("a", host="newer.example"))
        (cell.root / ".tmp").rename(cell.root / "a.yaml")
        await until(lambda: has_hosts(cell, {"a": "newer.example"}))

        (cell.root / "sub").rename(cell.root.parent / "elsewhere")
        await until(lambda: lacks(cell, Key("Namespace", "", "n")))
        (cell.root / "a.yaml").unlink()
        await until(lambda: has_hosts(cell, {}))
        await cell.assert_marked()


async def holds(cell: Cell, wanted: Key) -> bool:
    return wanted in await cell.world()


async def lacks(cell: Cell, unwanted: Key) -> bool:
    return unwanted not in await cell.world()


async def has_hosts(cell: Cell, hosts: dict[str, str]) -> bool:
    return await cell.hosts() == hosts


async def test_a_barrier_covers_a_file_written_an_instant_before(cell: Cell) -> None:
    path = cell.root / "a.yaml"
    path.write_text(ingress("a"))
    async with cell.watcher():
        for n in range(40):
            path.write_text(ingress("a", host=f"h{n % 10}.example"))
            answer = await cell.barrier()
            message = await cell.bus.last(subjects.CLUSTER_STREAM, subjects.cluster_subject("Ingress", "default", "a"))
            assert message is not None and message.sequence <= answer.sequence
            assert await cell.hosts() == {"a": f"h{n % 10}.example"}
        path.unlink()
        await cell.barrier()
        assert await cell.hosts() == {}
        await cell.assert_marked()


async def test_a_barrier_says_what_it_does_not_cover_and_so_does_the_report(cell: Cell) -> None:
    (cell.root / "a.yaml").write_text(ingress("a"))
    async with cell.watcher():
        (cell.root / "a.yaml").write_text("a: [\n")
        (cell.root / "b.yaml").write_text(ingress("b"))

        answer = await cell.barrier()

        assert [p.field for p in answer.problems] == ["a.yaml:2"]
        assert set(await cell.hosts()) == {"a", "b"}

        async def reported() -> bool:
            return [p.field for p in (await cell.report()).problems] == ["a.yaml:2"]

        await until(reported)
        report = await cell.report()
        assert report.synced and report.objects == {"Ingress": 2, "IngressClass": 1} and report.source.startswith("manifests ")


async def test_deletions_while_no_watcher_ran_are_tombstones_and_nothing_else_moves(cell: Cell) -> None:
    for name in ("a", "b", "c"):
        (cell.root / f"{name}.yaml").write_text(ingress(name))
    async with cell.watcher():
        before = {m.subject: m.sequence for m in await cell.messages()}
    (cell.root / "b.yaml").unlink()
    (cell.root / "c.yaml").write_text("a: [\n")

    async with cell.watcher():
        # b may have been in c.yaml, for all that can be known
        assert set(await cell.hosts()) == {"a", "b", "c"}
        (cell.root / "c.yaml").write_text(ingress("c"))
        await until(lambda: lacks(cell, key("b")))
        after = {m.subject: m.sequence for m in await cell.messages()}

    moved = {subject for subject in after if after[subject] != before.get(subject)}
    assert moved == {subjects.SYNC_SUBJECT, subjects.cluster_subject("Ingress", "default", "b")}
    await cell.assert_marked()


async def test_a_missing_directory_deletes_nothing(cell: Cell) -> None:
    (cell.root / "a.yaml").write_text(ingress("a"))
    async with cell.watcher():
        pass
    cell.root.rename(cell.root.parent / "away")

    async with cell.watcher():
        assert set(await cell.hosts()) == {"a"}
        assert [p.field for p in (await cell.barrier()).problems] == ["."]
        assert not (await cell.report()).synced

        (cell.root.parent / "away").rename(cell.root)
        (cell.root / "b.yaml").write_text(ingress("b"))
        await until(lambda: has_hosts(cell, {"a": "a.example", "b": "b.example"}))
        (cell.root / "a.yaml").write_text(ingress("a", host="seen.example"))
        await until(lambda: has_hosts(cell, {"a": "seen.example", "b": "b.example"}))


async def test_changes_while_the_server_is_away_arrive_once_it_is_back(cell: Cell) -> None:
    (cell.root / "a.yaml").write_text(ingress("a"))
    async with cell.watcher():
        cell.server.stop()
        for n in range(20):
            (cell.root / "a.yaml").write_text(ingress("a", host=f"h{n}.example"))
            (cell.root / f"x{n}.yaml").write_text(ingress(f"x{n}"))
            (cell.root / f"x{n}.yaml").unlink()
            await asyncio.sleep(0)
        await cell.server.start()

        await until(lambda: has_hosts(cell, {"a": "h19.example"}))
        await until(lambda: answered(cell))
        await cell.assert_marked()


async def answered(cell: Cell) -> bool:
    try:
        return (await cell.barrier()).sequence > 0
    except BusError:
        return False


async def test_a_wiped_stream_is_filled_again(cell: Cell) -> None:
    (cell.root / "a.yaml").write_text(several(ingress("a"), service("web")))
    async with cell.watcher(verify_seconds=3600.0):
        cell.server.stop()
        cell.server.wipe()
        await cell.server.start()

        await until(lambda: has_hosts(cell, {"a": "a.example"}))
        await until(lambda: holds(cell, key("web", "Service")))
        await until(lambda: answered(cell))
        await cell.assert_marked()


async def test_a_resync_puts_right_what_the_stream_lost(cell: Cell) -> None:
    (cell.root / "a.yaml").write_text(ingress("a"))
    async with cell.watcher(verify_seconds=3600.0):
        subject = subjects.cluster_subject("Ingress", "default", "a")
        stray = subjects.cluster_subject("Ingress", "default", "stray")
        await cell.bus.publish(subject, b"junk")
        await cell.bus.publish(stray, b"junk")

        answer = msgspec.json.decode(await cell.bus.request(subjects.ASK_WATCHER_RESYNC, b"{}", timeout=5), type=BarrierAnswer)

        assert await cell.hosts() == {"a": "a.example"}
        assert answer.sequence == await cell.bus.last_sequence(subjects.CLUSTER_STREAM)
        await cell.assert_marked()


async def test_only_referenced_secrets_leave_and_a_trace_begins(cell: Cell) -> None:
    (cell.root / "a.yaml").write_text(several(ingress("a", secret="cert"), secret("cert"), secret("other", text="hunter2")))
    async with cell.watcher():
        world = await cell.world()
        assert {k for k in world if k.kind == "Secret"} == {key("cert", "Secret")}
        assert not any(b"hunter2" in m.payload for m in await cell.messages())

        (cell.root / "a.yaml").write_text(several(ingress("a"), secret("cert")))
        await cell.barrier()
        assert not any(k.kind == "Secret" for k in await cell.world())

        message = await cell.bus.last(subjects.CLUSTER_STREAM, subjects.cluster_subject("Ingress", "default", "a"))
        assert message is not None and message.headers["traceparent"].startswith("00-")
        delta = decode_delta(message.payload)
        assert 0 < delta.observed_at <= delta.published_at


async def test_of_two_watchers_the_later_publishes_and_the_other_takes_over_when_it_is_silent(cell: Cell) -> None:
    (cell.root / "a.yaml").write_text(ingress("a"))
    async with cell.watcher(verify_seconds=0.2):
        async with cell.watcher(name="second", verify_seconds=0.2):

            async def stands_by() -> bool:
                return not (await cell.report()).synced

            await until(stands_by)
            for n in range(10):
                (cell.root / "a.yaml").write_text(ingress("a", host=f"h{n}.example"))
                await cell.barrier()
                assert await cell.hosts() == {"a": f"h{n}.example"}
            mark = await cell.bus.last(subjects.CLUSTER_STREAM, subjects.SYNC_SUBJECT)
            assert mark is not None and decode_sync_mark(mark.payload).epoch == 2
        (cell.root / "a.yaml").write_text(ingress("a", host="after.example"))

        await until(lambda: has_hosts(cell, {"a": "after.example"}))
        await until(lambda: answered(cell))
        await cell.assert_marked()
        mark = await cell.bus.last(subjects.CLUSTER_STREAM, subjects.SYNC_SUBJECT)
        assert mark is not None and decode_sync_mark(mark.payload).epoch == 3
