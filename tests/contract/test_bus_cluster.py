"""The bus port on three servers: the same promises as on one, and what only several servers can break."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from urllib.parse import ParseResult, urlparse

import msgspec
import pytest
from nats.aio.client import Server
from nats.js.api import RawStreamMsg
from nats.js.errors import NotFoundError

from services.shared.bus.jetstream import JetStreamBus, NodeBus
from services.shared.bus.jetstream.connection import _jittered
from services.shared.bus.port import BusError, BusUnavailable, CaughtUp, Conflict, Message, Request
from services.shared.contracts import subjects
from tests.contract import test_bus as contract
from tests.support.faults import until
from tests.support.nats_cluster import Member, NatsCluster

pytestmark = pytest.mark.nats


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsCluster]:
    cluster = NatsCluster(tmp_path_factory.mktemp("nats"))
    asyncio.run(cluster.__aenter__())
    try:
        yield cluster
    finally:
        asyncio.run(cluster.__aexit__())


@pytest.fixture
async def bus(servers: NatsCluster) -> AsyncIterator[JetStreamBus]:
    """On empty streams."""
    async with servers.bus() as connected:
        for spec in subjects.STREAMS:
            await connected._connection.js.delete_stream(spec.name)
        await connected.ensure()
        yield connected


PROMISES: list[Callable[[JetStreamBus], Awaitable[None]]] = [
    contract.test_compare_and_set,
    contract.test_the_cluster_stream_keeps_the_last_of_each_subject,
    contract.test_what_is_too_large_is_refused_before_it_is_sent,
    contract.test_follow_backlog_then_news,
    contract.test_follow_after_and_filtered_and_empty,
    contract.test_buckets,
    contract.test_blobs,
    contract.test_no_publisher_wipes_what_is_others,
]


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
async def test_as_on_one_server(promise: Callable[[JetStreamBus], Awaitable[None]], bus: JetStreamBus) -> None:
    await promise(bus)


async def test_a_node_notices_that_its_stream_went_back(servers: NatsCluster, bus: JetStreamBus) -> None:
    async with NodeBus(servers.address(), name="node") as node:
        await contract.test_a_node_notices_that_its_stream_went_back(bus, node)


async def test_a_question_is_answered_once_whichever_servers_its_ends_are_on(servers: NatsCluster) -> None:
    answered = 0

    async def answer(_: Request) -> bytes:
        nonlocal answered
        answered += 1
        return b"yes"

    async with contextlib.AsyncExitStack() as stack:
        everywhere = [await stack.enter_async_context(_through(servers, member)) for member in servers.members]
        for one in everywhere:
            await one.serve("ask.v1.test", answer, queue="q")
        for one in everywhere * 5:
            assert await one.request("ask.v1.test", b"", timeout=5) == b"yes"
        assert answered == 15


async def test_of_many_that_compare_and_set_at_once_one_wins_and_the_others_know_it(servers: NatsCluster, bus: JetStreamBus) -> None:
    """Not that the bus is away: they would wait before they look again."""

    async def attempt(through: JetStreamBus, last: int) -> int:
        try:
            return await through.publish("config.v1.x", b"", expected_last=last)
        except Conflict:
            return 0

    async with contextlib.AsyncExitStack() as stack:
        everywhere = [await stack.enter_async_context(_through(servers, member)) for member in servers.members]
        last = 0
        for _ in range(20):
            stored = [s for s in await asyncio.gather(*(attempt(one, last) for one in everywhere * 2)) if s]
            assert len(stored) == 1
            last = stored[0]


async def test_a_blob_is_found_though_the_copy_that_is_asked_first_is_behind(bus: JetStreamBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a loaded machine one look in twenty came too early. A version whose blobs seem to be missing is refused, and written anew."""
    look, asked = bus._connection.js.get_last_msg, set[str]()

    async def behind(stream: str, subject: str, direct: bool | None = False) -> RawStreamMsg:
        if subject not in asked:
            asked.add(subject)
            raise NotFoundError
        return await look(stream, subject, direct)

    digest = await bus.put_blob(b"content")
    monkeypatch.setattr(bus._connection.js, "get_last_msg", behind)
    assert await bus.get_blob(digest) == b"content"
    assert len(asked) == 2


async def test_a_follower_survives_the_loss_of_the_leader_and_of_its_own_server(servers: NatsCluster, bus: JetStreamBus) -> None:
    following = contract.Following(bus, "cluster.v1.>")
    await following.until(CaughtUp)
    expected = 0
    for lost in ("leader", "own"):
        member = await servers.leader(contract.STREAM) if lost == "leader" else _server_of(servers, bus)
        member.kill()
        for _ in range(5):
            await _stored(bus, expected)
            item = await following.next()
            assert isinstance(item, Message), "no reset"
            assert int(item.payload) == expected, "none lost, none twice"
            expected += 1
        await servers.start()
    await following.close()


async def test_whoever_is_connected_to_a_server_that_hangs_goes_on_with_another(servers: NatsCluster, bus: JetStreamBus) -> None:
    """Over TLS the library would wait half a minute for its farewell."""
    following = contract.Following(bus, "cluster.v1.>")
    await following.until(CaughtUp)
    hanging = _server_of(servers, bus)
    hanging.stop()
    try:
        await until(lambda: bus.connected and _port_of(bus) != hanging.port, 20)
        await _stored(bus, 1)
        assert isinstance(await following.next(), Message)
    finally:
        hanging.cont()
    await following.close()
    await servers.start()


def test_a_server_that_failed_is_tried_last_and_the_waits_grow() -> None:
    def server(port: int, reconnects: int) -> Server:
        return Server(uri=_url(port), reconnects=reconnects)

    choices = [_jittered([server(1, 1), server(2, 0), server(3, 0)], None) for _ in range(200)]
    assert {chosen.uri.port for chosen, _ in choices} == {2, 3}
    assert max(wait for _, wait in choices) <= 0.5
    waits = [_jittered([server(1, 9), server(2, 8)], None)[1] for _ in range(200)]
    assert max(waits) - min(waits) > 5


def _url(port: int) -> ParseResult:
    return urlparse(f"nats://127.0.0.1:{port}")


def _through(servers: NatsCluster, member: Member) -> JetStreamBus:
    """A connection to this server, unless it is lost."""
    return JetStreamBus(msgspec.structs.replace(servers.address(), url=member.url), name=member.name)


def _port_of(bus: JetStreamBus) -> int | None:
    url = bus._connection.client.connected_url
    return url.port if url is not None else None


def _server_of(servers: NatsCluster, bus: JetStreamBus) -> Member:
    """To which it is connected."""
    return next(m for m in servers.members if m.port == _port_of(bus))


async def _stored(bus: JetStreamBus, number: int) -> None:
    """Once, though an acknowledgement may be lost."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(BusUnavailable, Conflict):
                await bus.publish(f"cluster.v1.k.n.{number}", b"%d" % number, expected_last=0)
                return
            found = None
            with contextlib.suppress(BusError):
                found = await bus.last(contract.STREAM, f"cluster.v1.k.n.{number}")
            if found is not None:
                return
            await asyncio.sleep(0.02)
