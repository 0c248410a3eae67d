"""What is sealed: the data of Secrets on their way to the compiler, and the rows with keys and passwords on their way to nodes."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from services.shared.contracts.delta import Delta
from services.shared.contracts.objects import Secret
from services.shared.sealing.ring import CannotOpen, KeyRing

SECRET_ROWS = ("c/", "f/")
"""Keys of rows that are sealed: certificates with their private keys, files with passwords."""

_SEALED = ""
"""The one key in a sealed Secret's data; Kubernetes allows no empty key."""
_ROW = b'{"sealed":'


class _SealedRow(msgspec.Struct, frozen=True):
    sealed: bytes


def seal_delta(delta: Delta, ring: KeyRing) -> Delta:
    """Raises CannotSeal."""
    secret = delta.object
    if not isinstance(secret, Secret):
        return delta
    sealed = ring.seal(_purpose(delta), msgspec.json.encode(secret.data, order="deterministic"))
    return replace(delta, object=replace(secret, data={_SEALED: sealed}))


def open_delta(delta: Delta, ring: KeyRing) -> Delta:
    """Raises CannotOpen. A Secret that arrives in clear is refused: nobody publishes one."""
    secret = delta.object
    if not isinstance(secret, Secret):
        return delta
    if set(secret.data) != {_SEALED}:
        raise CannotOpen("a Secret arrived unsealed")
    data = msgspec.json.decode(ring.open(_purpose(delta), secret.data[_SEALED]), type=dict[str, bytes])
    return replace(delta, object=replace(secret, data=data))


def _purpose(delta: Delta) -> str:
    return f"secret {delta.namespace}/{delta.name}"


def is_secret(key: str) -> bool:
    """Whether the row of this key is sealed on the bus."""
    return key.startswith(SECRET_ROWS)


def seal_row(key: str, row: bytes, ring: KeyRing) -> bytes:
    """The row as it travels. Raises CannotSeal."""
    return msgspec.json.encode(_SealedRow(ring.seal(f"row {key}", row))) if is_secret(key) else row


def open_row(key: str, row: bytes, ring: KeyRing | None) -> bytes:
    """The row as it is. Without a ring a sealed row stays so (for readers that only compare). Raises CannotOpen."""
    if ring is None or not is_secret(key):
        return row
    try:
        sealed = msgspec.json.decode(row, type=_SealedRow).sealed
    except msgspec.DecodeError:
        raise CannotOpen(f"row {key[:12]} arrived unsealed") from None
    return ring.open(f"row {key}", sealed)
