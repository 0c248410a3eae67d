"""The bus as an edge node may use it: no consumers, no management of streams (docs/security.md)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Final

import msgspec
from nats.aio.msg import Msg

from services.shared.bus.jetstream.bus import JetStreamBus
from services.shared.bus.jetstream.connection import kept, mapped
from services.shared.bus.jetstream.tail import Tail
from services.shared.bus.port import BusUnavailable, FollowItem, Message

MESSAGES_AT_ONCE: Final = 512
BYTES_AT_ONCE: Final = 8 * 1024 * 1024
ANSWER_SECONDS: Final = 5.0
END_OF_BATCH: Final = "204"
NOTHING_THERE: Final = "404"


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

    async def history(self, stream: str, subject: str, *, after: int = 0, limit: int = 0) -> list[Message]:
        out: list[Message] = []
        with mapped():
            async with asyncio.timeout(30):
                while await self._read_some(stream, subject, out[-1].sequence if out else after, out):
                    pass
        return out[-limit:] if limit else out

    async def _read_some(self, stream: str, subject: str, after: int, out: list[Message]) -> bool:
        """One request, many answers (NATS ADR-31, "batched direct get"); whether the server has more."""
        client = self._connection.client
        inbox = client.new_inbox()
        answers = await client.subscribe(inbox)
        try:
            wanted = {"seq": after + 1, "next_by_subj": subject, "batch": MESSAGES_AT_ONCE, "max_bytes": BYTES_AT_ONCE}
            await client.publish(f"$JS.API.DIRECT.GET.{stream}", msgspec.json.encode(wanted), reply=inbox)
            while True:
                answer = await answers.next_msg(timeout=ANSWER_SECONDS)
                headers = answer.headers or {}
                status = headers.get("Status", "")
                if status == END_OF_BATCH:
                    return int(headers.get("Nats-Num-Pending", "0")) > 0
                if status == NOTHING_THERE:
                    return False
                if status:
                    raise BusUnavailable(f"{stream} cannot be read: {status} {headers.get('Description', '')}")
                out.append(_message(answer, headers))
        finally:
            await answers.unsubscribe()


def _message(answer: Msg, headers: dict[str, str]) -> Message:
    return Message(subject=headers["Nats-Subject"], payload=answer.data, sequence=int(headers["Nats-Sequence"]), headers=kept(headers))
