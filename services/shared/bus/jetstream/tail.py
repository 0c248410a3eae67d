"""Following the newest message of one subject without a consumer: what is stored is republished by the server, the rest is asked for.

A thousand nodes cost the server a thousand subscriptions and no state, and a node's credential needs no part of the consumer API, by which
it could have messages delivered wherever it likes.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator
from typing import Final

import nats.errors
import nats.js.errors
from nats.aio.msg import Msg

from services.shared.bus.jetstream.connection import Connection, kept
from services.shared.bus.port import CaughtUp, FollowItem, Message, Reset
from services.shared.contracts.subjects import republished
from services.shared.telemetry.logs import get_logger

log = get_logger(__name__)

LOOK_SECONDS: Final = 5.0
"""Between two looks at the stream, for what was republished while nobody listened."""
GRACE_SECONDS: Final = 0.1
"""For what a look finds to come by itself, after what was stored before it: a follower that jumps over a version must fetch a whole one."""


class Tail:
    """See the module. Yields like a follower with `last_only`."""

    def __init__(self, connection: Connection, stream: str, subject: str) -> None:
        self._connection = connection
        self._stream = stream
        self._subject = subject
        self._seen = 0
        self._caught_up = False
        self._raw: asyncio.Queue[Msg | None] = asyncio.Queue()

    def recheck(self) -> None:
        self._raw.put_nowait(None)

    async def items(self) -> AsyncGenerator[FollowItem, None]:
        subscription, client = None, None
        try:
            while True:
                try:
                    if subscription is None or client is not self._connection.client:
                        client = self._connection.client
                        subscription = await self._connection.subscribe(republished(self._subject), self._take)
                    heard = self._seen
                    found = await self._newest()
                    if found is not None and self._caught_up:
                        async for item in self._live(GRACE_SECONDS, upto=found.sequence):
                            yield item
                    for item in self._look(found, heard):
                        yield item
                    # nodes must not ask in step
                    async for item in self._live(LOOK_SECONDS * random.uniform(0.8, 1.2)):  # noqa: S311
                        yield item
                except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError) as error:
                    log.debug("looking again", stream=self._stream, error=error)
                    await asyncio.sleep(random.uniform(0.1, 0.5))  # noqa: S311 - jitter
        finally:
            if subscription is not None:
                with contextlib.suppress(nats.errors.Error):
                    await subscription.unsubscribe()

    async def _take(self, msg: Msg) -> None:
        self._raw.put_nowait(msg)

    async def _newest(self) -> Message | None:
        """What the stream ends with."""
        try:
            found = await self._connection.js.get_last_msg(self._stream, self._subject, direct=True)
        except nats.js.errors.NotFoundError:
            return None
        return Message(subject=self._subject, payload=found.data or b"", sequence=found.seq or 0, headers=kept(found.headers))

    def _look(self, found: Message | None, heard: int) -> list[FollowItem]:
        """What the stream's end says that was not heard. `heard`: up to where, when it was asked for."""
        sequence = found.sequence if found is not None else 0
        items: list[FollowItem] = []
        if sequence < heard:
            items.append(Reset(f"the stream ends at {sequence}, {heard} was seen"))
            self._seen = 0
        if found is not None and sequence > self._seen:
            self._seen = sequence
            items.append(found)
        if not self._caught_up:
            self._caught_up = True
            items.append(CaughtUp(sequence))
        return items

    async def _live(self, seconds: float, *, upto: int | None = None) -> AsyncGenerator[FollowItem, None]:
        """What is republished, for so long. `upto`: only until this one is seen."""
        due = asyncio.get_running_loop().time() + seconds
        while upto is None or self._seen < upto:
            try:
                async with asyncio.timeout_at(due):
                    msg = await self._raw.get()
            except TimeoutError:
                return
            if msg is None:
                if upto is not None:
                    self._raw.put_nowait(None)  # to be looked for after this
                return
            try:
                sequence = int((msg.headers or {})["Nats-Sequence"])
            except (KeyError, ValueError):
                continue  # not the server's doing
            if sequence > self._seen:
                self._seen = sequence
                yield Message(subject=self._subject, payload=msg.data, sequence=sequence, headers=kept(msg.headers))
