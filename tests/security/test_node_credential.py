"""What an attacker can do with one edge node's NATS credential: nothing but be that node (design.md §6.7)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import nats.errors
import pytest
from nats.aio.client import Client

from services.shared.bus.address import BusAddress
from services.shared.bus.jetstream import JetStreamBus, NodeBus
from services.shared.bus.jetstream.connection import discard
from services.shared.bus.port import CaughtUp, Message
from services.shared.contracts import subjects
from services.shared.contracts.subjects import bucket_subject, config_subject, keys_key
from services.shared.natsauth.authority import Authority
from tests.support.nats import NatsServer

pytestmark = pytest.mark.nats

NODE, OTHER, GROUP = "edge.one", "edge-two", "default"
STREAMS = [s.name for s in subjects.STREAMS]


class Rig:
    """A server that believes one authority, and a compiler's connection."""

    def __init__(self, directory: Path, server: NatsServer, authority: Authority) -> None:
        self._directory = directory
        self.server = server
        self.authority = authority

    def address(self, text: str, name: str) -> BusAddress:
        file = self._directory / f"{name}.creds"
        file.write_text(text)
        return BusAddress(url=self.server.url, credentials=file)

    def node(self, name: str = NODE) -> BusAddress:
        return self.address(self.authority.node(name, GROUP), name)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    authority = Authority.at(tmp_path)
    more = authority.server_configuration(tmp_path / "accounts")
    async with NatsServer(tmp_path / "nats", more=more) as server:
        yield Rig(tmp_path, server, authority)


@pytest.fixture
async def compiler(rig: Rig) -> AsyncIterator[JetStreamBus]:
    async with JetStreamBus(rig.address(rig.authority.service("compiler"), "compiler"), name="compiler") as bus:
        await bus.ensure()
        yield bus


@contextlib.asynccontextmanager
async def attacker(address: BusAddress) -> AsyncIterator[tuple[Client, list[str]]]:
    """A raw connection with a node's credential, and the refusals that the server sends it."""
    refused: list[str] = []

    async def note(error: Exception) -> None:
        refused.append(str(error))

    client = await nats.connect(
        address.url, user_credentials=str(address.credentials), error_cb=note, inbox_prefix="_INBOX_node_edge_2eone"
    )
    try:
        yield client, refused
    finally:
        await client.close()


async def _refused(client: Client, refused: list[str], publish: str, payload: bytes = b"{}", headers: dict[str, str] | None = None) -> bool:
    before = len(refused)
    await client.publish(publish, payload, headers=headers)
    await client.flush()
    async with asyncio.timeout(5):
        while len(refused) == before:
            await asyncio.sleep(0.01)
    return "ermissions" in refused[-1] and "ublish" in refused[-1]


async def test_a_node_can_do_its_work(rig: Rig, compiler: JetStreamBus) -> None:
    manifest = config_subject(GROUP)
    await compiler.publish(manifest, b"v1")
    await compiler.publish(bucket_subject(subjects.KEYS_BUCKET, keys_key(GROUP, NODE)), b"keys")
    gate = bucket_subject(subjects.ROLLOUTS_BUCKET, subjects.token(GROUP))
    await compiler.publish(gate, b"closed")
    digest = await compiler.put_blob(b"x" * 700_000)
    async with NodeBus(rig.node(), name="node") as node:
        items = node.follow(subjects.CONFIG_STREAM, manifest, last_only=True)
        keys = node.follow(f"KV_{subjects.KEYS_BUCKET}", bucket_subject(subjects.KEYS_BUCKET, keys_key(GROUP, NODE)), last_only=True)
        async with asyncio.timeout(20):
            assert await anext(items) == Message(subject=manifest, payload=b"v1", sequence=1)
            assert await anext(items) == CaughtUp(1)
            await compiler.publish(manifest, b"v2")
            assert await anext(items) == Message(subject=manifest, payload=b"v2", sequence=2)
            found = await anext(keys)
            assert isinstance(found, Message) and found.payload == b"keys"
            gates = node.follow(f"KV_{subjects.ROLLOUTS_BUCKET}", gate, last_only=True)
            assert await anext(gates) == Message(subject=gate, payload=b"closed", sequence=1)
            assert await anext(gates) == CaughtUp(1)
            await compiler.publish(gate, b"open")
            assert await anext(gates) == Message(subject=gate, payload=b"open", sequence=2)
            await gates.aclose()
        assert [m.payload for m in await node.history(subjects.CONFIG_STREAM, manifest)] == [b"v1", b"v2"]
        assert await node.get_blob(digest) == b"x" * 700_000
        await node.put(subjects.NODES_BUCKET, subjects.token(NODE), b"report")
        await node.put(subjects.IDENTITIES_BUCKET, subjects.token(NODE), b"identity")
        await node.publish(subjects.applied_subject(NODE), b"applied")
        await items.aclose()
        await keys.aclose()


@pytest.mark.parametrize(
    "subject",
    [
        config_subject(GROUP),
        "cluster.v1.ingress.default.web",
        subjects.SYNC_SUBJECT,
        subjects.applied_subject(OTHER),
        bucket_subject(subjects.NODES_BUCKET, subjects.token(OTHER)),
        bucket_subject(subjects.IDENTITIES_BUCKET, subjects.token(OTHER)),
        bucket_subject(subjects.KEYS_BUCKET, keys_key(GROUP, NODE)),
        bucket_subject(subjects.REVOKED_BUCKET, subjects.token(OTHER)),
        bucket_subject(subjects.ROLLOUTS_BUCKET, subjects.token(GROUP)),
        bucket_subject(subjects.ROLLOUTS_BUCKET, "other"),
        subjects.republished(bucket_subject(subjects.ROLLOUTS_BUCKET, subjects.token(GROUP))),
        bucket_subject(subjects.VERDICTS_BUCKET, "default.ingress.default.web"),
        bucket_subject(subjects.WATCHERS_BUCKET, "watcher"),
        subjects.blob_subject("0" * 64),
        subjects.republished(config_subject(GROUP)),
        subjects.of_group(subjects.ASK_COMPILER_ROLLBACK, GROUP),
        subjects.of_group(subjects.ASK_COMPILER_ADMIT, GROUP),
        subjects.ASK_WATCHER_RESYNC,
        f"_INBOX_node_{subjects.token(OTHER)}.abc",
        "_INBOX_compiler.abc",
        "$SYS.REQ.CLAIMS.UPDATE",
        "$JS.API.INFO",
        "$JS.API.STREAM.NAMES",
        "$JS.API.STREAM.CREATE.MINE",
        f"$JS.API.DIRECT.GET.KV_{subjects.KEYS_BUCKET}",
        f"$JS.API.DIRECT.GET.KV_{subjects.KEYS_BUCKET}.{bucket_subject(subjects.KEYS_BUCKET, keys_key(GROUP, OTHER))}",
        f"$JS.API.DIRECT.GET.KV_{subjects.ROLLOUTS_BUCKET}",
        f"$JS.API.DIRECT.GET.KV_{subjects.ROLLOUTS_BUCKET}.{bucket_subject(subjects.ROLLOUTS_BUCKET, 'other')}",
        f"$JS.API.DIRECT.GET.KV_{subjects.NODES_BUCKET}.{bucket_subject(subjects.NODES_BUCKET, OTHER)}",
        f"$JS.API.DIRECT.GET.{subjects.CLUSTER_STREAM}",
        f"$JS.API.DIRECT.GET.{subjects.CONFIG_STREAM}.{config_subject('other')}",
        *(
            f"$JS.API.{verb}.{stream}"
            for stream in STREAMS
            for verb in (
                "STREAM.DELETE",
                "STREAM.PURGE",
                "STREAM.UPDATE",
                "STREAM.CREATE",
                "STREAM.INFO",
                "STREAM.MSG.GET",
                "STREAM.MSG.DELETE",
            )
        ),
        *(f"$JS.API.CONSUMER.{verb}.{stream}.mine" for stream in STREAMS for verb in ("CREATE", "DURABLE.CREATE", "DELETE", "MSG.NEXT")),
        *(f"$JS.API.CONSUMER.CREATE.{stream}" for stream in STREAMS),
        f"$JS.API.CONSUMER.CREATE.{subjects.CONFIG_STREAM}.mine.{config_subject(GROUP)}",
        f"$JS.API.STREAM.SNAPSHOT.{subjects.CONFIG_STREAM}",
        f"$JS.API.STREAM.RESTORE.{subjects.CONFIG_STREAM}",
        f"$JS.API.STREAM.PEER.REMOVE.{subjects.CONFIG_STREAM}",
    ],
)
async def test_a_node_may_publish_nothing_else(rig: Rig, compiler: JetStreamBus, subject: str) -> None:
    async with attacker(rig.node()) as (client, refused):
        assert await _refused(client, refused, subject)


@pytest.mark.parametrize(
    "subject",
    [
        ">",
        "*.>",
        "cluster.v1.>",
        "config.v1.>",
        subjects.republished("config.v1.>"),
        subjects.republished(config_subject("other")),
        subjects.republished(bucket_subject(subjects.KEYS_BUCKET, ">")),
        subjects.republished(bucket_subject(subjects.KEYS_BUCKET, keys_key(GROUP, OTHER))),
        subjects.republished(bucket_subject(subjects.ROLLOUTS_BUCKET, ">")),
        subjects.republished(bucket_subject(subjects.ROLLOUTS_BUCKET, "other")),
        "$KV.>",
        "blob.v1.>",
        "applied.v1.>",
        "_INBOX.>",
        "_INBOX_compiler.>",
        f"_INBOX_node_{subjects.token(OTHER)}.>",
        "ask.v1.>",
        subjects.of_group(subjects.ASK_COMPILER_ADMIT, GROUP),
        "$SYS.>",
        "$JS.EVENT.>",
    ],
)
async def test_a_node_may_hear_nothing_else(rig: Rig, compiler: JetStreamBus, subject: str) -> None:
    async with attacker(rig.node()) as (client, refused):
        await client.subscribe(subject)
        await client.flush()
        async with asyncio.timeout(5):
            while not refused:
                await asyncio.sleep(0.01)
        assert "ermissions" in refused[0] and "ubscription" in refused[0]


async def test_a_rollup_on_its_own_key_wipes_nobody(rig: Rig, compiler: JetStreamBus) -> None:
    await compiler._connection.js.publish(bucket_subject(subjects.VERDICTS_BUCKET, "a"), b"1")
    async with NodeBus(rig.node(OTHER), name="other") as other, attacker(rig.node()) as (client, _):
        await other.put(subjects.NODES_BUCKET, subjects.token(OTHER), b"report")
        own = bucket_subject(subjects.NODES_BUCKET, subjects.token(NODE))
        answer = await client.request(own, b"x", timeout=5, headers={"Nats-Rollup": "all"})
        assert b"error" in answer.data
    assert await compiler.entries(subjects.NODES_BUCKET) == {subjects.token(OTHER): b"report"}


@pytest.mark.parametrize("role", ["watcher", "compiler", "webhook", "command"])
async def test_no_service_can_delete_a_stream(rig: Rig, compiler: JetStreamBus, role: str) -> None:
    text = rig.authority.service(role)  # type: ignore[arg-type]  # one of the roles
    async with attacker(rig.address(text, f"attacker-{role}")) as (client, refused):
        for stream in STREAMS:
            assert await _refused(client, refused, f"$JS.API.STREAM.DELETE.{stream}")


async def test_the_webhook_can_only_ask_for_admission(rig: Rig, compiler: JetStreamBus) -> None:
    async with attacker(rig.address(rig.authority.service("webhook"), "hook")) as (client, refused):
        for subject in (
            "cluster.v1.ingress.a.b",
            config_subject(GROUP),
            subjects.of_group(subjects.ASK_COMPILER_ROLLBACK, GROUP),
            "$KV.revoked.x",
        ):
            assert await _refused(client, refused, subject)


async def test_a_revoked_node_is_cut_off_and_stays_out(rig: Rig, compiler: JetStreamBus) -> None:
    address = rig.node()
    gone = asyncio.Event()

    async def closed() -> None:
        gone.set()

    client = await nats.connect(
        address.url, user_credentials=str(address.credentials), allow_reconnect=False, disconnected_cb=closed, error_cb=_ignored
    )
    assert rig.authority.revoke(NODE) == 1
    system = await nats.connect(
        address.url, user_credentials=str(rig.address(rig.authority.system(), "sys").credentials), inbox_prefix="_INBOX_system"
    )
    answer = await system.request("$SYS.REQ.CLAIMS.UPDATE", rig.authority.account_jwt.encode(), timeout=5)
    await system.close()
    assert b'"code":200' in answer.data.replace(b" ", b"")
    async with asyncio.timeout(20):
        await gone.wait()
    again = Client()
    with pytest.raises(nats.errors.Error):
        await again.connect(address.url, user_credentials=str(address.credentials), allow_reconnect=False, error_cb=_ignored)
    for ended in (again, client):
        await ended.close()
        await discard(ended)
    assert rig.authority.node(NODE, GROUP) == "", "not before it is admitted again"
    assert compiler.connected, "nobody else notices"


async def _ignored(_: Exception) -> None:
    return None
