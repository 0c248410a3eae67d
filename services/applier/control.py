"""The node's control socket: pushes of rows, and questions to a worker about itself (docs/dataplane.md)."""

from __future__ import annotations

import io
import zlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import aiohttp
import msgspec
from msgspec import Struct

from services.shared.contracts.tables import PushHeader


class Generation(Struct, frozen=True, kw_only=True):
    """What one worker says of itself."""

    generation: int
    version: str
    digest: str
    pid: int
    exiting: bool = False


class PushResult(Struct, frozen=True, kw_only=True):
    """How nginx took a push."""

    outcome: Literal["live", "other base", "no memory", "refused", "unreachable"]
    detail: str = ""


def lines_of(upsert: Mapping[str, bytes], delete: Iterable[str]) -> bytes:
    """The rows of a push or of the journal."""
    out = [b"+" + k.encode() + b"\t" + v + b"\n" for k, v in upsert.items()]
    out += [b"-" + k.encode() + b"\n" for k in delete]
    return b"".join(out)


def push_body(header: PushHeader, lines: bytes) -> bytes:
    return msgspec.json.encode(msgspec.structs.replace(header, crc32=zlib.crc32(lines))) + b"\n" + lines


class Control:
    """A client of the socket. Every request is a new connection: another worker may answer each."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def _ask(self, method: str, path: str, body: bytes | None = None, timeout: float = 5.0) -> tuple[int, bytes]:
        connector = aiohttp.UnixConnector(path=str(self._socket), force_close=True)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=timeout)) as session,
            session.request(method, f"http://control{path}", data=io.BytesIO(body) if body is not None else None) as answer,
        ):
            return answer.status, await answer.read()

    async def push(self, body: bytes) -> PushResult:
        try:
            status, answer = await self._ask("POST", "/tables", body, timeout=60)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return PushResult(outcome="unreachable", detail=f"{type(error).__name__}: {error}")
        if status == 200:
            return PushResult(outcome="live")
        text = answer.decode(errors="replace")[:300]
        if status == 409:
            return PushResult(outcome="other base", detail=text)
        return PushResult(outcome="no memory" if status == 507 else "refused", detail=f"{status} {text}")

    async def generation(self) -> Generation | None:
        """None: nobody answers."""
        try:
            status, answer = await self._ask("GET", "/generation", timeout=2)
            return msgspec.json.decode(answer, type=Generation) if status == 200 else None
        except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError):
            return None

    async def beats(self, pids: Collection[int]) -> dict[int, int | None] | None:
        """How often each of these workers has come round (None: it has not counted yet); None: nobody answers."""
        if not pids:
            return {}
        try:
            status, answer = await self._ask("GET", f"/beats?pids={','.join(map(str, sorted(pids)))}", timeout=2)
            found = msgspec.json.decode(answer, type=dict[str, int]) if status == 200 else None
        except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError):
            return None
        return None if found is None else {pid: found.get(str(pid)) for pid in pids}

    async def stats(self) -> dict[str, Any] | None:
        try:
            status, answer = await self._ask("GET", "/stats", timeout=2)
            return msgspec.json.decode(answer, type=dict[str, Any]) if status == 200 else None
        except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError):
            return None

    async def metrics(self) -> str:
        try:
            status, answer = await self._ask("GET", "/metrics", timeout=5)
        except (aiohttp.ClientError, OSError, TimeoutError):
            return ""
        return answer.decode(errors="replace") if status == 200 else ""
