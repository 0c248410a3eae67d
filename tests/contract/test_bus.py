"""The bus port, held to by the real NATS: streams with compare-and-set, followers that survive anything, buckets, blobs, questions."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator
from pathlib import Path

import nats.errors
import nats.js.errors
import pytest

from services.shared.bus.jetstream import JetStreamBus, NodeBus
from services.shared.bus.jetstream import node as node_module
from services.shared.bus.jetstream.connection import mapped
from services.shared.bus.port import (
    BusError,
    BusUnavailable,
    CaughtUp,
    Conflict,
    Entry,
    FollowItem,
    Message,
    NoAnswer,
    Request,
    Reset,
    TooLarge,
)
from services.shared.contracts import subjects
from tests.support.nats import NatsServer

pytestmark = pytest.mark.nats

STREAM = subjects.CLUSTER_STREAM


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with NatsServer(tmp_path / "nats") as running:
        yield running


@pytest.fixture
async def bus(server: NatsServer) -> AsyncIterator[JetStreamBus]:
    async with JetStreamBus(server.url, name="test") as connected:
        await connected.ensure()
        yield connected


class Following:
    """A follower whose items are taken one by one, with a deadline."""

    def __init__(self, bus: JetStreamBus, subject: str, *, after: int = 0, last_only: bool = False) -> None:
        self._items = bus.follow(STREAM, subject, after=after, last_only=last_only)

    async def next(self) -> FollowItem:
        async with asyncio.timeout(20):
            return await anext(self._items)

    async def until(self, kind: type[FollowItem]) -> list[FollowItem]:
        out = []
        while True:
            item = await self.next()
            out.append(item)
            if isinstance(item, kind):
                return out

    async def close(self) -> None:
        await self._items.aclose()


async def _publish(bus: JetStreamBus, subject: str, payload: bytes) -> int:
    """As a service does: again until it is stored."""
    while True:
        try:
            return await bus.publish(subject, payload)
        except BusUnavailable:
            await asyncio.sleep(0.02)


async def test_compare_and_set(bus: JetStreamBus) -> None:
    first = await bus.publish("config.v1.x", b"1", expected_last=0)
    with pytest.raises(Conflict):
        await bus.publish("config.v1.x", b"2", expected_last=0)
    second = await bus.publish("config.v1.x", b"2", expected_last=first)
    last = await bus.last(subjects.CONFIG_STREAM, "config.v1.x")
    assert last is not None
    assert (last.payload, last.sequence) == (b"2", second)
    assert await bus.last(subjects.CONFIG_STREAM, "config.v1.y") is None
    assert [m.payload for m in await bus.history(subjects.CONFIG_STREAM, "config.v1.x")] == [b"1", b"2"]
    assert [m.payload for m in await bus.history(subjects.CONFIG_STREAM, "config.v1.x", limit=1)] == [b"2"]


async def test_the_cluster_stream_keeps_the_last_of_each_subject(bus: JetStreamBus) -> None:
    for n in range(3):
        await bus.publish("cluster.v1.a.b.c", b"%d" % n)
    await bus.publish("cluster.v1.a.b.d", b"x", headers={"traceparent": "00-1-2-03"})
    found = await bus.history(STREAM, "cluster.v1.>")
    assert [(m.payload, dict(m.headers)) for m in found] == [(b"2", {}), (b"x", {"traceparent": "00-1-2-03"})]


async def test_what_is_too_large_is_refused_before_it_is_sent(bus: JetStreamBus) -> None:
    with pytest.raises(TooLarge):
        await bus.publish("cluster.v1.a.b.c", b"x" * (8 * 1024 * 1024 + 1))
    headers = {"traceparent": "00-1-2-03"}
    rest = 8 * 1024 * 1024 - len(b"NATS/1.0\r\ntraceparent: 00-1-2-03\r\n\r\n")
    with pytest.raises(TooLarge):
        await bus.publish_many([("cluster.v1.a.b.c", b"x" * (rest + 1), headers)])
    assert await bus.last_sequence(STREAM) == 0
    assert await bus.publish_many([("cluster.v1.a.b.c", b"x" * rest, headers)]) == 1


async def test_follow_backlog_then_news(bus: JetStreamBus) -> None:
    await bus.publish_many([(f"cluster.v1.k.n.{i}", b"%d" % i, None) for i in range(2000)])
    following = Following(bus, "cluster.v1.>")
    backlog = await following.until(CaughtUp)
    assert [m.payload for m in backlog[:-1] if isinstance(m, Message)] == [b"%d" % i for i in range(2000)]
    await bus.publish("cluster.v1.k.n.new", b"news")
    item = await following.next()
    assert isinstance(item, Message)
    assert item.payload == b"news"
    await following.close()


async def test_follow_after_and_filtered_and_empty(bus: JetStreamBus) -> None:
    for n in range(4):
        await bus.publish(f"cluster.v1.k.n.{n}", b"%d" % n)
    late = Following(bus, "cluster.v1.>", after=2)
    assert [m.payload for m in await late.until(CaughtUp) if isinstance(m, Message)] == [b"2", b"3"]
    nothing = Following(bus, "cluster.v1.other.>")
    assert isinstance(await nothing.next(), CaughtUp)
    await late.close()
    await nothing.close()


async def test_a_follower_survives_a_killed_server(bus: JetStreamBus, server: NatsServer) -> None:
    await bus.publish("cluster.v1.k.n.a", b"1")
    following = Following(bus, "cluster.v1.>")
    await following.until(CaughtUp)
    server.kill()
    await server.start()
    await _publish(bus, "cluster.v1.k.n.b", b"2")
    item = await following.next()
    assert isinstance(item, Message), "no reset, and nothing twice"
    assert item.payload == b"2"
    await following.close()


async def test_a_wiped_store_is_a_reset_and_everything_is_made_again(bus: JetStreamBus, server: NatsServer) -> None:
    await bus.publish("cluster.v1.k.n.a", b"1")
    following = Following(bus, "cluster.v1.>")
    await following.until(CaughtUp)
    server.kill()
    server.wipe()
    await server.start()
    await _publish_after_wipe(bus)
    items = await following.until(Message)
    assert any(isinstance(i, Reset) for i in items)
    await following.close()


async def _publish_after_wipe(bus: JetStreamBus) -> None:
    while True:
        with contextlib.suppress(BusError):
            await bus.ensure()
            await bus.publish("cluster.v1.k.n.b", b"2")
            return
        await asyncio.sleep(0.02)


async def test_buckets(bus: JetStreamBus) -> None:
    await bus.put("verdicts", "a.b", b"1")
    watching = bus.watch("verdicts")
    first, caught_up = await anext(watching), await anext(watching)
    assert isinstance(first, Entry)
    assert (first.key, first.value) == ("a.b", b"1")
    assert isinstance(caught_up, CaughtUp)
    await bus.put("verdicts", "a.b", b"2")
    await bus.delete("verdicts", "a.b")
    changes = [await anext(watching), await anext(watching)]
    assert [c.value for c in changes if isinstance(c, Entry)] == [b"2", None]
    assert await bus.entries("verdicts") == {}
    await watching.aclose()


async def test_blobs(bus: JetStreamBus) -> None:
    data = bytes(range(256)) * 12000
    digest = await bus.put_blob(data)
    assert await bus.put_blob(data) == digest
    assert await bus.get_blob(digest) == data
    assert await bus.get_blob("0" * 64) is None
    assert await bus.list_blobs() == {digest}
    await bus.delete_blob(digest)
    assert await bus.get_blob(digest) is None


async def test_questions(bus: JetStreamBus, server: NatsServer) -> None:
    async def answer(request: Request) -> bytes:
        if request.payload == b"fail":
            raise ValueError("a bug")
        return request.payload.upper()

    with pytest.raises(NoAnswer):
        await bus.request("ask.v1.nobody", b"x", timeout=0.5)
    async with JetStreamBus(server.url, name="other") as other:
        stop = await other.serve("ask.v1.test", answer, queue="q")
        assert await bus.request("ask.v1.test", b"hello", timeout=2) == b"HELLO"
        with pytest.raises(NoAnswer, match="failed"):  # and not at the end of its time
            await bus.request("ask.v1.test", b"fail", timeout=60)
        await stop()


async def test_without_a_server_calls_say_so_and_do_not_hang(bus: JetStreamBus, server: NatsServer) -> None:
    server.kill()
    while bus.connected:
        await asyncio.sleep(0.01)
    with pytest.raises(BusUnavailable):
        await bus.publish("cluster.v1.k.n.a", b"1")
    with pytest.raises(BusUnavailable):
        await bus.request("ask.v1.x", b"", timeout=1)


async def test_attempts_that_a_hanging_server_does_not_answer_leave_no_connection_behind(bus: JetStreamBus, server: NatsServer) -> None:
    left: list[asyncio.Task[bytes]] = []

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left.append(asyncio.ensure_future(reader.read()))
        with contextlib.suppress(OSError):
            await left[-1]
        writer.close()

    server.kill()
    async with await asyncio.start_server(mute, "127.0.0.1", server.port), asyncio.timeout(60):
        while len(left) < 3:
            await asyncio.sleep(0.02)
        await asyncio.wait(left[:2])
        await bus.__aexit__()
        await asyncio.wait(left)


@pytest.mark.parametrize("module", [nats.errors, nats.js.errors])
def test_every_foreign_exception_becomes_one_of_the_ports(module: object) -> None:
    """One border: whatever nats-py can raise, users of the port see a BusError."""
    for _, kind in inspect.getmembers(module, inspect.isclass):
        if not issubclass(kind, Exception) or kind.__module__ != getattr(module, "__name__", ""):
            continue
        bare: type[Exception] = type(kind.__name__, (kind,), {"__str__": lambda _: "said"})  # texts need fields that the library sets
        error = bare.__new__(bare)
        for field in ("code", "err_code", "description", "stream", "seq"):
            with contextlib.suppress(AttributeError):
                setattr(error, field, None)
        with pytest.raises(BusError), mapped():
            raise error


def test_tokens_are_reversible() -> None:
    for name in ("", "a", "a.b", "A_b", "_", "ü", "a-b", "..", "*", ">", "a b"):
        encoded = subjects.token(name)
        assert subjects.untoken(encoded) == name
        assert not set(encoded) & set(".*> ")


@pytest.fixture
async def node(server: NatsServer) -> AsyncIterator[NodeBus]:
    async with NodeBus(server.url, name="node") as connected:
        yield connected


async def _next(items: AsyncIterator[FollowItem]) -> FollowItem:
    async with asyncio.timeout(20):
        return await anext(items)


async def test_a_node_follows_without_a_consumer(bus: JetStreamBus, node: NodeBus, server: NatsServer) -> None:
    subject = subjects.config_subject("x")
    await bus.publish(subject, b"1")
    items = node.follow(subjects.CONFIG_STREAM, subject, last_only=True)
    assert await _next(items) == Message(subject=subject, payload=b"1", sequence=1)
    assert await _next(items) == CaughtUp(1)

    await bus.publish(subject, b"2", headers={"traceparent": "t"})
    assert await _next(items) == Message(subject=subject, payload=b"2", sequence=2, headers={"traceparent": "t"})
    with pytest.raises(Conflict):
        await bus.publish(subject, b"lost the race", expected_last=1)
    server.kill()
    await server.start()
    await bus.ensure()
    await bus.publish(subject, b"3")
    assert await _next(items) == Message(subject=subject, payload=b"3", sequence=3), "what was not stored is not heard"
    assert (await bus._connection.js.stream_info(subjects.CONFIG_STREAM)).state.consumer_count == 0
    assert [m.payload for m in await node.history(subjects.CONFIG_STREAM, subject)] == [b"1", b"2", b"3"]
    await items.aclose()


async def test_what_is_told_is_stored_in_order(bus: JetStreamBus, server: NatsServer) -> None:
    subject = subjects.applied_subject("n")
    for n in range(20):
        await bus.tell(subject, f"{n}".encode())
    await bus.publish(subject, b"20")
    assert [m.payload for m in await bus.history(subjects.APPLIED_STREAM, subject)] == [f"{n}".encode() for n in range(21)]
    with pytest.raises(TooLarge):
        await bus.tell(subject, b"x" * ((8 << 20) + 1))
    server.kill()
    await asyncio.sleep(0.5)
    with pytest.raises(BusUnavailable):
        await bus.tell(subject, b"nobody hears")


async def test_a_node_reads_what_is_stored_as_others_do(bus: JetStreamBus, node: NodeBus, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, subject = subjects.CONFIG_STREAM, subjects.config_subject("x")
    assert await node.history(stream, subject) == []
    for n in range(25):
        await bus.publish(subjects.config_subject("y"), b"another group's")
        await bus.publish(subject, f"{n}".encode(), headers={"traceparent": f"t{n}"})
    monkeypatch.setattr(node_module, "MESSAGES_AT_ONCE", 10)
    for after, limit in ((0, 0), (20, 0), (49, 0), (50, 0), (0, 3), (30, 3)):
        assert await node.history(stream, subject, after=after, limit=limit) == await bus.history(stream, subject, after=after, limit=limit)
    found = await node.history(stream, subject, after=20)
    assert [m.sequence for m in found] == list(range(22, 51, 2))

    monkeypatch.setattr(node_module, "BYTES_AT_ONCE", 100)
    assert await node.history(stream, subject) == await bus.history(stream, subject)
    with pytest.raises(BusUnavailable, match="NOT_THERE"):
        await node.history("NOT_THERE", subject)


async def test_a_node_notices_that_its_stream_went_back(bus: JetStreamBus, node: NodeBus) -> None:
    subject = subjects.config_subject("x")
    await bus.publish(subject, b"1")
    await bus.publish(subject, b"2")
    items = node.follow(subjects.CONFIG_STREAM, subject, last_only=True)
    assert isinstance(await _next(items), Message)
    assert await _next(items) == CaughtUp(2)
    await bus._connection.js.delete_stream(subjects.CONFIG_STREAM)
    await bus.ensure()
    await bus.publish(subject, b"new")
    assert isinstance(await _next(items), Reset)
    assert await _next(items) == Message(subject=subject, payload=b"new", sequence=1)
    await items.aclose()


async def test_a_blob_of_many_parts_and_one_that_is_not_whole(bus: JetStreamBus, node: NodeBus) -> None:
    data = bytes(range(256)) * 6000
    digest = await bus.put_blob(data)
    assert await node.get_blob(digest) == data
    assert await bus.list_blobs() == {digest}
    await bus._connection.js.purge_stream(subjects.BLOBS_STREAM, subject=subjects.blob_subject(digest, 1))
    assert await node.get_blob(digest) is None
    await bus.delete_blob(digest)
    assert await bus.list_blobs() == set()


async def test_no_publisher_wipes_what_is_others(bus: JetStreamBus) -> None:
    """`Nats-Rollup` on one's own key would delete all other keys of a bucket made in the usual way."""
    await bus.put(subjects.NODES_BUCKET, "a", b"1")
    with pytest.raises(BusUnavailable):
        await bus.publish(subjects.bucket_subject(subjects.NODES_BUCKET, "b"), b"2", headers={"Nats-Rollup": "all"})
    assert await bus.entries(subjects.NODES_BUCKET) == {"a": b"1"}
