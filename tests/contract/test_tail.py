"""A node's way of following: it looks at the stream now and then, and jumps over nothing that it also hears."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from services.shared.bus.jetstream import JetStreamBus, NodeBus, tail
from services.shared.bus.port import Message
from services.shared.contracts.subjects import CONFIG_STREAM, config_subject
from tests.support.nats import NatsServer

pytestmark = pytest.mark.nats

SUBJECT = config_subject("default")
COUNT = 400


async def _publish(bus: JetStreamBus) -> None:
    for n in range(COUNT):
        await bus.publish(SUBJECT, str(n).encode())


async def test_a_look_amid_many_messages_skips_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "LOOK_SECONDS", 0.005)
    async with NatsServer(tmp_path) as server, JetStreamBus(server.url, name="a") as bus, NodeBus(server.url, name="n") as node:
        await bus.ensure()
        await bus.publish(SUBJECT, b"first")
        heard: list[int] = []

        async def follow() -> None:
            async for item in node.follow(CONFIG_STREAM, SUBJECT, last_only=True):
                if isinstance(item, Message) and item.payload != b"first":
                    heard.append(int(item.payload))
                    if heard[-1] == COUNT - 1:
                        return
                elif isinstance(item, Message):
                    begun.set()

        begun = asyncio.Event()
        async with asyncio.timeout(60):
            following = asyncio.create_task(follow())
            await begun.wait()
            await asyncio.gather(following, _publish(bus))

    assert heard == list(range(COUNT))
