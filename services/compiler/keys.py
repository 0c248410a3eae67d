"""Sealing keys: those that the watcher's Secrets are opened with, those of the group, and who of the group's nodes gets them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Final

import msgspec

from services.shared.bus.port import Bus, BusError, CaughtUp
from services.shared.contracts.identity import Identity, NodeKeys, decode_identity, decode_node_keys
from services.shared.contracts.subjects import IDENTITIES_BUCKET, KEYS_BUCKET, REVOKED_BUCKET, keys_key, token
from services.shared.sealing import boxes
from services.shared.sealing.keyfile import KeyFile
from services.shared.sealing.ring import KeyRing, encode_keys, group_ring
from services.shared.telemetry.logs import get_logger

log = get_logger(__name__)

LOOK_SECONDS: Final = 1.0
"""Between two looks at the key file."""
CHECK_SECONDS: Final = 30.0
"""Between two comparisons of what the nodes have with what they should: the bus may have lost it."""


class Keys:
    """Of one compiler. `cluster` and `group` follow the key file."""

    def __init__(self, bus: Bus, group: str, directory: Path) -> None:
        """Raises BadKeyFile."""
        self._bus = bus
        self._group = group
        self._file = KeyFile(directory)
        self.cluster = self._file.ring
        self.group = KeyRing()
        self._derive()
        self._identities: dict[str, Identity] = {}
        self._revoked: set[str] = set()
        self._known = 0
        """How many of the two buckets have been read once."""
        self._wake = asyncio.Event()

    def _derive(self) -> None:
        self.group.replace(group_ring(self.cluster, self._group).keys)

    async def follow_file(self, opens: Callable[[], None], seals: Callable[[], None]) -> None:
        """Take up new keys. `opens` is called when other keys open, `seals` when another one seals."""
        sealing = self.cluster.current
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self._file.refresh():
                self._derive()
                log.info("sealing keys", keys=" ".join(self.cluster.ids))
                self._wake.set()
                opens()
            if self.cluster.current != sealing:
                sealing = self.cluster.current
                log.info("another sealing key", seals=sealing)
                seals()

    # --- which nodes get them

    def handing_out(self) -> tuple[Coroutine[None, None, None], ...]:
        """What runs for ever, so that each node has the keys that it should."""
        return self._follow_identities(), self._follow_revocations(), self._hand_out_for_ever()

    async def _follow_identities(self) -> None:
        async for entry in self._bus.watch(IDENTITIES_BUCKET):
            if isinstance(entry, CaughtUp):
                self._known |= 1
            elif entry.value is None:
                self._identities.pop(entry.key, None)
            else:
                self._note_identity(entry.key, entry.value)
            self._wake.set()

    def _note_identity(self, key: str, value: bytes) -> None:
        self._identities.pop(key, None)
        try:
            identity = decode_identity(value)
        except (msgspec.DecodeError, RecursionError) as error:
            log.error("an identity could not be read", key=key, error=error)
            return
        if token(identity.node) != key or len(identity.public) != boxes.PUBLIC_BYTES:
            log.error("an identity is not what its key says", key=key, node=identity.node)
        elif identity.group == self._group:
            self._identities[key] = identity

    async def _follow_revocations(self) -> None:
        async for entry in self._bus.watch(REVOKED_BUCKET):
            if isinstance(entry, CaughtUp):
                self._known |= 2
            elif entry.value is None:
                self._revoked.discard(entry.key)
            else:
                self._revoked.add(entry.key)
            self._wake.set()

    async def _hand_out_for_ever(self) -> None:
        """Keep the keys bucket right: nodes of this group that are not revoked, each with the group's present keys."""
        while True:
            try:
                async with asyncio.timeout(CHECK_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            if self._known != 3:
                continue  # a node that was revoked must not get keys because that is not known yet
            try:
                await self._hand_out()
            except BusError as error:
                log.warning("keys could not be handed out yet", error=error)
                await asyncio.sleep(LOOK_SECONDS)
                self._wake.set()

    async def _hand_out(self) -> None:
        stored = await self._bus.entries(KEYS_BUCKET)
        wanted = {keys_key(self._group, i.node): i for key, i in self._identities.items() if key not in self._revoked}
        for key in stored.keys() - wanted.keys():
            if key.startswith(f"{token(self._group)}."):
                await self._bus.delete(KEYS_BUCKET, key)
                log.warning("a node gets no keys any more", key=key)
        for key, identity in wanted.items():
            if not self._has(stored.get(key), identity):
                content = NodeKeys(
                    public=identity.public,
                    ids=self.group.ids,
                    box=boxes.close(encode_keys(self.group.keys), identity.public),
                )
                await self._bus.put(KEYS_BUCKET, key, msgspec.json.encode(content))
                log.info("keys for a node", node=identity.node, keys=" ".join(self.group.ids))

    def _has(self, value: bytes | None, identity: Identity) -> bool:
        try:
            found = decode_node_keys(value) if value is not None else None
        except (msgspec.DecodeError, RecursionError):
            return False
        return found is not None and found.public == identity.public and found.ids == self.group.ids
