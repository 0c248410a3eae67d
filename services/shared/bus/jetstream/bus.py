"""The bus on NATS JetStream, as a service of the control plane uses it."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Final, Protocol, Self

import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import api

from services.shared.bus.address import BusAddress
from services.shared.bus.jetstream import blobs
from services.shared.bus.jetstream.connection import ACK_SECONDS, PIPELINE, Connection, kept, mapped
from services.shared.bus.jetstream.follower import Follower
from services.shared.bus.port import Bus, BusUnavailable, CaughtUp, Entry, FollowItem, Handler, Message, NoAnswer, Request, Reset, TooLarge
from services.shared.contracts import subjects
from services.shared.telemetry.logs import get_logger

log = get_logger(__name__)

OTHER_CONFIGURATION: Final = 10058
"""The stream exists, made by another release."""


class Rechecked(Protocol):
    """Something that must look again after the connection was lost."""

    def recheck(self) -> None: ...


FRAME: Final = "NATS/1.0\r\n\r\n"
"""Around headers."""
FAILED: Final = "Sluice-Failed"
"""The header of an answer that there is none: the asker need not wait for its deadline."""


class JetStreamBus(Bus):
    """One connection; `name` appears in the server's connection list."""

    def __init__(self, address: BusAddress | str, *, name: str) -> None:
        address = BusAddress(url=address) if isinstance(address, str) else address
        self._connection = Connection(address, name=name, reconnected=self._recheck, reopened=self._serve_again)
        self._replicas = address.replicas
        self._followers: set[Rechecked] = set()
        self._handlers: set[asyncio.Task[None]] = set()
        self._served: list[_Served] = []

    async def __aenter__(self) -> Self:
        await self._connection.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        for follower in list(self._followers):
            if isinstance(follower, Follower):
                await follower.stop()
        for task in self._handlers:
            task.cancel()
        await self._connection.close()

    @property
    def connected(self) -> bool:
        return self._connection.client.is_connected

    def _recheck(self) -> None:
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
        with mapped():
            for spec in subjects.STREAMS:
                config = _config_of(spec, self._replicas)
                try:
                    await self._connection.js.add_stream(config)
                except nats.js.errors.APIError as error:
                    if error.err_code != OTHER_CONFIGURATION:
                        raise
                    await self._connection.js.update_stream(config)

    # --- streams

    async def publish(
        self, subject: str, payload: bytes, *, headers: Mapping[str, str] | None = None, expected_last: int | None = None
    ) -> int:
        out = dict(headers or {})
        if expected_last is not None:
            out[api.Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value] = str(expected_last)
        self._check(payload, out)
        with mapped():
            try:
                publishing = self._connection.js.publish(subject, payload, headers=out or None, timeout=ACK_SECONDS)
                ack = await self._connection.unless_lost(publishing)
            except nats.js.errors.NoStreamResponseError as error:
                raise BusUnavailable(f"no stream takes {subject}") from error
        return ack.seq

    async def tell(self, subject: str, payload: bytes) -> None:
        self._check(payload)
        with mapped():
            await self._connection.client.publish(subject, payload)

    async def publish_many(self, messages: list[tuple[str, bytes, Mapping[str, str] | None]]) -> int:
        last = 0
        with mapped():
            for start in range(0, len(messages), PIPELINE):
                waiting = []
                for subject, payload, headers in messages[start : start + PIPELINE]:
                    self._check(payload, headers)
                    waiting.append(await self._connection.js.publish_async(subject, payload, headers=dict(headers) if headers else None))
                async with asyncio.timeout(ACK_SECONDS * 4):
                    acks = await self._connection.unless_lost(asyncio.gather(*waiting))
                last = acks[-1].seq
        return last

    def _check(self, payload: bytes, headers: Mapping[str, str] | None = None) -> None:
        if not self._connection.client.is_connected:
            raise BusUnavailable("not connected to NATS")
        # The server counts headers as well, which the library does not, and ends the connection of who sends more.
        size = len(payload) + (len(FRAME) + sum(len(f"{k}: {v}\r\n".encode()) for k, v in headers.items()) if headers else 0)
        if size > self._connection.client.max_payload:
            raise TooLarge(f"{size} bytes; the server takes {self._connection.client.max_payload}")

    async def follow(
        self, stream: str, subject: str, *, after: int | None = 0, last_only: bool = False
    ) -> AsyncGenerator[FollowItem, None]:
        follower = Follower(self._connection, self._ensure, stream, subject, after=after or 0, last_only=last_only)
        self._followers.add(follower)
        try:
            async for item in follower.items():
                yield item
        finally:
            self._followers.discard(follower)
            await follower.stop()

    async def last(self, stream: str, subject: str) -> Message | None:
        with mapped():
            try:
                found = await self._connection.js.get_last_msg(stream, subject, direct=True)
            except nats.js.errors.NotFoundError:
                return None
        return Message(subject=found.subject or subject, payload=found.data or b"", sequence=found.seq or 0, headers=kept(found.headers))

    async def history(self, stream: str, subject: str, *, after: int = 0, limit: int = 0) -> list[Message]:
        out = await self._backlog(stream, subject, last_only=False, after=after)
        return out[-limit:] if limit else out

    async def _backlog(self, stream: str, subject: str, *, last_only: bool, after: int = 0) -> list[Message]:
        out: list[Message] = []
        with mapped():
            following = self.follow(stream, subject, after=after, last_only=last_only)
            async with asyncio.timeout(30), contextlib.aclosing(following) as items:
                async for item in items:
                    if isinstance(item, Message):
                        out.append(item)
                    elif isinstance(item, CaughtUp):
                        break
        return out

    async def last_sequence(self, stream: str) -> int:
        with mapped():
            info = await self._connection.js.stream_info(stream)
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
        ttl = subjects.BUCKET_TTL_SECONDS.get(bucket, 0)
        prefix = f"$KV.{bucket}."
        loop = asyncio.get_running_loop()
        live: dict[str, float] = {}
        follower = Follower(self._connection, self._ensure, f"KV_{bucket}", prefix + ">", after=0, last_only=True)
        self._followers.add(follower)
        try:
            while True:
                for key in [k for k, due in live.items() if ttl and due <= loop.time()]:
                    del live[key]
                    yield Entry(key=key, value=None, revision=0)
                item = await follower.next(timeout=0.5 if ttl else None)
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
                        live[key] = loop.time() + ttl
                    yield Entry(key=key, value=None if gone else item.payload, revision=item.sequence)
        finally:
            self._followers.discard(follower)
            await follower.stop()

    # --- blobs

    async def put_blob(self, data: bytes) -> str:
        with mapped():
            return await blobs.put(self._connection, data)

    async def get_blob(self, digest: str) -> bytes | None:
        with mapped():
            async with asyncio.timeout(30):
                return await blobs.get(self._connection, digest)

    async def list_blobs(self) -> set[str]:
        with mapped():
            return await blobs.listed(self._connection)

    async def delete_blob(self, digest: str) -> None:
        with mapped():
            await blobs.delete(self._connection, digest)

    # --- questions

    async def request(self, subject: str, payload: bytes, *, timeout: float, headers: Mapping[str, str] | None = None) -> bytes:
        self._check(payload, headers)
        with mapped():
            try:
                answer = await self._connection.client.request(
                    subject, payload, timeout=timeout, headers=dict(headers) if headers else None
                )
            except nats.errors.TimeoutError as error:
                raise NoAnswer(f"no answer within {timeout:g} s") from error
        if answer.headers and FAILED in answer.headers:
            raise NoAnswer("who serves this subject failed; its log says why")
        return answer.data

    async def serve(self, subject: str, handler: Handler, *, queue: str = "") -> Callable[[], Awaitable[None]]:
        async def answer(msg: Msg) -> None:
            try:
                await msg.respond(await handler(Request(payload=msg.data, headers=kept(msg.headers))))
            except nats.errors.Error as error:
                log.debug("answer lost", subject=subject, error=error)
            except Exception:
                log.exception("a question could not be answered", subject=subject)
                with contextlib.suppress(nats.errors.Error):
                    await self._connection.client.publish(msg.reply, headers={FAILED: "1"})

        async def accept(msg: Msg) -> None:
            task = asyncio.create_task(answer(msg))
            self._handlers.add(task)
            task.add_done_callback(self._handlers.discard)

        served = _Served(subject, queue, accept)
        with mapped():
            await served.subscribe(self._connection)
        self._served.append(served)

        async def stop() -> None:
            self._served.remove(served)
            await served.unsubscribe()

        return stop

    async def _serve_again(self) -> None:
        for served in self._served:
            with contextlib.suppress(nats.errors.Error):  # this connection is lost as well, and the next one comes here again
                await served.subscribe(self._connection)


class _Served:
    """A subject whose requests are answered."""

    def __init__(self, subject: str, queue: str, accept: Callable[[Msg], Awaitable[None]]) -> None:
        self._subject = subject
        self._queue = queue
        self._accept = accept
        self._subscription: Subscription | None = None

    async def subscribe(self, connection: Connection) -> None:
        self._subscription = await connection.subscribe(self._subject, self._accept, queue=self._queue)

    async def unsubscribe(self) -> None:
        if self._subscription is not None:
            with contextlib.suppress(nats.errors.Error):
                await self._subscription.unsubscribe()


def _config_of(spec: subjects.StreamSpec, replicas: int) -> api.StreamConfig:
    return api.StreamConfig(
        name=spec.name,
        subjects=list(spec.subjects),
        max_msgs_per_subject=spec.messages_per_subject,
        max_age=spec.ttl_seconds or None,
        storage=api.StorageType.FILE,
        discard=api.DiscardPolicy.OLD,
        allow_direct=True,
        num_replicas=replicas,
        republish=api.RePublish(src=spec.subjects[0], dest=subjects.republished(spec.subjects[0])) if spec.republish else None,
    )
