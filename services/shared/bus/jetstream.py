"""The bus on NATS JetStream: the only `nats` import of the product, and the one border where its exceptions are mapped.

Followers are ordered push consumers of our own: they notice gaps, lost consumers, restarted servers and recreated or rewound streams,
and take up again after the last message they saw. They never end by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from typing import Any, Final

import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext, api
from nats.js.object_store import ObjectStore

from services.shared.bus.port import (
    Bus,
    BusUnavailable,
    CaughtUp,
    Conflict,
    Entry,
    FollowItem,
    Handler,
    Message,
    NoAnswer,
    Request,
    Reset,
    TooLarge,
)
from services.shared.contracts import subjects
from services.shared.telemetry.logs import get_logger

log = get_logger(__name__)

ACK_SECONDS: Final = 5.0
HEARTBEAT_SECONDS: Final = 1.0
SILENCE_SECONDS: Final = 3.5
"""Without a message or a heartbeat for this long, a consumer counts as lost."""
WRONG_LAST_SEQUENCE: Final = 10071
PIPELINE: Final = 512
"""Unacknowledged publishes of `publish_many` at a time."""

_TRACE_HEADERS: Final = ("traceparent", "tracestate")


@contextlib.contextmanager
def _mapped() -> Iterator[None]:
    """Foreign exceptions become the port's."""
    try:
        yield
    except nats.errors.MaxPayloadError as error:
        raise TooLarge(str(error)) from error
    except nats.errors.NoRespondersError as error:
        raise NoAnswer("nobody serves this subject") from error
    except nats.js.errors.APIError as error:
        if error.err_code == WRONG_LAST_SEQUENCE:
            raise Conflict(error.description or "wrong last sequence") from error
        raise BusUnavailable(f"JetStream: {error.description or error}") from error
    except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError) as error:
        raise BusUnavailable(f"NATS: {type(error).__name__} {error}".strip()) from error


class JetStreamBus(Bus):
    """One connection. `url`: `nats://host:port`; `name` appears in the server's connection list."""

    def __init__(self, url: str, *, name: str, user: str | None = None, password: str | None = None) -> None:
        self._url = url
        self._name = name
        self._credentials = (user, password)
        self._client = Client()
        self._js: JetStreamContext = self._client.jetstream()
        self._followers: set[_Follower] = set()
        self._handlers: set[asyncio.Task[None]] = set()
        self._closing = False

    async def __aenter__(self) -> JetStreamBus:
        user, password = self._credentials
        delay = 0.05
        while True:
            try:
                await self._client.connect(
                    self._url,
                    name=self._name,
                    user=user,
                    password=password,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=0,  # the jitter is below
                    reconnect_to_server_handler=_jittered,
                    ping_interval=5,
                    error_cb=self._on_error,
                    reconnected_cb=self._on_reconnected,
                    disconnected_cb=self._on_disconnected,
                    pending_size=64 * 1024 * 1024,
                    allow_reconnect=True,
                )
                break
            except (nats.errors.Error, OSError, TimeoutError):
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                delay = min(delay * 2, 1.0)
        self._js = self._client.jetstream(timeout=ACK_SECONDS, publish_async_max_pending=4 * PIPELINE)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._closing = True
        for follower in list(self._followers):
            await follower.stop()
        for task in self._handlers:
            task.cancel()
        with contextlib.suppress(nats.errors.Error, asyncio.TimeoutError):
            await self._client.close()

    @property
    def connected(self) -> bool:
        return self._client.is_connected

    async def _on_error(self, error: Exception) -> None:
        log.debug("nats error", error=error)

    async def _on_disconnected(self) -> None:
        if not self._closing:
            log.warning("disconnected from nats")

    async def _on_reconnected(self) -> None:
        log.info("reconnected to nats")
        for follower in self._followers:
            follower.recheck()

    async def ensure(self) -> None:
        while True:
            try:
                await self._ensure()
                return
            except BusUnavailable as error:
                log.debug("waiting for jetstream", error=error)
                await asyncio.sleep(random.uniform(0.05, 0.2))  # noqa: S311 - jitter

    async def _ensure(self) -> None:
        with _mapped():
            for spec in subjects.STREAMS:
                await self._js.add_stream(
                    api.StreamConfig(
                        name=spec.name,
                        subjects=list(spec.subjects),
                        max_msgs_per_subject=spec.messages_per_subject,
                        storage=api.StorageType.FILE,
                        discard=api.DiscardPolicy.OLD,
                        allow_direct=True,
                    )
                )
            for bucket in subjects.BUCKETS:
                await self._js.create_key_value(api.KeyValueConfig(bucket=bucket.name, history=1, ttl=bucket.ttl_seconds or None))
            await self._js.create_object_store(subjects.BLOBS_STORE, storage=api.StorageType.FILE)

    # --- streams

    async def publish(
        self, subject: str, payload: bytes, *, headers: Mapping[str, str] | None = None, expected_last: int | None = None
    ) -> int:
        self._check(payload)
        out = dict(headers or {})
        if expected_last is not None:
            out[api.Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value] = str(expected_last)
        with _mapped():
            try:
                ack = await self._js.publish(subject, payload, headers=out or None, timeout=ACK_SECONDS)
            except nats.js.errors.NoStreamResponseError as error:
                raise BusUnavailable(f"no stream takes {subject}") from error
        return ack.seq

    async def publish_many(self, messages: list[tuple[str, bytes, Mapping[str, str] | None]]) -> int:
        last = 0
        with _mapped():
            for start in range(0, len(messages), PIPELINE):
                waiting = []
                for subject, payload, headers in messages[start : start + PIPELINE]:
                    self._check(payload)
                    waiting.append(await self._js.publish_async(subject, payload, headers=dict(headers) if headers else None))
                async with asyncio.timeout(ACK_SECONDS * 4):
                    acks = await asyncio.gather(*waiting)
                last = acks[-1].seq
        return last

    def _check(self, payload: bytes) -> None:
        if not self._client.is_connected:
            raise BusUnavailable("not connected to NATS")
        if len(payload) > self._client.max_payload:
            raise TooLarge(f"{len(payload)} bytes; the server takes {self._client.max_payload}")

    async def follow(
        self, stream: str, subject: str, *, after: int | None = 0, last_only: bool = False
    ) -> AsyncGenerator[FollowItem, None]:
        follower = _Follower(self, stream, subject, after=after or 0, last_only=last_only)
        self._followers.add(follower)
        try:
            async for item in follower.items():
                yield item
        finally:
            self._followers.discard(follower)
            await follower.stop()

    async def last(self, stream: str, subject: str) -> Message | None:
        with _mapped():
            try:
                found = await self._js.get_last_msg(stream, subject, direct=True)
            except nats.js.errors.NotFoundError:
                return None
        return Message(subject=found.subject or subject, payload=found.data or b"", sequence=found.seq or 0, headers=_trace(found.headers))

    async def history(self, stream: str, subject: str, *, limit: int = 0) -> list[Message]:
        out = await self._backlog(stream, subject, last_only=False)
        return out[-limit:] if limit else out

    async def _backlog(self, stream: str, subject: str, *, last_only: bool) -> list[Message]:
        out: list[Message] = []
        with _mapped():
            async with asyncio.timeout(30), contextlib.aclosing(self.follow(stream, subject, last_only=last_only)) as items:
                async for item in items:
                    if isinstance(item, Message):
                        out.append(item)
                    elif isinstance(item, CaughtUp):
                        break
        return out

    async def last_sequence(self, stream: str) -> int:
        with _mapped():
            info = await self._js.stream_info(stream)
        return info.state.last_seq

    # --- buckets: streams `KV_<bucket>` with subjects `$KV.<bucket>.<key>`

    async def put(self, bucket: str, key: str, value: bytes) -> int:
        return await self.publish(f"$KV.{bucket}.{key}", value)

    async def delete(self, bucket: str, key: str) -> None:
        await self.publish(f"$KV.{bucket}.{key}", b"", headers={"KV-Operation": "DEL"})

    async def entries(self, bucket: str) -> dict[str, bytes]:
        prefix = f"$KV.{bucket}."
        found = await self._backlog(f"KV_{bucket}", prefix + ">", last_only=True)
        return {m.subject.removeprefix(prefix): m.payload for m in found if "KV-Operation" not in m.headers}

    async def watch(self, bucket: str) -> AsyncGenerator[Entry | CaughtUp, None]:
        spec = next(b for b in subjects.BUCKETS if b.name == bucket)
        prefix = f"$KV.{bucket}."
        loop = asyncio.get_running_loop()
        live: dict[str, float] = {}
        follower = _Follower(self, f"KV_{bucket}", prefix + ">", after=0, last_only=True)
        self._followers.add(follower)
        try:
            while True:
                for key in [k for k, due in live.items() if spec.ttl_seconds and due <= loop.time()]:
                    del live[key]
                    yield Entry(key=key, value=None, revision=0)
                item = await follower.next(timeout=0.5 if spec.ttl_seconds else None)
                if isinstance(item, CaughtUp):
                    yield item
                elif isinstance(item, Reset):
                    for key in live:
                        yield Entry(key=key, value=None, revision=0)
                    live.clear()
                elif item is not None:
                    key = item.subject.removeprefix(prefix)
                    gone = "KV-Operation" in item.headers
                    live.pop(key, None)
                    if not gone:
                        live[key] = loop.time() + spec.ttl_seconds
                    yield Entry(key=key, value=None if gone else item.payload, revision=item.sequence)
        finally:
            self._followers.discard(follower)
            await follower.stop()

    # --- blobs

    async def _blobs(self) -> ObjectStore:
        return await self._js.object_store(subjects.BLOBS_STORE)

    async def put_blob(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        with _mapped():
            store = await self._blobs()
            with contextlib.suppress(nats.js.errors.NotFoundError):
                await store.get_info(digest)
                return digest
            await store.put(digest, data)
        return digest

    async def get_blob(self, digest: str) -> bytes | None:
        with _mapped():
            store = await self._blobs()
            try:
                async with asyncio.timeout(30):
                    found = await store.get(digest)
            except (nats.js.errors.NotFoundError, nats.js.errors.DigestMismatchError):
                return None
        data = found.data or b""
        return data if hashlib.sha256(data).hexdigest() == digest else None

    async def list_blobs(self) -> set[str]:
        with _mapped():
            store = await self._blobs()
            try:
                async with asyncio.timeout(30):
                    return {info.name for info in await store.list(ignore_deletes=True) if info.name and not info.deleted}
            except nats.js.errors.NotFoundError:
                return set()

    async def delete_blob(self, digest: str) -> None:
        with _mapped():
            store = await self._blobs()
            with contextlib.suppress(nats.js.errors.NotFoundError):
                await store.delete(digest)

    # --- questions

    async def request(self, subject: str, payload: bytes, *, timeout: float, headers: Mapping[str, str] | None = None) -> bytes:
        self._check(payload)
        with _mapped():
            try:
                answer = await self._client.request(subject, payload, timeout=timeout, headers=dict(headers) if headers else None)
            except nats.errors.TimeoutError as error:
                raise NoAnswer(f"no answer within {timeout:g} s") from error
        return answer.data

    async def serve(self, subject: str, handler: Handler, *, queue: str = "") -> Callable[[], Awaitable[None]]:
        async def answer(msg: Msg) -> None:
            try:
                await msg.respond(await handler(Request(payload=msg.data, headers=_trace(msg.headers))))
            except nats.errors.Error as error:
                log.debug("answer lost", subject=subject, error=error)
            except Exception:
                log.exception("a question could not be answered", subject=subject)

        async def accept(msg: Msg) -> None:
            task = asyncio.create_task(answer(msg))
            self._handlers.add(task)
            task.add_done_callback(self._handlers.discard)

        with _mapped():
            subscription = await self._client.subscribe(subject, queue=queue, cb=accept)
            await self._client.flush()

        async def stop() -> None:
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()

        return stop


def _jittered(servers: list[Any], info: Any) -> tuple[Any, float]:
    """Which server to try next, and how long to wait before: spread, so that a thousand clients do not arrive at once."""
    return random.choice(servers), random.uniform(0.05, 0.5)  # noqa: S311 - jitter


def _trace(headers: Mapping[str, str] | None) -> dict[str, str]:
    """The headers that mean something to the port's users, and the bucket operation."""
    if not headers:
        return {}
    return {k: headers[k] for k in (*_TRACE_HEADERS, "KV-Operation") if k in headers}


class _Follower:
    """One ordered consumer that is made again, after the last message seen, whenever anything is doubtful."""

    def __init__(self, bus: JetStreamBus, stream: str, subject: str, *, after: int, last_only: bool) -> None:
        self._bus = bus
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
                    await self._bus._ensure()
            except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError) as error:
                log.debug("following anew", stream=self._stream, error=error)
            await asyncio.sleep(random.uniform(0.02, 0.15))  # noqa: S311 - jitter

    async def _consume(self) -> None:
        js = self._bus._js
        info = await js.stream_info(self._stream)
        self._note_loss(info)
        self._raw = asyncio.Queue()
        raw = self._raw

        async def take(msg: Msg) -> None:
            raw.put_nowait(msg)

        inbox = self._bus._client.new_inbox()
        subscription: Subscription = await self._bus._client.subscribe(inbox, cb=take, pending_msgs_limit=-1, pending_bytes_limit=-1)
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
                if name and self._bus.connected:
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
            self._queue.put_nowait(Message(subject=msg.subject, payload=msg.data, sequence=stream_sequence, headers=_trace(msg.headers)))
            if pending == 0 and not self._caught_up:
                self._catch_up(max(backlog_end, stream_sequence))

    def _catch_up(self, sequence: int) -> None:
        self._caught_up = True
        self._queue.put_nowait(CaughtUp(sequence))
