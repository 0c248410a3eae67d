"""An API server of ours on real HTTP, which does what it is told: lists in pages, watches with history, Leases, and every way of failing.

It holds objects under one counter of resourceVersions, as etcd does. `ways` says how the next requests for a kind go wrong.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from services.shared.contracts.objects import Key
from services.watcher.normalize import CLUSTER_SCOPED

PLURALS: Final = {
    "namespaces": "Namespace",
    "ingressclasses": "IngressClass",
    "configmaps": "ConfigMap",
    "secrets": "Secret",
    "services": "Service",
    "endpointslices": "EndpointSlice",
    "ingresses": "Ingress",
    "leases": "Lease",
}

Object = dict[str, Any]
Way = Callable[["FakeKube", web.Request], Awaitable[web.StreamResponse | None]]
"""Answers a request instead of the server; None: it has done its mischief, the server answers."""


class Event:
    """One line of history."""

    def __init__(self, version: int, key: Key, type_: str, obj: Object) -> None:
        self.version, self.key, self.type, self.object = version, key, type_, obj

    @property
    def line(self) -> bytes:
        return json.dumps({"type": self.type, "object": self.object}).encode() + b"\n"


class FakeKube:
    """Use as an async context manager."""

    def __init__(self) -> None:
        self.version = 100
        self.objects: dict[Key, Object] = {}
        self.history: list[Event] = []
        self.compacted = 0
        """Watches and pages from before this resourceVersion get 410."""
        self.page = 500
        """At most so many items in a page, whatever the client asks for."""
        self.list_ways: dict[str, deque[Way]] = defaultdict(deque)
        self.watch_ways: dict[str, deque[Way]] = defaultdict(deque)
        self.lease_ways: deque[Way] = deque()
        self.lists: dict[str, int] = defaultdict(int)
        """Lists begun, by kind; not those of metadata only."""
        self.watches: dict[str, int] = defaultdict(int)
        self._snapshots: dict[str, list[Object]] = {}
        self._round = 0
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def __aenter__(self) -> FakeKube:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._runner is not None
        self._ended.set()
        self._changed.set()
        await self._runner.cleanup()

    def kubeconfig(self, directory: Path) -> Path:
        path = directory / "fake.kubeconfig"
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
            "users": [{"name": "fake", "user": {"token": "x"}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
            "current-context": "fake",
        }
        path.write_text(json.dumps(content))
        return path

    # --- the cluster

    def put(self, manifest: Object) -> Key:
        """Create or replace an object; a new one gets a new uid."""
        obj = copy.deepcopy(manifest)
        kind, metadata = obj.pop("kind"), obj["metadata"]
        obj.pop("apiVersion", None)
        namespace = "" if kind in CLUSTER_SCOPED else metadata.setdefault("namespace", "default")
        key = Key(kind, namespace, metadata["name"])
        before = self.objects.get(key)
        self.version += 1
        metadata["resourceVersion"] = str(self.version)
        metadata["uid"] = before["metadata"]["uid"] if before else f"uid-{self.version}"
        metadata["creationTimestamp"] = "2026-01-01T00:00:00Z"
        self.objects[key] = obj
        self._record(Event(self.version, key, "MODIFIED" if before else "ADDED", obj))
        return key

    def delete(self, key: Key) -> None:
        obj = copy.deepcopy(self.objects.pop(key))
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)
        self._record(Event(self.version, key, "DELETED", obj))

    def compact(self) -> None:
        """Forget all history, and the snapshots of lists that are under way."""
        self.compacted = self.version
        self.history.clear()
        self._snapshots.clear()

    def restart_watches(self) -> None:
        """All running watches end cleanly, as when their time is over."""
        self._round += 1
        self._wake()

    def _record(self, event: Event) -> None:
        self.history.append(event)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # --- requests

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        parts = request.path.strip("/").split("/")
        namespace = parts[parts.index("namespaces") + 1] if "namespaces" in parts[:-1] else ""
        plural = next(p for p in reversed(parts) if p in PLURALS)
        kind = PLURALS[plural]
        if kind == "Lease":
            return await self._lease(request, Key(kind, namespace, parts[-1] if parts[-1] != plural else ""))
        watching = "watch" in request.query
        metadata_only = "PartialObjectMetadata" in request.headers.get("Accept", "")
        if watching:
            self.watches[kind] += 1
        elif not metadata_only and "continue" not in request.query:
            self.lists[kind] += 1
        ways = self.watch_ways[kind] if watching else self.list_ways[kind]
        if ways and not metadata_only:
            answered = await ways.popleft()(self, request)
            if answered is not None:
                return answered
        return await self._watch(request, kind, namespace) if watching else self._list(request, kind, namespace)

    def _matching(self, request: web.Request, kind: str, namespace: str) -> Callable[[Key], bool]:
        name = request.query.get("fieldSelector", "").removeprefix("metadata.name=")
        return lambda key: key.kind == kind and namespace in ("", key.namespace) and name in ("", key.name)

    def _list(self, request: web.Request, kind: str, namespace: str) -> web.Response:
        token = request.query.get("continue")
        if token is None:
            wanted = self._matching(request, kind, namespace)
            items = [self.objects[key] for key in sorted(self.objects) if wanted(key)]
            version = str(self.version)
        else:
            version = token.split("/")[0]
            if token not in self._snapshots:
                return status(410, "Expired", "the continue token is too old")
            items = self._snapshots.pop(token)
        limit = min(self.page, int(request.query.get("limit", "500")))
        page, rest = items[:limit], items[limit:]
        following = ""
        if rest:
            following = f"{version}/{len(self._snapshots)}/{kind}/{len(rest)}"
            self._snapshots[following] = rest
        return web.json_response({"metadata": {"resourceVersion": version, "continue": following}, "items": page})

    async def begin_watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        return response

    async def _watch(self, request: web.Request, kind: str, namespace: str) -> web.StreamResponse:
        since = int(request.query["resourceVersion"])
        response = await self.begin_watch(request)
        if since < self.compacted:
            await response.write(error_event(410, "Expired"))
            return response
        wanted, current = self._matching(request, kind, namespace), self._round
        try:
            while not self._ended.is_set() and current == self._round:
                changed = self._changed
                if since < self.compacted:  # history that it still had to send is gone
                    await response.write(error_event(410, "Expired"))
                    break
                for event in [e for e in self.history if e.version > since]:
                    if wanted(event.key):
                        await response.write(event.line)
                    since = event.version
                await changed.wait()
        except ConnectionError:
            pass
        return response

    # --- Leases

    async def _lease(self, request: web.Request, key: Key) -> web.StreamResponse:
        if self.lease_ways and (answered := await self.lease_ways.popleft()(self, request)) is not None:
            return answered
        if request.method == "GET":
            return web.json_response(self.objects[key]) if key in self.objects else status(404, "NotFound", "no such Lease")
        body = await request.json()
        key = Key("Lease", key.namespace, body["metadata"]["name"])
        now = self.objects.get(key)
        if request.method == "POST" and now is not None:
            return status(409, "AlreadyExists", "it is there")
        if request.method == "PUT" and (now is None or body["metadata"]["resourceVersion"] != now["metadata"]["resourceVersion"]):
            return status(409, "Conflict", "it was changed")
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        self.objects[key] = body
        return web.json_response(body)


def status(code: int, reason: str, message: str, *, retry_after: str = "") -> web.Response:
    headers = {"Retry-After": retry_after} if retry_after else {}
    body = {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}
    return web.json_response(body, status=code, headers=headers)


def error_event(code: int, reason: str) -> bytes:
    return json.dumps({"type": "ERROR", "object": {"kind": "Status", "code": code, "reason": reason, "message": reason}}).encode() + b"\n"
