"""Events on Ingresses, as `kubectl describe` shows them.

An Event's name is made of its object, its reason and what it is about: the same thing said again only counts, by whichever leader.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from services.shared.kube.client import Api, ApiError, KubeError
from services.shared.telemetry.logs import get_logger
from services.watcher.status.news import Note
from services.watcher.status.ours import OurIngresses
from services.watcher.status.rate import Rate

log = get_logger(__name__)

MESSAGE_CHARACTERS: Final = 1000
"""The API takes 1,024 bytes."""
WAITING: Final = 1000
"""Notes that wait to be written; of more the oldest are dropped."""
GAP_SECONDS: Final = 60.0
"""How far back a new leader says what the one before it may not have come to."""
STALE_SECONDS: Final = 300.0
"""An Event is news: one that could not be written for so long is dropped."""
PER_SECOND: Final = 20
BURST: Final = 40
OBJECT_BURST: Final = 20
OBJECT_SECONDS: Final = 15.0
"""Of one Ingress: so many at once, then one in so many seconds. A tenant's flapping Ingress must not keep others' Events waiting."""
OBJECTS: Final = 4096
RETRY_SECONDS: Final = (0.5, 30.0)
CONFLICT: Final = 409
NOT_FOUND: Final = 404
TOO_MANY: Final = 429
COMPONENT: Final = "sluice"
MERGE: Final = "application/merge-patch+json"


class EventWriter:
    """`say` whether leading or not; `run` while leading."""

    def __init__(self, api: Api, ours: OurIngresses, reporter: str) -> None:
        self._api = api
        self._ours = ours
        self._reporter = reporter
        self._waiting: deque[Note] = deque(maxlen=WAITING)
        self._wake = asyncio.Event()
        self._rate = Rate(PER_SECOND, BURST)
        self._of_objects: OrderedDict[tuple[str, str], Rate] = OrderedDict()

    def say(self, note: Note) -> None:
        """Written soon; not at all if there is too much to say of this object, or none leads."""
        place = (note.namespace, note.name)
        rate = self._of_objects.setdefault(place, Rate(1 / OBJECT_SECONDS, OBJECT_BURST))
        self._of_objects.move_to_end(place)
        if len(self._of_objects) > OBJECTS:
            self._of_objects.popitem(last=False)
        if rate.try_take():
            self._waiting.append(note)
            self._wake.set()

    async def run(self) -> None:
        """For ever; cancelled when leadership ends."""
        began = time.monotonic()
        delay = RETRY_SECONDS[0]
        while True:
            while self._waiting:
                await self._rate.take()
                note = self._waiting.popleft()
                age = time.monotonic() - note.at
                if age > STALE_SECONDS or note.at < began - GAP_SECONDS:
                    continue
                try:
                    await self._write(note, perhaps_said=note.lasting or note.at < began)
                    delay = RETRY_SECONDS[0]
                except KubeError as error:
                    log.warning("an Event could not be written", ingress=f"{note.namespace}/{note.name}", reason=note.reason, error=error)
                    if not isinstance(error, ApiError) or error.status == TOO_MANY or error.status >= 500:
                        self._put_back(note)
                        told = error.retry_after if isinstance(error, ApiError) else 0.0
                        await asyncio.sleep(max(told, delay * random.uniform(0.5, 1.0)))  # noqa: S311 - jitter
                        delay = min(2 * delay, RETRY_SECONDS[1])
            self._wake.clear()
            await self._wake.wait()

    def _put_back(self, note: Note) -> None:
        if len(self._waiting) < WAITING:
            self._waiting.appendleft(note)

    async def _write(self, note: Note, *, perhaps_said: bool) -> None:
        """`perhaps_said`: it is from before this process led; where the Event is there with this message, the former leader wrote it."""
        ingress = self._ours.get(note.namespace, note.name)
        if ingress is None:
            return  # gone, or never ours
        event = _event(note, ingress.metadata.uid, self._reporter)
        path = f"/api/v1/namespaces/{note.namespace}/events"
        try:
            await self._api.request("POST", path, body=event)
        except ApiError as error:
            if error.status != CONFLICT:
                raise
            await self._again(f"{path}/{event['metadata']['name']}", event, _words if note.lasting else str, perhaps_said=perhaps_said)

    async def _again(self, path: str, event: dict[str, Any], meaning: Callable[[str], str], *, perhaps_said: bool) -> None:
        """`meaning`: messages of the same one say the same."""
        try:
            found = msgspec.json.decode(await self._api.request("GET", path))
            if perhaps_said and meaning(found.get("message") or "") == meaning(event["message"]):
                return
            body = {
                "count": (found.get("count") or 1) + 1,
                "message": event["message"],
                "lastTimestamp": event["lastTimestamp"],
                "reportingInstance": self._reporter,
            }
            await self._api.request("PATCH", path, body=body, content_type=MERGE)
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
            # Events expire after an hour: this one did so just now, and what is news will be said again.


def _words(message: str) -> str:
    """Without its numbers: an object's size grows with its resourceVersion."""
    return re.sub("[0-9]+", "0", message)


def _event(note: Note, uid: str, reporter: str) -> dict[str, Any]:
    message = shown(note.message)
    about = "\0".join((uid, note.type, note.reason, note.topic or message))
    digest = hashlib.sha256(about.encode()).hexdigest()[:16]
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    place = {"namespace": note.namespace, "name": note.name}
    return {
        "apiVersion": "v1",
        "kind": "Event",
        # A name may not have `.` or `-` before the dot.
        "metadata": {"name": f"{note.name[:200].rstrip('.-')}.{digest}", "namespace": note.namespace},
        # With the uid: `kubectl describe` looks for it.
        "involvedObject": {"kind": "Ingress", "apiVersion": "networking.k8s.io/v1", "uid": uid, **place},
        "type": note.type,
        "reason": note.reason,
        "message": message,
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": reporter,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }


def shown(message: str) -> str:
    """Printable ASCII alone, bounded: parts of it are tenants' text."""
    escaped = "".join(c if " " <= c <= "~" else c.encode("unicode_escape").decode() for c in message[: MESSAGE_CHARACTERS + 1])
    return escaped if len(escaped) <= MESSAGE_CHARACTERS else escaped[: MESSAGE_CHARACTERS - 3] + "..."
