"""Following a stream by an ordered push consumer of our own: it notices gaps, lost consumers, restarted servers and recreated or rewound
streams, and takes up again after the last message it saw. It never ends by itself."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final

import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import api

from services.shared.bus.jetstream.connection import Connection, kept
from services.shared.bus.port import BusUnavailable, CaughtUp, FollowItem, Message, Reset
from services.shared.telemetry.logs import get_logger

log = get_logger(__name__)

HEARTBEAT_SECONDS: Final = 1.0
SILENCE_SECONDS: Final = 3.5
"""Without a message or a heartbeat for this long, a consumer counts as lost."""


class Follower:
    """One consumer that is made again, after the last message seen, whenever anything is doubtful. `ensure` makes streams that are gone."""

    def __init__(
        self, connection: Connection, ensure: Callable[[], Awaitable[None]], stream: str, subject: str, *, after: int, last_only: bool
    ) -> None:
        self._connection = connection
        self._ensure = ensure
        self._stream = stream
        self._subject = subject
        self._last_only = last_only
        self._seen = after
        self._created: object = None
        self._caught_up = False
        self._queue: asyncio.Queue[FollowItem] = asyncio.Queue()
        self._raw: asyncio.Queue[Msg | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    def recheck(self) -> None:
        """The connection was lost in between: do not wait for silence to show what it did."""
        self._raw.put_nowait(None)

    async def next(self, timeout: float | None) -> FollowItem | None:
        """The next item; None after `timeout` seconds without one."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        if not self._queue.empty():
            return self._queue.get_nowait()
        try:
            async with asyncio.timeout(timeout):
                return await self._queue.get()
        except TimeoutError:
            return None

    async def items(self) -> AsyncGenerator[FollowItem, None]:
        while True:
            item = await self.next(None)
            if item is not None:
                yield item

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self) -> None:
        while True:
            try:
                await self._consume()
            except nats.js.errors.NotFoundError:
                with contextlib.suppress(BusUnavailable):
                    await self._ensure()
            except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError) as error:
                log.debug("following anew", stream=self._stream, error=error)
            await asyncio.sleep(random.uniform(0.02, 0.15))  # noqa: S311 - jitter

    async def _consume(self) -> None:
        js = self._connection.js
        info = await js.stream_info(self._stream)
        self._note_loss(info)
        self._raw = asyncio.Queue()
        raw = self._raw

        async def take(msg: Msg) -> None:
            raw.put_nowait(msg)

        inbox = self._connection.client.new_inbox()
        subscription: Subscription = await self._connection.client.subscribe(inbox, cb=take, pending_msgs_limit=-1, pending_bytes_limit=-1)
        name = None
        try:
            consumer = await js.add_consumer(self._stream, self._config(inbox))
            name = consumer.name
            if not consumer.num_pending and not self._caught_up:
                self._catch_up(info.state.last_seq)
            await self._drain(raw, info.state.last_seq)
        finally:
            with contextlib.suppress(nats.errors.Error, nats.js.errors.Error, asyncio.TimeoutError):
                await subscription.unsubscribe()
                if name and self._connection.client.is_connected:
                    async with asyncio.timeout(1):
                        await js.delete_consumer(self._stream, name)

    def _note_loss(self, info: api.StreamInfo) -> None:
        if self._created is not None and info.created != self._created:
            self._reset("the stream was recreated")
        elif info.state.last_seq < self._seen:
            self._reset(f"the stream ends at {info.state.last_seq}, {self._seen} was seen")
        self._created = info.created

    def _reset(self, reason: str) -> None:
        self._seen = 0
        self._caught_up = False
        self._queue.put_nowait(Reset(reason))

    def _config(self, inbox: str) -> api.ConsumerConfig:
        fresh = self._seen == 0
        if self._last_only and fresh:
            policy = api.DeliverPolicy.LAST_PER_SUBJECT
        elif fresh:
            policy = api.DeliverPolicy.ALL
        else:
            policy = api.DeliverPolicy.BY_START_SEQUENCE
        return api.ConsumerConfig(
            name=secrets.token_hex(8),  # named, so that the request's subject shows the filter: credentials may be limited to it
            deliver_policy=policy,
            opt_start_seq=None if fresh else self._seen + 1,
            ack_policy=api.AckPolicy.NONE,
            filter_subject=self._subject,
            deliver_subject=inbox,
            idle_heartbeat=HEARTBEAT_SECONDS,
            inactive_threshold=30,
            mem_storage=True,
            num_replicas=1,
            max_deliver=1,
        )

    async def _drain(self, raw: asyncio.Queue[Msg | None], backlog_end: int) -> None:
        """Deliver until something is doubtful; then return, and be started again."""
        delivered = 0
        while True:
            if raw.empty():
                async with asyncio.timeout(SILENCE_SECONDS):
                    msg = await raw.get()
            else:
                msg = raw.get_nowait()
            if msg is None:
                return
            if not msg.reply:  # a heartbeat: it names the last consumer sequence sent
                sent = (msg.headers or {}).get("Nats-Last-Consumer")
                if sent is not None and int(sent) != delivered:
                    return
                continue
            # $JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>[.<token>]
            tokens = msg.reply.split(".")
            tokens = tokens if len(tokens) == 9 else tokens[2:11]
            stream_sequence, consumer_sequence, pending = int(tokens[5]), int(tokens[6]), int(tokens[8])
            if consumer_sequence != delivered + 1:
                return
            delivered = consumer_sequence
            self._seen = stream_sequence
            self._queue.put_nowait(Message(subject=msg.subject, payload=msg.data, sequence=stream_sequence, headers=kept(msg.headers)))
            if pending == 0 and not self._caught_up:
                self._catch_up(max(backlog_end, stream_sequence))

    def _catch_up(self, sequence: int) -> None:
        self._caught_up = True
        self._queue.put_nowait(CaughtUp(sequence))
