"""Leadership by a Lease (coordination.k8s.io/v1), as client-go's leader election does it: one holder, renewed, taken over when it expires.

No clock of another machine is believed: a Lease counts as expired when *this* process has seen it unchanged for its duration. A holder that
cannot renew stops leading after two thirds of that, counted from before its last renewal was sent, so that never two lead.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from msgspec import Struct

from services.shared.kube.client import Api, ApiError, KubeError
from services.shared.telemetry.logs import get_logger

log = get_logger(__name__)

NOT_FOUND: Final = 404
CONFLICT: Final = 409


class LeaseOptions(Struct, frozen=True, kw_only=True):
    """One election."""

    namespace: str
    name: str
    holder: str
    """Distinct for each candidate: the pod's name."""
    seconds: float = 15.0
    """How long a Lease is held without being renewed. Renewed every fifth of it; given up after two thirds without success."""

    @property
    def leading_seconds(self) -> float:
        """How long one renewal lets its holder lead."""
        return self.seconds * 2 / 3


class _Spec(Struct, frozen=True, rename="camel"):
    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    lease_transitions: int | None = None


class _Meta(Struct, frozen=True, rename="camel"):
    resource_version: str = ""


class _Lease(Struct, frozen=True):
    metadata: _Meta = _Meta()
    spec: _Spec = _Spec()


Told = Callable[[], Coroutine[None, None, None]]


class Leader:
    """One candidate."""

    def __init__(self, api: Api, options: LeaseOptions) -> None:
        self._api = api
        self._options = options
        self._holding = False
        self._until = 0.0
        """Monotonic: how long the last renewal lets us lead."""
        self._seen: tuple[str, float] = ("", 0.0)
        """The resourceVersion of another's Lease, and since when it is that."""
        self._telling: asyncio.Task[None] | None = None

    @property
    def leading(self) -> bool:
        """At this moment: also right where the process was stopped for a while and nobody has told it yet."""
        return self._holding and _now() < self._until

    @property
    def _path(self) -> str:
        return f"/apis/coordination.k8s.io/v1/namespaces/{self._options.namespace}/leases"

    async def run(self, won: Told, lost: Told) -> None:
        """For ever. `won` is run when leadership begins and cancelled if it ends; then `lost` is awaited."""
        try:
            while True:
                began = _now()
                await self._judge(await self._attempt(began), began, won, lost)
                await asyncio.sleep(self._pause())
        finally:
            await self._end()

    def _pause(self) -> float:
        """Until the next attempt; never past the moment at which leading ends."""
        pause = self._options.seconds / 5 * random.uniform(0.8, 1.0)  # noqa: S311 - jitter
        return max(0.0, min(pause, self._until - _now())) if self._holding else pause

    async def _attempt(self, began: float) -> bool | None:
        """Whether we hold it; None: not known."""
        deadline = began + self._options.seconds / 3
        try:
            async with asyncio.timeout_at(min(deadline, self._until) if self._holding else deadline):
                return await self._try(began)
        except (KubeError, TimeoutError, msgspec.DecodeError) as error:
            log.warning("the Lease could not be had or renewed", lease=self._options.name, error=str(error) or type(error).__name__)
            return None

    async def _judge(self, held: bool | None, began: float, won: Told, lost: Told) -> None:
        if held:
            self._until = began + self._options.leading_seconds
        keeps = (held or (held is None and self._holding)) and _now() < self._until
        if keeps and not self._holding:
            self._holding = True
            log.info("leading", lease=self._options.name, holder=self._options.holder)
            self._telling = asyncio.create_task(won())  # beside the renewals, which must not wait for it
        elif self._holding and not keeps:
            self._holding = False
            log.warning("no longer leading", lease=self._options.name)
            await self._end(lost)
        elif self._telling is not None and self._telling.done():
            self._telling.result()  # an error there ends the election, too

    async def _end(self, lost: Told | None = None) -> None:
        former, self._telling = self._telling, None
        if former is not None:
            former.cancel()
        if lost is not None:
            await lost()
        if former is not None:
            await asyncio.wait([former])

    async def _try(self, now: float) -> bool:
        """Acquire or renew; whether we hold it."""
        options = self._options
        try:
            lease = msgspec.json.decode(await self._api.request("GET", f"{self._path}/{options.name}"), type=_Lease)
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
            return await self._write("POST", self._path, self._body(_Lease()))
        holder = lease.spec.holder_identity or ""
        if holder and holder != options.holder and not self._expired(lease, now):
            return False
        return await self._write("PUT", f"{self._path}/{options.name}", self._body(lease))

    def _expired(self, lease: _Lease, now: float) -> bool:
        version, since = self._seen
        if version != lease.metadata.resource_version:
            self._seen = (lease.metadata.resource_version, _now())  # after the answer: it may have been renewed while we asked
            return False
        return now - since >= (lease.spec.lease_duration_seconds or self._options.seconds)

    def _body(self, lease: _Lease) -> dict[str, Any]:
        options, now = self._options, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        mine = lease.spec.holder_identity == options.holder
        metadata = {"name": options.name, "namespace": options.namespace}
        if lease.metadata.resource_version:
            metadata["resourceVersion"] = lease.metadata.resource_version  # compare-and-set
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": {
                "holderIdentity": options.holder,
                "leaseDurationSeconds": math.ceil(options.seconds),
                "renewTime": now,
                "acquireTime": (mine and lease.spec.acquire_time) or now,
                "leaseTransitions": (lease.spec.lease_transitions or 0) + (not mine),
            },
        }

    async def _write(self, method: str, path: str, body: dict[str, Any]) -> bool:
        try:
            await self._api.request(method, path, body=body)
        except ApiError as error:
            if error.status == CONFLICT:
                return False
            raise
        return True

    async def release(self) -> None:
        """At a clean end, when nothing is published any more: the next one need not wait."""
        if not self._holding:
            return
        self._holding = False
        with contextlib.suppress(KubeError, msgspec.DecodeError):
            path = f"{self._path}/{self._options.name}"
            lease = msgspec.json.decode(await self._api.request("GET", path, timeout=3), type=_Lease)
            if lease.spec.holder_identity == self._options.holder:
                body = self._body(lease)
                body["spec"]["holderIdentity"] = ""
                await self._api.request("PUT", path, body=body, timeout=3)


def _now() -> float:
    return asyncio.get_running_loop().time()
