"""Writes `status.loadBalancer` of each Ingress of ours where it is not what it should be.

When an Ingress appears, when the addresses change, and every `--status-update-interval`, which is also how often another writer is put
right. Bounded in rate and in parallel; an error is tried again later. The way of deltas to the bus never waits for it.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any, Final

import msgspec
from msgspec import Struct

from services.shared.contracts.objects import Key
from services.shared.flags import Flags
from services.shared.kube.client import Api, ApiError, KubeError
from services.shared.telemetry.lifecycle import until
from services.shared.telemetry.logs import get_logger
from services.watcher.status.addresses import LoadBalancerEntry, Published, of_status
from services.watcher.status.ours import OurIngresses
from services.watcher.status.published import Addresses
from services.watcher.status.rate import Rate

log = get_logger(__name__)

PARALLEL: Final = 16
PER_SECOND: Final = 200
BURST: Final = 400
PAGE: Final = 500
RETRY_SECONDS: Final = (0.5, 60.0)
"""First and longest wait after an error."""
NOT_FOUND: Final = 404
CONFLICT: Final = 409
TOO_MANY: Final = 429
MERGE: Final = "application/merge-patch+json"


class _Meta(Struct, frozen=True, rename="camel"):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class _LoadBalancer(Struct, frozen=True):
    ingress: list[LoadBalancerEntry] | None = None


class _IngressStatus(Struct, frozen=True, rename="camel"):
    load_balancer: _LoadBalancer = _LoadBalancer()


class _Written(Struct, frozen=True):
    metadata: _Meta = _Meta()
    status: _IngressStatus = _IngressStatus()


class _List(Struct, frozen=True):
    metadata: _Meta = _Meta()
    items: list[_Written] | None = None


class StatusWriter:
    """`note` what the source sees, whether leading or not; `run` while leading."""

    def __init__(self, api: Api, flags: Flags, ours: OurIngresses, addresses: Addresses) -> None:
        self._api = api
        self._flags = flags
        self._ours = ours
        self._addresses = addresses
        self._written: dict[Key, tuple[str, Published]] = {}
        """What the API server has, as far as we know, of the Ingress with this uid."""
        self._queue: asyncio.Queue[Key] = asyncio.Queue()
        self._queued: set[Key] = set()
        self._busy: set[Key] = set()
        """Being written: one write of an Ingress at a time, or an older one might arrive last."""
        self._again: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._running = False
        self._rate = Rate(PER_SECOND, BURST)
        self._logging = Rate(0.1, 5)
        self._limit = asyncio.Semaphore(PARALLEL)
        self._pause = 0.0
        """Seconds that everything waits after an error of the server's, not of one object's."""
        self._resume_at = 0.0

    def note(self, key: Key) -> None:
        """An Ingress to look at again. Nothing, while not leading."""
        if self._running and key not in self._queued:
            self._queued.add(key)
            self._queue.put_nowait(key)

    def _add_all(self) -> None:
        for key in self._ours:
            self.note(key)

    async def run(self) -> None:
        """For ever; cancelled when leadership ends."""
        if not self._flags.update_status:
            await asyncio.Event().wait()
        self._running = True
        try:
            await until(asyncio.Event(), self._addresses.follow(self._add_all), self._compare(), *(self._work() for _ in range(PARALLEL)))
        finally:
            self._running = False
            self._queue, self._queued, self._failures = asyncio.Queue(), set(), {}

    # --- what the API server has

    async def _compare(self) -> None:
        delay = RETRY_SECONDS[0]
        while True:
            try:
                self._written = await self._read_all()
                self._add_all()
                delay = RETRY_SECONDS[0]
                await asyncio.sleep(self._flags.status_update_interval)
            except (KubeError, msgspec.DecodeError) as error:
                log.warning("statuses could not be compared", error=error)
                await asyncio.sleep(delay)
                delay = min(2 * delay, RETRY_SECONDS[1])

    async def _read_all(self) -> dict[Key, tuple[str, Published]]:
        namespace = self._flags.watch_namespace
        path = f"/apis/networking.k8s.io/v1{f'/namespaces/{namespace}' if namespace else ''}/ingresses"
        found: dict[Key, tuple[str, Published]] = {}
        following = ""
        while True:
            query = {"limit": str(PAGE)} | ({"continue": following} if following else {})
            page = msgspec.json.decode(await self._api.request("GET", path, query=query), type=_List)
            for item in page.items or ():
                key = Key("Ingress", item.metadata.namespace, item.metadata.name)
                found[key] = (item.metadata.uid, of_status(item.status.load_balancer.ingress))
            following = page.metadata.continue_
            if not following:
                return found

    def _has(self, key: Key) -> Published:
        """An Ingress made anew under its old name has nothing yet."""
        uid, published = self._written.get(key, ("", ()))
        obj = self._ours.get(key.namespace, key.name)
        return published if obj is not None and obj.metadata.uid == uid else ()

    # --- writing

    async def _work(self) -> None:
        while True:
            key = await self._queue.get()
            self._queued.discard(key)
            await self._well()
            wanted = self._addresses.now
            if wanted is None or self._ours.get(key.namespace, key.name) is None or self._has(key) == wanted:
                self._failures.pop(key, None)
                continue
            if key in self._busy:
                self._again.add(key)
                continue
            self._busy.add(key)
            try:
                await self._rate.take()
                await self._write(key, wanted)
                self._pause = 0.0
            except KubeError as error:
                self._retry(key, error)
            finally:
                self._busy.discard(key)
                if key in self._again:
                    self._again.discard(key)
                    self.note(key)

    async def _well(self) -> None:
        """Wait while the server needs rest; others may find out meanwhile that it needs more."""
        while (rest := self._resume_at - asyncio.get_running_loop().time()) > 0:  # noqa: ASYNC110 - time is what is waited for
            await asyncio.sleep(rest)

    async def _write(self, key: Key, wanted: Published) -> None:
        obj = self._ours.get(key.namespace, key.name)
        if obj is None:
            return
        path = f"/apis/networking.k8s.io/v1/namespaces/{key.namespace}/ingresses/{key.name}/status"
        body: dict[str, Any] = {"status": {"loadBalancer": {"ingress": list(wanted) or None}}}
        try:
            await self._api.request("PATCH", path, body=body, content_type=MERGE)
            self._written[key] = (obj.metadata.uid, wanted)
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
            self._written.pop(key, None)  # deleted meanwhile: the watch says so, too
        self._failures.pop(key, None)

    def _retry(self, key: Key, error: KubeError) -> None:
        loop = asyncio.get_running_loop()
        told = error.retry_after if isinstance(error, ApiError) else 0.0
        if not isinstance(error, ApiError) or error.status == TOO_MANY or error.status >= 500:
            if loop.time() >= self._resume_at:  # the first of those that were on their way
                log.warning("statuses cannot be written at the moment", error=error)
                self._pause = min(2 * self._pause or RETRY_SECONDS[0], RETRY_SECONDS[1])
                self._resume_at = loop.time() + max(told, self._pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            self.note(key)
            return
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        if failures == 1 and self._logging.try_take():
            log.warning("a status could not be written yet", object=str(key), error=error)
        delay = 0.0 if error.status == CONFLICT and failures == 1 else min(RETRY_SECONDS[0] * 2**failures, RETRY_SECONDS[1])
        loop.call_later(max(told, delay * random.uniform(0.5, 1.0)), self.note, key)  # noqa: S311 - jitter

    async def clear(self) -> None:
        """The last one is shut down: no Ingress has an address any more. Several addresses are not only ours, and stay (behaviours §17)."""
        if not (self._flags.update_status and self._flags.update_status_on_shutdown):
            return
        await self._addresses.look()
        if self._addresses.now is not None and len(self._addresses.now) <= 1:
            await asyncio.gather(*(self._clear(key) for key in sorted(self._ours) if self._has(key)))

    async def _clear(self, key: Key) -> None:
        async with self._limit:
            await self._write(key, ())
