"""The bus as an edge node may use it: no consumers, no management of streams (docs/security.md)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import nats.js.errors

from services.shared.bus.jetstream.bus import JetStreamBus
from services.shared.bus.jetstream.connection import kept, mapped
from services.shared.bus.jetstream.tail import Tail
from services.shared.bus.port import FollowItem, Message


class NodeBus(JetStreamBus):
    """The same port. `follow` knows the newest message of one subject only; streams are others' to make."""

    async def ensure(self) -> None:
        """Nothing to make: whoever publishes makes the streams."""

    async def follow(
        self, stream: str, subject: str, *, after: int | None = 0, last_only: bool = False
    ) -> AsyncGenerator[FollowItem, None]:
        if not last_only or "*" in subject or ">" in subject:
            raise ValueError("a node follows the newest message of one subject")
        tail = Tail(self._connection, stream, subject)
        self._followers.add(tail)
        try:
            async with contextlib.aclosing(tail.items()) as items:
                async for item in items:
                    yield item
        finally:
            self._followers.discard(tail)

    async def history(self, stream: str, subject: str, *, limit: int = 0) -> list[Message]:
        """One by one: a request each, a fraction of a millisecond."""
        out: list[Message] = []
        sequence = 1
        with mapped():
            async with asyncio.timeout(30):
                while True:
                    try:
                        found = await self._connection.js.get_msg(stream, seq=sequence, subject=subject, direct=True, next=True)
                    except nats.js.errors.NotFoundError:
                        return out[-limit:] if limit else out
                    sequence = (found.seq or 0) + 1
                    out.append(
                        Message(
                            subject=found.subject or subject,
                            payload=found.data or b"",
                            sequence=found.seq or 0,
                            headers=kept(found.headers),
                        )
                    )
