"""One collection, listed and watched for ever: its objects are what the API server has, or had when it last answered.

Nothing is taken away before a list is complete. A list always counts, whatever its resourceVersions; an event only if it is newer than what
is known of its object (resourceVersions of one kind compare as integers: KEP-5504, stated since Kubernetes 1.35; any others are believed).
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
from services.shared.kube.client import Api, ApiError, KubeError
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
SHORT_SECONDS: Final = 1.0
"""A watch that ends sooner is trouble: it is not asked for again at once."""
LONG_SECONDS: Final = 10.0
"""A watch that lasted so long was well."""
TAKEN_UP: Final = 3
"""After so many watches in a row that brought what cannot be taken, the place is given up: list again."""
GONE: Final = 410


class Unusable(KubeError):
    """A watch brings what is no event, or an error."""


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
        self._opened = 0
        """The resourceVersion after which this watch began, as a number."""
        self._deleted: dict[Key, int] = {}
        """What this watch saw deleted, and at which resourceVersion."""
        self._delay = FIRST_DELAY_SECONDS
        self._unusable = 0
        self._watching: asyncio.Task[None] | None = None
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
                await self._watch_or_give_up()
            except (KubeError, msgspec.DecodeError, RecursionError) as error:
                await self._wait(error)

    async def _wait(self, error: Exception) -> None:
        """As long as the server says, else longer each time, and never all kinds at once."""
        if isinstance(error, ApiError) and error.status == GONE:
            self._from = ""
            log.info("listing again", kind=self.name, why=error.message)
        else:
            self.trouble = str(error)
            log.warning("the API server does not answer as it should", kind=self.name, error=error)
        if isinstance(error, Unusable):
            self._unusable += 1
            if self._unusable % TAKEN_UP == 0:
                self._from = ""
        delay, self._delay = self._delay, min(self._delay * 2, LONGEST_DELAY_SECONDS)
        told = error.retry_after if isinstance(error, ApiError) else 0.0
        await asyncio.sleep(max(told, delay) * random.uniform(1.0, 1.5))  # noqa: S311 - jitter

    async def _watch_or_give_up(self) -> None:
        """`give_up` ends the watch, which then counts as nothing."""
        task = self._watching = asyncio.create_task(self._watch())
        try:
            await asyncio.wait([task])
        finally:
            self._watching = None
            task.cancel()
            await asyncio.wait([task])
        if not task.cancelled():
            task.result()

    def give_up(self) -> None:
        """Do not believe the watch any more: list again."""
        if self._watching is not None:
            log.warning("the watch does not show what is there, listing again", kind=self.name)
            self._from = ""
            self._watching.cancel()

    def _answered(self) -> None:
        """A list or a watch was granted: no trouble now. The next one waits as long as before, until a watch was well for a while."""
        self.trouble = ""

    def _well(self) -> None:
        self.trouble = ""
        self._delay = FIRST_DELAY_SECONDS
        self._unusable = 0

    # --- list

    async def _list(self) -> None:
        found: dict[Key, AnyObject] = {}
        invalid: dict[Key, Invalid] = {}
        versions: dict[Key, str] = {}
        following, began = "", asyncio.get_running_loop().time()
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
        log.info("listed", kind=self.name, objects=len(found), seconds=round(asyncio.get_running_loop().time() - began, 3))
        self._answered()

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
        versions[key_of_it] = _version_of(raw)
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
        seconds = max(1, int(WATCH_SECONDS * random.uniform(0.8, 1.2)))  # noqa: S311 - not all at once
        query = {
            **self._collection.query,
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._from,
            "timeoutSeconds": str(seconds),
        }
        self._opened, self._deleted = _number(self._from), {}
        began = asyncio.get_running_loop().time()
        lines = self._api.lines(self._collection.path, query=query, silence=seconds + GRACE_SECONDS, begun=self._answered)
        try:
            async with contextlib.aclosing(lines):
                async for line in lines:
                    self._take_event(line)
        finally:
            lasted = asyncio.get_running_loop().time() - began
            if lasted > LONG_SECONDS:
                self._well()
        if lasted < SHORT_SECONDS:
            raise Unusable("the watch ended at once")

    def _take_event(self, line: bytes) -> None:
        try:
            event = _decode_event(line)
        except (msgspec.DecodeError, RecursionError) as error:
            raise Unusable(f"an event that cannot be read: {error}") from error
        raw = bytes(event.object)
        if event.type == "ERROR":
            raise _error_of(raw)
        self._well()
        version = _version_of(raw)
        if event.type == "BOOKMARK":
            self._from = version or self._from
            return
        key = key_in(self._collection.kind, raw)
        if key is not None and self._is_late(key, version, deleted=event.type == "DELETED"):
            return
        if event.type == "DELETED":
            self._delete(key, version)
        else:
            self._take_object(raw)
        self._from = version or self._from

    def _is_late(self, key: Key, version: str, *, deleted: bool) -> bool:
        """Whether something newer is known already: a server, or what stands before it, may repeat itself."""
        number, known = _number(version), _number(self._versions.get(key, ""))
        if deleted:
            return 0 < number < known  # some servers send the last version that was there
        return 0 < number <= max(known, self._opened, self._deleted.get(key, 0))

    def _delete(self, key: Key | None, version: str) -> None:
        if key is None:
            return
        self.invalid.pop(key, None)
        self._versions.pop(key, None)
        self._deleted[key] = _number(version)
        if self._known.pop(key, None) is not None:
            self._changed({key: None})

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
        """Whether all that the API server has now is known here, by a consistent read of names and resourceVersions."""
        there: dict[Key, str] = {}
        following = ""
        while True:
            query = {**self._collection.query, "limit": str(PAGE * 4)} | ({"continue": following} if following else {})
            page = _decode_list(await self._api.request("GET", self._collection.path, query=query, metadata_only=True))
            now = _number(page.metadata.resource_version)
            if 0 < now <= _number(self._from):
                return True  # the watch is past it
            for raw in page.items or ():
                key = key_in(self._collection.kind, bytes(raw))
                if key is not None:
                    there[key] = _version_of(bytes(raw))
            following = page.metadata.continue_
            if not following:
                return self._covers(there, now)

    def _covers(self, there: Mapping[Key, str], now: int) -> bool:
        """Newer is as good: changed, made or deleted after the read was taken at `now`."""
        for key, version in there.items():
            ours = self._versions.get(key)
            if ours is None and self._deleted.get(key, 0) <= now:
                return False
            if ours is not None and ours != version and _number(ours) <= _number(version):
                return False
        return all(_number(self._versions[key]) > now for key in self._versions.keys() - there.keys())


def _number(version: str) -> int:
    """0: cannot be compared."""
    return int(version) if version.isdecimal() and version.isascii() else 0


def _version_of(raw: bytes) -> str:
    try:
        return _decode_marked(raw).metadata.resource_version
    except (msgspec.DecodeError, RecursionError):
        return ""


def _error_of(raw: bytes) -> KubeError:
    """An ERROR event. One that is no Status is not believed either."""
    try:
        status = _decode_status(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        return Unusable(f"an error that cannot be read: {error}")
    if status.code == GONE:
        return ApiError(status.code, status.reason, status.message)
    return Unusable(f"{status.code} {status.reason}: {status.message}")
