"""Which addresses Ingresses are to have now: of a flag, of the published Service, or of the Nodes that edge nodes run on."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from services.shared.bus.port import Bus, BusError
from services.shared.contracts.report import decode_node_report
from services.shared.contracts.subjects import NODES_BUCKET, untoken
from services.shared.flags import Flags
from services.shared.kube.client import Api, ApiError, KubeError
from services.shared.telemetry.logs import get_logger
from services.watcher.status.addresses import ClusterNode, Published, PublishedService, of_flag, of_node, of_nodes, of_service

log = get_logger(__name__)

LOOK_SECONDS: Final = 2.0
"""Between two looks at the Service or the node reports: what changes the addresses is not among what deltas carry."""
NODE_SECONDS: Final = 60.0
"""How long a Node's address is believed."""
NOT_FOUND: Final = 404
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", re.ASCII)


class _PodSpec(Struct, frozen=True, rename="camel"):
    node_name: str = ""


class _Pod(Struct, frozen=True):
    spec: _PodSpec = _PodSpec()


Form = TypeVar("Form")


class Addresses:
    """`now` is what they should be; None: nothing says, and statuses stay as they are."""

    def __init__(self, api: Api, bus: Bus, flags: Flags, namespace: str, has: Callable[[str], bool]) -> None:
        """`namespace`: of the pods that edge nodes are named after, where they are not named after Nodes.

        `has`: whether nodes that report this group count.
        """
        self._has = has
        self._api = api
        self._bus = bus
        self._flags = flags
        self._namespace = namespace
        self._nodes: dict[str, tuple[str, float]] = {}
        """Edge node -> its address, and until when it is believed."""
        self._trouble = ""
        self.now: Published | None = None

    async def follow(self, changed: Callable[[], None]) -> None:
        """For ever: keep `now` up to date; `changed` is called when it has changed."""
        while True:
            before = self.now
            await self.look()
            if self.now != before:
                log.info("addresses of Ingresses", addresses=",".join(" ".join(e.values()) for e in self.now or ()))
                changed()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Once. Where it cannot be known at the moment, `now` stays what it was."""
        flags = self._flags
        try:
            if flags.publish_status_address:
                self.now = of_flag(flags.publish_status_address)
            elif flags.publish_service:
                self.now = await self._of_service(flags.publish_service)
            else:
                # With no edge node left the last addresses stay: what points to them (DNS) need not follow a restart of all.
                self.now = await self._of_nodes() or self.now
            self._trouble = ""
        except (KubeError, BusError, msgspec.DecodeError) as error:
            if str(error) != self._trouble:
                log.warning("the addresses of Ingresses cannot be known at the moment", error=error)
            self._trouble = str(error)

    async def _of_service(self, reference: str) -> Published:
        namespace, _, name = reference.partition("/")
        data = await self._api.request("GET", f"/api/v1/namespaces/{namespace}/services/{name}")
        return of_service(msgspec.json.decode(data, type=PublishedService))

    # --- nodes

    async def _of_nodes(self) -> Published:
        now = asyncio.get_running_loop().time()
        ready = []
        for key, value in (await self._bus.entries(NODES_BUCKET)).items():
            try:
                name, report = untoken(key), decode_node_report(value)
            except (ValueError, msgspec.DecodeError):
                continue
            # The key, not what the report says of itself: no node can speak for another.
            if report.ready and self._has(report.group) and _NAME.fullmatch(name):
                ready.append(name)
        self._nodes = {name: found for name, found in self._nodes.items() if name in ready and found[1] > now}
        for name in ready:
            if name not in self._nodes:
                self._nodes[name] = (await self._address(name), now + NODE_SECONDS)
        return of_nodes(address for address, _ in self._nodes.values())

    async def _address(self, name: str) -> str:
        """An edge node is named after its Node or its Pod; empty: after neither, as outside of a cluster."""
        node = await self._get(f"/api/v1/nodes/{name}", ClusterNode)
        if node is None:
            pod = await self._get(f"/api/v1/namespaces/{self._namespace}/pods/{name}", _Pod)
            node = await self._get(f"/api/v1/nodes/{pod.spec.node_name}", ClusterNode) if pod is not None and pod.spec.node_name else None
        return of_node(node, internal=self._flags.report_node_internal_ip_address) if node is not None else ""

    async def _get(self, path: str, form: type[Form]) -> Form | None:
        try:
            return msgspec.json.decode(await self._api.request("GET", path), type=form)
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
            return None
