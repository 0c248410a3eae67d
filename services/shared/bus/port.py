"""What a bus offers: streams with compare-and-set, followers that survive anything, buckets, blobs, request/reply.

All implementations reconnect by themselves, for ever, with jitter. Callers never see a connection loss as an exception from
`follow` or `watch`; from the other calls they see `BusUnavailable`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Protocol

from msgspec import Struct


class BusError(Exception):
    """The base of what a bus raises."""


class BusUnavailable(BusError):
    """Not connected, or no acknowledgement in time. What was published may or may not be stored."""


class Conflict(BusError):
    """A compare-and-set found another last sequence: someone else published."""


class TooLarge(BusError):
    """The payload exceeds what the server takes. Raised before anything is sent."""


class NoAnswer(BusError):
    """Nobody serves the question, or not within the deadline."""


class Message(Struct, frozen=True, kw_only=True):
    """One stored message."""

    subject: str
    payload: bytes
    sequence: int
    """In the stream; grows by message, with gaps where compaction removed some."""
    headers: Mapping[str, str] = {}
    """Trace context: `traceparent`, `tracestate`."""


class CaughtUp(Struct, frozen=True):
    """Everything stored when following began (or began again) has been delivered."""

    sequence: int
    """The stream's last sequence at that time; 0: an empty stream."""


class Reset(Struct, frozen=True):
    """The stream was lost, recreated or put back to an older state: forget what was followed; all of it comes again."""

    reason: str


class Entry(Struct, frozen=True, kw_only=True):
    """One change of a bucket."""

    key: str
    value: bytes | None
    """None: deleted or expired."""
    revision: int


class Request(Struct, frozen=True, kw_only=True):
    """One question to answer."""

    payload: bytes
    headers: Mapping[str, str] = {}


Handler = Callable[[Request], Awaitable[bytes]]
"""Answers one request. An exception is logged, and the asker told: NoAnswer at once."""

FollowItem = Message | CaughtUp | Reset


class Bus(Protocol):
    """The port. Use as an async context manager."""

    async def __aenter__(self) -> Bus: ...

    async def __aexit__(self, *exc: object) -> None: ...

    @property
    def connected(self) -> bool: ...

    async def ensure(self) -> None:
        """Create the streams, buckets and the blob store of `contracts.subjects` where missing. Waits for the server."""

    async def publish(
        self, subject: str, payload: bytes, *, headers: Mapping[str, str] | None = None, expected_last: int | None = None
    ) -> int:
        """Store one message; returns its sequence once it is acknowledged.

        `expected_last`: the last sequence of this very subject, 0 for none (Nats-Expected-Last-Subject-Sequence).
        Raises Conflict, TooLarge, BusUnavailable.
        """
        ...

    async def tell(self, subject: str, payload: bytes) -> None:
        """Publish without hearing whether it was stored: for what is said again soon. Raises TooLarge, BusUnavailable."""
        ...

    async def publish_many(self, messages: list[tuple[str, bytes, Mapping[str, str] | None]]) -> int:
        """Store many messages in order, pipelined; returns the last sequence. Raises like `publish`; a prefix may be stored."""
        ...

    def follow(self, stream: str, subject: str, *, after: int | None = 0, last_only: bool = False) -> AsyncGenerator[FollowItem, None]:
        """Every message of `subject` (wildcards allowed) with a sequence greater than `after`, in order, for ever.

        `last_only`: begin with the newest message of each subject instead (`after` is not looked at).
        Yields CaughtUp once the backlog is through, Reset when the stream went back (then the beginning again, without `after`).
        Close the iterator (`aclose`) to stop following.
        """
        ...

    async def last(self, stream: str, subject: str) -> Message | None:
        """The newest message of one subject."""
        ...

    async def history(self, stream: str, subject: str, *, after: int = 0, limit: int = 0) -> list[Message]:
        """The stored messages of `subject` (wildcards allowed) after that sequence, oldest first; with `limit`, the newest that many.

        `after` beyond the stream's end is of another stream: all of it, or nothing.
        """
        ...

    async def last_sequence(self, stream: str) -> int:
        """The stream's last sequence; 0: empty."""
        ...

    async def put(self, bucket: str, key: str, value: bytes) -> int: ...

    async def delete(self, bucket: str, key: str) -> None: ...

    async def entries(self, bucket: str) -> dict[str, bytes]:
        """All live keys with their values."""
        ...

    def watch(self, bucket: str) -> AsyncGenerator[Entry | CaughtUp, None]:
        """The live entries, CaughtUp, then every change, for ever; after a loss of the server the live entries again."""
        ...

    async def put_blob(self, data: bytes) -> str:
        """Store bytes under their sha256 (hex), which is returned. Storing again costs one look-up."""
        ...

    async def get_blob(self, digest: str) -> bytes | None:
        """The bytes, checked against the digest; None: not there, or not what the digest says."""
        ...

    async def list_blobs(self) -> set[str]: ...

    async def delete_blob(self, digest: str) -> None: ...

    async def request(self, subject: str, payload: bytes, *, timeout: float, headers: Mapping[str, str] | None = None) -> bytes:
        """Ask, and wait `timeout` seconds at most. Raises NoAnswer, BusUnavailable."""
        ...

    async def serve(self, subject: str, handler: Handler, *, queue: str = "") -> Callable[[], Awaitable[None]]:
        """Answer a subject's requests from now on, one task each; with `queue`, shared among its members. Returns how to stop."""
        ...
