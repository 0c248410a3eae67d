"""Writes `status.loadBalancer` of each Ingress of ours where it is not what it should be.

When an Ingress changes, when the published Service does, and every `--status-update-interval`. Bounded in rate and in parallel; an error
is tried again later. The way of deltas to the bus never waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

import msgspec
from msgspec import Struct

from services.shared.checks.classes import is_ours
from services.shared.contracts.objects import AnyObject, Ingress, IngressClass, Key
from services.shared.flags import Flags
from services.shared.kube.client import Api, ApiError, KubeError
from services.shared.telemetry.logs import get_logger
from services.watcher.status.addresses import LoadBalancerEntry, Published, PublishedService, of_flag, of_service, of_status

log = get_logger(__name__)

PARALLEL: Final = 16
PER_SECOND: Final = 400
PAGE: Final = 500
SERVICE_SECONDS: Final = 2.0
"""Between two looks at the published Service: what changes its addresses is not among what deltas carry."""
RETRY_SECONDS: Final = 2.0
NOT_FOUND: Final = 404
MERGE: Final = "application/merge-patch+json"


class _Meta(Struct, frozen=True, rename="camel"):
    name: str = ""
    namespace: str = ""
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

    def __init__(self, api: Api, flags: Flags) -> None:
        self._api = api
        self._flags = flags
        self._ingresses: dict[Key, Ingress] = {}
        self._classes: dict[str, IngressClass] = {}
        self._written: dict[Key, Published] = {}
        """What the API server has, as far as we know."""
        self._last_wanted: Published | None = None
        self._due: set[Key] = set()
        self._wake = asyncio.Event()
        self._limit = asyncio.Semaphore(PARALLEL)

    # --- what is there

    def note(self, key: Key, obj: AnyObject | None) -> None:
        """An object changed, or (None) is gone."""
        if key.kind == "IngressClass":
            self._classes.pop(key.name, None)
            if isinstance(obj, IngressClass):
                self._classes[key.name] = obj
            self._due |= self._ingresses.keys()
        elif key.kind == "Ingress":
            self._ingresses.pop(key, None)
            if isinstance(obj, Ingress):
                self._ingresses[key] = obj
                self._due.add(key)
            else:
                self._written.pop(key, None)
        else:
            return
        self._wake.set()

    def _ours(self) -> set[Key]:
        return {key for key, obj in self._ingresses.items() if is_ours(obj, self._classes.get, self._flags)}

    # --- what it should be

    async def _wanted(self) -> Published | None:
        """None: nothing says which addresses there are."""
        flags = self._flags
        if flags.publish_status_address:
            return of_flag(flags.publish_status_address)
        if not flags.publish_service:
            return None
        namespace, _, name = flags.publish_service.partition("/")
        try:
            data = await self._api.request("GET", f"/api/v1/namespaces/{namespace}/services/{name}")
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
            log.warning("the Service of --publish-service does not exist", service=flags.publish_service)
            return ()
        return of_service(msgspec.json.decode(data, type=PublishedService))

    # --- writing

    async def run(self) -> None:
        """For ever; cancelled when leadership ends."""
        if not self._flags.update_status:
            await asyncio.Event().wait()
        while True:
            try:
                await self._read_all()
                self._due |= self._ingresses.keys()
                await self._until_next_read()
            except (KubeError, msgspec.DecodeError) as error:
                log.warning("statuses could not be compared", error=error)
                await asyncio.sleep(RETRY_SECONDS)

    async def _read_all(self) -> None:
        """What the API server has: others may have written."""
        namespace = self._flags.watch_namespace
        path = f"/apis/networking.k8s.io/v1{f'/namespaces/{namespace}' if namespace else ''}/ingresses"
        found: dict[Key, Published] = {}
        following = ""
        while True:
            query = {"limit": str(PAGE)} | ({"continue": following} if following else {})
            page = msgspec.json.decode(await self._api.request("GET", path, query=query), type=_List)
            for item in page.items or ():
                key = Key("Ingress", item.metadata.namespace, item.metadata.name)
                found[key] = of_status(item.status.load_balancer.ingress)
            following = page.metadata.continue_
            if not following:
                self._written = found
                return

    async def _until_next_read(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._flags.status_update_interval):
                while True:
                    await self._write_due()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(SERVICE_SECONDS if self._flags.publish_service else None):
                            await self._wake.wait()

    async def _write_due(self) -> None:
        self._wake.clear()
        due, self._due = self._due, set()
        wanted = await self._wanted()
        if wanted is None:
            return
        if wanted != self._last_wanted:
            self._last_wanted = wanted
            due = set(self._ingresses)
        keys = sorted(key for key in due & self._ours() if self._written.get(key, ()) != wanted)
        for at in range(0, len(keys), PER_SECOND // 4):
            batch = keys[at : at + PER_SECOND // 4]
            await asyncio.gather(asyncio.sleep(0.25 if at + PER_SECOND // 4 < len(keys) else 0), *(self._write(k, wanted) for k in batch))

    async def _write(self, key: Key, wanted: Published) -> None:
        path = f"/apis/networking.k8s.io/v1/namespaces/{key.namespace}/ingresses/{key.name}/status"
        body: dict[str, Any] = {"status": {"loadBalancer": {"ingress": list(wanted) or None}}}
        async with self._limit:
            try:
                await self._api.request("PATCH", path, body=body, content_type=MERGE)
                self._written[key] = wanted
            except KubeError as error:
                if isinstance(error, ApiError) and error.status == NOT_FOUND:
                    return
                log.warning("a status could not be written yet", object=str(key), error=error)
                self._due.add(key)
                asyncio.get_running_loop().call_later(RETRY_SECONDS, self._wake.set)

    async def clear(self) -> None:
        """The last one is shut down: no Ingress has an address any more. Several addresses are not only ours, and stay (behaviours §17)."""
        wanted = await self._wanted() if self._flags.update_status and self._flags.update_status_on_shutdown else None
        if wanted is not None and len(wanted) <= 1:
            await asyncio.gather(*(self._write(key, ()) for key in sorted(self._ours()) if self._written.get(key)))
