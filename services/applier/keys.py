"""The node's identity, and the sealing keys of its group that it is sent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from services.shared.bus.port import Bus, BusError, Message
from services.shared.contracts.identity import Identity, decode_node_keys
from services.shared.contracts.subjects import IDENTITIES_BUCKET, KEYS_BUCKET, bucket_subject, keys_key, token
from services.shared.files import write_atomically
from services.shared.sealing import boxes
from services.shared.sealing.ring import CannotOpen, KeyRing, decode_keys
from services.shared.telemetry.logs import get_logger

log = get_logger(__name__)

FILE: Final = "identity.key"
INTRODUCE_SECONDS: Final = 60.0
"""Between two introductions: the bus may have lost the last one."""
RETRY_SECONDS: Final = 0.5


def private_key(directory: Path) -> X25519PrivateKey:
    """The node's own, made at its first start. A file that holds none is replaced: the compiler sends keys for the new one."""
    path = directory / FILE
    with contextlib.suppress(OSError, ValueError):
        return X25519PrivateKey.from_private_bytes(path.read_bytes())
    made = X25519PrivateKey.generate()
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(path, made.private_bytes_raw(), mode=0o600)
    return made


class Keys:
    """Fills `ring`; `changed` is called when it did."""

    def __init__(self, bus: Bus, node: str, group: str, directory: Path, ring: KeyRing, changed: Callable[[], None]) -> None:
        self._bus = bus
        self._node = node
        self._group = group
        self._private = private_key(directory)
        self._ring = ring
        self._changed = changed

    async def introduce(self) -> None:
        """Say who this node is, again and again."""
        public = self._private.public_key().public_bytes_raw()
        identity = msgspec.json.encode(Identity(node=self._node, group=self._group, public=public))
        while True:
            try:
                await self._bus.put(IDENTITIES_BUCKET, token(self._node), identity)
                await asyncio.sleep(INTRODUCE_SECONDS)
            except BusError as error:
                log.debug("not introduced yet", error=error)
                await asyncio.sleep(RETRY_SECONDS)

    async def receive(self) -> None:
        subject = bucket_subject(KEYS_BUCKET, keys_key(self._group, self._node))
        async with contextlib.aclosing(self._bus.follow(f"KV_{KEYS_BUCKET}", subject, last_only=True)) as items:
            async for item in items:
                if isinstance(item, Message):
                    self._take(item)

    def _take(self, message: Message) -> None:
        if not message.payload:
            log.warning("this node gets no sealing keys any more")  # what it has it has: revoking is followed by a rotation
            return
        try:
            found = decode_node_keys(message.payload)
            self._ring.replace(decode_keys(boxes.open(found.box, self._private)))
        except (msgspec.DecodeError, ValueError, RecursionError, CannotOpen) as error:
            log.error("the sealing keys cannot be used", error=error)
            return
        log.info("sealing keys", keys=" ".join(self._ring.ids))
        self._changed()
