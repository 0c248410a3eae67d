"""Leadership by a Lease (coordination.k8s.io/v1), as client-go's leader election does it: one holder, renewed, taken over when it expires.

No clock of another machine is believed: a Lease counts as expired when *this* process has seen it unchanged for its duration. A holder that
cannot renew stops leading before that, so that never two lead.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
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


class _Spec(Struct, frozen=True, rename="camel"):
    holder_identity: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class _Meta(Struct, frozen=True, rename="camel"):
    resource_version: str = ""


class _Lease(Struct, frozen=True):
    metadata: _Meta = _Meta()
    spec: _Spec = _Spec()


class Leader:
    """`run` for ever. `won` and `lost` are awaited when leadership begins and ends."""

    def __init__(self, api: Api, options: LeaseOptions, *, won: Callable[[], Awaitable[None]], lost: Callable[[], Awaitable[None]]) -> None:
        self._api = api
        self._options = options
        self._won = won
        self._lost = lost
        self.leading = False
        self._renewed_at = 0.0
        """Monotonic: before the last successful renewal was sent."""
        self._seen: tuple[str, float] = ("", 0.0)
        """The resourceVersion of another's Lease, and since when it is that."""

    @property
    def _path(self) -> str:
        return f"/apis/coordination.k8s.io/v1/namespaces/{self._options.namespace}/leases"

    async def run(self) -> None:
        pause = self._options.seconds / 5
        while True:
            began = asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(self._options.seconds / 3):
                    held = await self._try(began)
            except (KubeError, TimeoutError, msgspec.DecodeError) as error:
                log.warning("the Lease could not be had or renewed", lease=self._options.name, error=str(error) or type(error).__name__)
                held = None
            await self._judge(held, began)
            await asyncio.sleep(pause * random.uniform(0.8, 1.0))  # noqa: S311 - jitter

    async def _judge(self, held: bool | None, began: float) -> None:
        """`held` None: not known; what was held is believed for two thirds of its time."""
        now = asyncio.get_running_loop().time()
        if held:
            self._renewed_at = began
        keeps = held or (held is None and self.leading and now - self._renewed_at < self._options.seconds * 2 / 3)
        if keeps and not self.leading:
            self.leading = True
            log.info("leading", lease=self._options.name, holder=self._options.holder)
            await self._won()
        elif self.leading and not keeps:
            self.leading = False
            log.warning("no longer leading", lease=self._options.name)
            await self._lost()

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
            self._seen = (lease.metadata.resource_version, now)
            return False
        return now - since >= self._options.seconds

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
                "leaseDurationSeconds": max(1, round(options.seconds)),
                "renewTime": now,
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
        """At a clean end: the next one need not wait."""
        if not self.leading:
            return
        self.leading = False
        try:
            path = f"{self._path}/{self._options.name}"
            lease = msgspec.json.decode(await self._api.request("GET", path, timeout=3), type=_Lease)
            if lease.spec.holder_identity == self._options.holder:
                body = self._body(lease)
                body["spec"]["holderIdentity"] = ""
                await self._api.request("PUT", path, body=body, timeout=3)
        except (KubeError, msgspec.DecodeError) as error:
            log.debug("the Lease was not released", error=error)
