"""A request's body, read within bounds: its size, the time it takes, and the memory that all bodies together take."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Final

from aiohttp import web

from services.webhook.bounds import MAX_BODY_BYTES

FREE_BYTES: Final = 32 << 10
"""So much of a body is always taken; usual reviews are a few KB."""
LARGE_BYTES: Final = 16 << 20
"""What all bodies may take together beyond that."""


class Refused(Exception):
    """The request is answered with this status and no review."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Intake:
    """Shared by all requests of a server."""

    def __init__(self, *, read_seconds: float, large_bytes: int = LARGE_BYTES) -> None:
        self._read_seconds = read_seconds
        self._free = large_bytes

    async def read(self, request: web.Request) -> Body:
        """The whole body; release it when it is parsed. Raises Refused."""
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise Refused(415, "send the review as it is: no content encoding is accepted")
        if (request.content_length or 0) > MAX_BODY_BYTES:
            raise _too_large()
        body = Body(self)
        try:
            async with asyncio.timeout(self._read_seconds):
                async for chunk in request.content.iter_any():
                    body.add(chunk)
        except TimeoutError as error:
            body.release()
            raise Refused(408, f"the review did not arrive within {self._read_seconds:g} s") from error
        except BaseException:
            body.release()
            raise
        return body

    def take(self, count: int) -> None:
        if count > self._free:
            raise Refused(503, "too many large reviews at once; try again")
        self._free -= count

    def give(self, count: int) -> None:
        self._free += count


class Body:
    """The bytes read so far, and their share of the common memory."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._data = bytearray()
        self._taken = 0

    def add(self, chunk: bytes) -> None:
        size = len(self._data) + len(chunk)
        if size > MAX_BODY_BYTES:
            raise _too_large()
        more = max(0, size - FREE_BYTES) - self._taken
        if more > 0:
            self._intake.take(more)
            self._taken += more
        self._data += chunk

    @contextlib.contextmanager
    def taken(self) -> Iterator[bytes]:
        """The bytes, released afterwards."""
        try:
            yield bytes(self._data)
        finally:
            self.release()

    def release(self) -> None:
        self._intake.give(self._taken)
        self._taken = 0
        self._data = bytearray()


def _too_large() -> Refused:
    return Refused(413, f"the review has more than {MAX_BODY_BYTES} bytes")
