"""An `Api` in memory, for what writes single objects: create, replace, merge patch, and errors when a test wants them."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from services.shared.kube.client import ApiError

Fail = Callable[[str, str], Exception | None]
"""(method, path) -> what is raised instead of an answer."""


class FakeApi:
    """Objects by path. `resourceVersion` grows by each write that changes something, and PUT compares it."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, str, Any]] = []
        """(method, path, body)."""
        self.fail: Fail = lambda method, path: None
        self.slow: asyncio.Event | None = None
        """Where set, each request waits for it."""
        self.running = 0
        self.most_running = 0
        self._version = 0

    def put(self, path: str, obj: dict[str, Any]) -> None:
        self._version += 1
        made = copy.deepcopy(obj)
        made.setdefault("metadata", {})["resourceVersion"] = str(self._version)
        self.objects[path] = made

    def writes(self, method: str = "PATCH") -> list[tuple[str, Any]]:
        return [(path, body) for m, path, body in self.requests if m == method]

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
        timeout: float = 0.0,
    ) -> bytes:
        self.requests.append((method, path, body))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await (self.slow.wait() if self.slow is not None else asyncio.sleep(0))
            error = self.fail(method, path)
            if error is not None:
                raise error
            return msgspec.json.encode(self._answer(method, path, copy.deepcopy(body), content_type))
        finally:
            self.running -= 1

    def _answer(self, method: str, path: str, body: Any, content_type: str) -> Any:
        if method == "POST":
            path = f"{path}/{body['metadata']['name']}"
            if path in self.objects:
                raise ApiError(409, "AlreadyExists", "it is there")
            self.put(path, body)
            return self.objects[path]
        path = path.removesuffix("/status")
        found = self.objects.get(path)
        if method == "GET" and found is None and path.endswith(("/ingresses", "/events")):
            return {"metadata": {}, "items": [o for p, o in self.objects.items() if _below(p, path)]}
        if found is None:
            raise ApiError(404, "NotFound", "it is not there")
        if method == "PUT":
            if body["metadata"].get("resourceVersion") != found["metadata"]["resourceVersion"]:
                raise ApiError(409, "Conflict", "it was changed")
            self.put(path, body)
        elif method == "PATCH":
            assert content_type == "application/merge-patch+json"
            merged = _merge(found, body)
            if merged != found:
                self.put(path, merged)
        return self.objects[path]


def _below(path: str, collection: str) -> bool:
    base, _, plural = collection.rpartition("/")
    return path.startswith(base) and path.split("/")[-2] == plural


def _merge(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    out = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            out.pop(name, None)
        else:
            out[name] = _merge(out.get(name), value)
    return out
