"""One collection, listed and watched for ever: its objects are what the API server has, or had when it last answered.

Nothing is taken away before a list is complete. resourceVersions are opaque here except where a watch is asked to go on from one.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Mapping
from typing import Final, Literal

import msgspec
from msgspec import Raw, Struct

from services.shared.contracts.objects import AnyObject, Key, key_of
from services.shared.kube.client import Api, ApiError, KubeError, Unreachable
from services.shared.telemetry.logs import get_logger
from services.watcher.normalize import Invalid
from services.watcher.sources.kubernetes.kinds import Collection, key_in, read, unchanged

log = get_logger(__name__)

PAGE: Final = 500
WATCH_SECONDS: Final = 300
GRACE_SECONDS: Final = 30.0
"""A watch that is silent for longer than its own time and this is dead: a connection may be half open."""
FIRST_DELAY_SECONDS: Final = 0.2
LONGEST_DELAY_SECONDS: Final = 30.0
GONE: Final = 410


class _Meta(Struct, frozen=True, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class _List(Struct, frozen=True):
    metadata: _Meta = _Meta()
    items: list[Raw] | None = None


class _Event(Struct, frozen=True):
    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]
    object: Raw


class _Marked(Struct, frozen=True):
    metadata: _Meta = _Meta()


class _Status(Struct, frozen=True):
    code: int = 0
    message: str = ""
    reason: str = ""


_decode_list: Final = msgspec.json.Decoder(_List).decode
_decode_event: Final = msgspec.json.Decoder(_Event).decode
_decode_marked: Final = msgspec.json.Decoder(_Marked).decode
_decode_status: Final = msgspec.json.Decoder(_Status).decode

Changed = Callable[[Mapping[Key, AnyObject | None]], None]


class Reflector:
    """See the module. `changed` is told of every difference, None: gone."""

    def __init__(self, api: Api, collection: Collection, changed: Changed) -> None:
        self._api = api
        self._collection = collection
        self._changed = changed
        self._known: dict[Key, AnyObject] = {}
        self._versions: dict[Key, str] = {}
        """The newest resourceVersion of each object, also where nothing changed that we read."""
        self._from = ""
        """Where the next watch goes on; empty: list first."""
        self._delay = FIRST_DELAY_SECONDS
        self.listed = False
        self.invalid: dict[Key, Invalid] = {}
        """Objects that cannot be read; their last readable form, if any, stays."""
        self.trouble = ""
        """Why it does not get on; empty: it does."""

    @property
    def name(self) -> str:
        where = f" in {self._collection.namespace}" if self._collection.namespace else ""
        return f"{self._collection.kind}{where}"

    async def run(self) -> None:
        while True:
            try:
                if not self._from:
                    await self._list()
                await self._watch()
            except (KubeError, msgspec.DecodeError) as error:
                await self._wait(error)

    async def _wait(self, error: Exception) -> None:
        """As long as the server says, else longer each time; after 410 a little, so that not all kinds list at once."""
        delay = self._delay
        if isinstance(error, ApiError) and error.status == GONE:
            self._from = ""
            delay = FIRST_DELAY_SECONDS
            log.info("listing again", kind=self.name, why=error.message)
        else:
            self.trouble = str(error)
            log.warning("the API server does not answer as it should", kind=self.name, error=error)
            self._delay = min(self._delay * 2, LONGEST_DELAY_SECONDS)
        told = error.retry_after if isinstance(error, ApiError) else 0.0
        await asyncio.sleep(max(told, delay * random.uniform(0.5, 1.0)))  # noqa: S311 - jitter

    def _well(self) -> None:
        self._delay = FIRST_DELAY_SECONDS
        self.trouble = ""

    # --- list

    async def _list(self) -> None:
        found: dict[Key, AnyObject] = {}
        invalid: dict[Key, Invalid] = {}
        versions: dict[Key, str] = {}
        following = ""
        while True:
            query = {**self._collection.query, "limit": str(PAGE)} | ({"continue": following} if following else {})
            page = _decode_list(await self._api.request("GET", self._collection.path, query=query))
            for raw in page.items or ():
                self._read(bytes(raw), found, invalid, versions)
            following = page.metadata.continue_
            if not following:
                break
            await asyncio.sleep(0)
        self._versions = versions
        self._take_list(found, invalid)
        self._from = page.metadata.resource_version
        self._well()

    def _read(self, raw: bytes, found: dict[Key, AnyObject], invalid: dict[Key, Invalid], versions: dict[Key, str]) -> None:
        obj = read(self._collection.kind, raw)
        if not isinstance(obj, Invalid):
            key = key_of(obj)
            found[key], versions[key] = obj, obj.metadata.resource_version
            return
        key_of_it = obj.key or key_in(self._collection.kind, raw)
        if key_of_it is None:
            log.error("an object without a name", kind=self.name, error=obj.message)
            return
        invalid[key_of_it] = obj
        versions[key_of_it] = _decode_marked(raw).metadata.resource_version
        if key_of_it in self._known:
            found[key_of_it] = self._known[key_of_it]

    def _take_list(self, found: dict[Key, AnyObject], invalid: dict[Key, Invalid]) -> None:
        changes: dict[Key, AnyObject | None] = {}
        for key, obj in found.items():
            before = self._known.get(key)
            if unchanged(before, obj):
                continue
            changes[key] = self._known[key] = obj
        for key in self._known.keys() - found.keys():
            del self._known[key]
            changes[key] = None
        self.invalid = invalid
        self.listed = True
        self._changed(changes)

    # --- watch

    async def _watch(self) -> None:
        query = {
            **self._collection.query,
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._from,
            "timeoutSeconds": str(int(WATCH_SECONDS * random.uniform(0.8, 1.2))),  # noqa: S311 - not all at once
        }
        lines = self._api.lines(self._collection.path, query=query, silence=WATCH_SECONDS * 1.2 + GRACE_SECONDS)
        async with contextlib.aclosing(lines):
            async for line in lines:
                self._take_event(line)

    def _take_event(self, line: bytes) -> None:
        try:
            event = _decode_event(line)
        except msgspec.DecodeError as error:
            raise Unreachable(f"an event that cannot be read: {error}") from error
        raw = bytes(event.object)
        if event.type == "ERROR":
            status = _decode_status(raw)
            raise ApiError(status.code, status.reason, status.message)
        self._well()
        version = _decode_marked(raw).metadata.resource_version
        if event.type == "DELETED":
            key = key_in(self._collection.kind, raw)
            if key is not None:
                self.invalid.pop(key, None)
                self._versions.pop(key, None)
                if self._known.pop(key, None) is not None:
                    self._changed({key: None})
        elif event.type != "BOOKMARK":
            self._take_object(raw)
        self._from = version or self._from

    def _take_object(self, raw: bytes) -> None:
        found: dict[Key, AnyObject] = {}
        invalid: dict[Key, Invalid] = {}
        self._read(raw, found, invalid, self._versions)
        for key in found:
            self.invalid.pop(key, None)
        self.invalid |= invalid
        for key, obj in found.items():
            if key not in invalid and not unchanged(self._known.get(key), obj):
                self._known[key] = obj
                self._changed({key: obj})

    # --- the barrier

    async def caught_up(self) -> bool:
        """Whether each object here is the one that the API server has now, by a consistent read of names and resourceVersions."""
        there: dict[Key, str] = {}
        following = ""
        while True:
            query = {**self._collection.query, "limit": str(PAGE * 4)} | ({"continue": following} if following else {})
            page = _decode_list(await self._api.request("GET", self._collection.path, query=query, metadata_only=True))
            for raw in page.items or ():
                key = key_in(self._collection.kind, bytes(raw))
                if key is not None:
                    there[key] = _decode_marked(bytes(raw)).metadata.resource_version
            following = page.metadata.continue_
            if not following:
                return self._covers(there)

    def _covers(self, there: Mapping[Key, str]) -> bool:
        """Newer is as good: Kubernetes defines resourceVersions of one resource as comparable integers (KEP-5504)."""
        if self._versions.keys() != there.keys():
            # What was made or deleted since the read was taken is seen by the next one.
            return False
        return all(_number(self._versions[key]) >= _number(version) for key, version in there.items())


def _number(version: str) -> int:
    return int(version) if version.isdigit() else 0
