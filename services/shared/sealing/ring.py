"""Symmetric keys, newest last in use, and what is sealed with them.

AES-SIV (RFC 5297): the same text sealed again with the same key is the same bytes, so versions stay a function of their content, and blobs
are shared between versions. What it gives away is only whether two sealed texts are equal. The purpose (which row, which Secret) is
authenticated: a sealed text cannot be moved to another place.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterable
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from msgspec import Struct

KEY_BYTES: Final = 64
ID_BYTES: Final = 8
KEPT: Final = 2
"""Keys in a ring after a rotation: the newest and the one before, which opens what is not sealed anew yet."""


class CannotOpen(Exception):
    """No key for it here, or not what was sealed for this purpose. The message never contains what is sealed."""


class CannotSeal(Exception):
    """There is no key yet."""


class SealKey(Struct, frozen=True, kw_only=True):
    """One key. It opens at once and seals from `since` on: everybody has it by then."""

    secret: bytes
    """64 bytes."""
    since: float
    """Unix seconds."""

    @property
    def id(self) -> bytes:
        return hashlib.sha256(b"sluice seal key id\0" + self.secret).digest()[:ID_BYTES]

    def __repr__(self) -> str:
        return f"SealKey({self.id.hex()})"


class KeyRing:
    """Keys that may be replaced while the ring is in use."""

    def __init__(self, keys: Iterable[SealKey] = ()) -> None:
        self._keys: dict[bytes, SealKey] = {}
        self._ciphers: dict[bytes, AESSIV] = {}
        self.replace(keys)

    def replace(self, keys: Iterable[SealKey]) -> None:
        self._keys = {k.id: k for k in keys}
        self._ciphers = {k.id: AESSIV(k.secret) for k in self._keys.values()}

    @property
    def keys(self) -> tuple[SealKey, ...]:
        """By `since`."""
        return tuple(sorted(self._keys.values(), key=lambda k: (k.since, k.id)))

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(k.id.hex() for k in self.keys)

    @property
    def current(self) -> str:
        """The id of the key that seals now; empty: none."""
        key = self._current()
        return key.id.hex() if key else ""

    def _current(self) -> SealKey | None:
        now = time.time()
        due = [k for k in self.keys if k.since <= now]
        return due[-1] if due else next(iter(self.keys), None)

    def seal(self, purpose: str, text: bytes) -> bytes:
        """Raises CannotSeal."""
        key = self._current()
        if key is None:
            raise CannotSeal("there is no sealing key here yet")
        return key.id + self._ciphers[key.id].encrypt(text, [purpose.encode()])

    def open(self, purpose: str, sealed: bytes) -> bytes:
        """Raises CannotOpen."""
        id = sealed[:ID_BYTES]
        cipher = self._ciphers.get(id)
        if cipher is None:
            raise CannotOpen(f"it is sealed with key {id.hex()}, which is not here (here: {' '.join(self.ids) or 'none'})")
        try:
            return cipher.decrypt(sealed[ID_BYTES:], [purpose.encode()])
        except (InvalidTag, ValueError):
            raise CannotOpen("it is not what was sealed for this place") from None

    def derive(self, label: str) -> KeyRing:
        """Keys for one purpose, from which these cannot be had."""
        return KeyRing(
            SealKey(secret=HKDF(hashes.SHA256(), KEY_BYTES, None, f"sluice {label}".encode()).derive(k.secret), since=k.since)
            for k in self.keys
        )

    def __repr__(self) -> str:
        return f"KeyRing({' '.join(self.ids)})"


def new_key(since: float) -> SealKey:
    return SealKey(secret=secrets.token_bytes(KEY_BYTES), since=since)


def rotated(keys: Iterable[SealKey], since: float) -> tuple[SealKey, ...]:
    """With a new key, which seals from `since` on; of the others only the newest stay."""
    kept = sorted(keys, key=lambda k: (k.since, k.id))[-(KEPT - 1) :]
    return (*kept, new_key(since))


def group_ring(ring: KeyRing, group: str) -> KeyRing:
    """The keys of one group of nodes."""
    return ring.derive(f"group {group}")


def encode_keys(keys: Iterable[SealKey]) -> bytes:
    return msgspec.json.encode(list(keys))


def decode_keys(data: bytes) -> tuple[SealKey, ...]:
    """Raises msgspec.DecodeError, ValueError."""
    keys = msgspec.json.decode(data, type=tuple[SealKey, ...])
    if any(len(k.secret) != KEY_BYTES for k in keys):
        raise ValueError(f"a sealing key has {KEY_BYTES} bytes")
    return keys
