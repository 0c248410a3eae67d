"""A ring of keys, closed for one reader: X25519 with a key made for this box alone, HKDF-SHA256, AES-256-GCM."""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from services.shared.sealing.ring import CannotOpen

PUBLIC_BYTES: Final = 32
_NONCE: Final = bytes(12)
"""A constant: each key encrypts once."""


def close(content: bytes, reader: bytes) -> bytes:
    """`reader`: 32 bytes of a public key. Raises ValueError for what is none."""
    ephemeral = X25519PrivateKey.generate()
    public = ephemeral.public_key().public_bytes_raw()
    shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(reader))
    return public + AESGCM(_key(shared, public, reader)).encrypt(_NONCE, content, None)


def open(box: bytes, private: X25519PrivateKey) -> bytes:
    """Raises CannotOpen."""
    public = box[:PUBLIC_BYTES]
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(public))
        return AESGCM(_key(shared, public, private.public_key().public_bytes_raw())).decrypt(_NONCE, box[PUBLIC_BYTES:], None)
    except (InvalidTag, ValueError):
        raise CannotOpen("the box is not for this key") from None


def _key(shared: bytes, ephemeral: bytes, reader: bytes) -> bytes:
    return HKDF(hashes.SHA256(), 32, None, b"sluice box v1" + ephemeral + reader).derive(shared)
