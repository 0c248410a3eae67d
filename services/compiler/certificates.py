"""Certificates of Secrets: parsed, matched with their key, and asked for which hosts they are valid.

Bad material is a value with a reason.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from msgspec import Struct

from services.shared.contracts.objects import Secret

MAX_CHAIN = 10
MAX_BYTES = 128 * 1024


class Certificate(Struct, frozen=True, kw_only=True):
    """A usable certificate with its key."""

    digest: str
    """sha256 of chain and key."""
    chain: str
    key: str
    names: tuple[str, ...]
    """DNS names of the SAN, lower case; the common name where there is no SAN."""
    not_after: float
    """Unix seconds."""

    def valid_for(self, host: str) -> bool:
        """Exact, or a wildcard of one label."""
        parent = "*." + host.partition(".")[2]
        return host.lower() in self.names or parent.lower() in self.names

    def __repr__(self) -> str:
        return f"Certificate({self.digest[:12]}, names={self.names})"


def certificate_of(secret: Secret) -> Certificate | str:
    """The certificate of a Secret (`tls.crt`, `tls.key`), or what is wrong with it."""
    chain, key = secret.data.get("tls.crt"), secret.data.get("tls.key")
    if not chain or not key:
        return "has no tls.crt and tls.key"
    return _load(chain, key)


@lru_cache(maxsize=100_000)
def _load(chain: bytes, key: bytes) -> Certificate | str:
    if len(chain) > MAX_BYTES or len(key) > MAX_BYTES:
        return f"has more than {MAX_BYTES} bytes"
    try:
        certificates = x509.load_pem_x509_certificates(chain)
    except ValueError:
        return "tls.crt does not begin with a PEM certificate"
    if len(certificates) > MAX_CHAIN:
        return f"tls.crt has more than {MAX_CHAIN} certificates"
    try:
        private = serialization.load_pem_private_key(key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return "tls.key is not an unencrypted PEM private key"
    leaf = certificates[0]
    if private.public_key() != leaf.public_key():
        return "tls.key does not belong to the first certificate of tls.crt"
    weak = _weak(private)
    if weak:
        return weak
    pem = "".join(c.public_bytes(serialization.Encoding.PEM).decode() for c in certificates)
    return Certificate(
        digest=hashlib.sha256(pem.encode() + b"\0" + key).hexdigest(),
        chain=pem,
        key=key.decode(),
        names=_names(leaf),
        not_after=leaf.not_valid_after_utc.timestamp(),
    )


def _weak(private: object) -> str:
    if isinstance(private, rsa.RSAPrivateKey):
        return "" if 2048 <= private.key_size <= 8192 else "tls.key is RSA of fewer than 2048 or more than 8192 bits"
    if isinstance(private, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
        return ""
    return "tls.key is neither RSA nor an elliptic curve key"


def _names(leaf: x509.Certificate) -> tuple[str, ...]:
    try:
        san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return tuple(n.lower() for n in san.get_values_for_type(x509.DNSName))
    except (x509.ExtensionNotFound, ValueError):
        return tuple(str(a.value).lower() for a in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME))
