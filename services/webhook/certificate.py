"""The webhook's certificate: made where there is none, loaded, and loaded again when it changes."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec import Struct

from services.shared.files import write_atomically
from services.shared.telemetry.logs import get_logger

log = get_logger(__name__)

VALID_DAYS: Final = 3650
CLOCK_DAYS: Final = 1
"""It is valid so long already when it is made: who checks it may have a clock that is behind."""
RENEW_BEFORE_DAYS: Final = 30
ALARM_BEFORE_DAYS: Final = 7


class CertificatePaths(Struct, frozen=True, kw_only=True):
    """PEM files."""

    ca: Path
    """What clients trust."""
    certificate: Path
    key: Path


class Material(Struct, frozen=True, kw_only=True):
    """PEM. The CA's key was thrown away after signing."""

    ca: bytes
    certificate: bytes
    key: bytes


def generate(hosts: Sequence[str], *, valid_days: int = VALID_DAYS, traditional_key: bool = False, client: bool = False) -> Material:
    """A certificate for DNS names and addresses, under a CA of its own. `traditional_key`: SEC1 (`EC PRIVATE KEY`) instead of PKCS 8.

    `client`: it is good for clients as well.
    """
    now = datetime.now(UTC)
    begin, end = now - timedelta(days=CLOCK_DAYS), now + timedelta(days=valid_days)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "sluice webhook CA")])
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "sluice webhook")])
    uses = [ExtendedKeyUsageOID.SERVER_AUTH, *([ExtendedKeyUsageOID.CLIENT_AUTH] if client else [])]
    ca = (
        _builder(ca_name, ca_name, ca_key.public_key(), begin, end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    certificate = (
        _builder(name, ca_name, key.public_key(), begin, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(x509.SubjectAlternativeName([_alternative(host) for host in hosts]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    form = serialization.PrivateFormat.TraditionalOpenSSL if traditional_key else serialization.PrivateFormat.PKCS8
    return Material(
        ca=ca.public_bytes(pem),
        certificate=certificate.public_bytes(pem),
        key=key.private_bytes(pem, form, serialization.NoEncryption()),
    )


def make_certificate(directory: Path, hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "::1")) -> CertificatePaths:
    """A certificate for `hosts` under a CA of its own, whose key is thrown away; what is there and still good is kept."""
    paths = CertificatePaths(ca=directory / "ca.crt", certificate=directory / "tls.crt", key=directory / "tls.key")
    if _still_good(paths, hosts):
        return paths
    directory.mkdir(parents=True, exist_ok=True)
    material = generate(hosts)
    write_atomically(paths.key, material.key, mode=0o600)
    write_atomically(paths.certificate, material.certificate, mode=0o600)
    write_atomically(paths.ca, material.ca, mode=0o600)
    return paths


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, begin: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=not sign_certificates,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _still_good(paths: CertificatePaths, hosts: tuple[str, ...]) -> bool:
    try:
        material = Material(ca=paths.ca.read_bytes(), certificate=paths.certificate.read_bytes(), key=paths.key.read_bytes())
    except OSError:
        return False
    return is_good(material, hosts)


def is_good(material: Material, hosts: Sequence[str]) -> bool:
    """Whether it fits together, names all these hosts, and is valid for a while."""
    try:
        certificate = x509.load_pem_x509_certificate(material.certificate)
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(material.ca))
        named = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        key = serialization.load_pem_private_key(material.key, password=None)
        fits = key.public_key() == certificate.public_key()
    except Exception:  # noqa: BLE001 - whatever is wrong with it, it is made anew
        return False
    enough_left = certificate.not_valid_after_utc > datetime.now(UTC) + timedelta(days=RENEW_BEFORE_DAYS)
    return fits and enough_left and all(_alternative(host) in named for host in hosts)


# --- use


def server_context(certificate: Path, key: Path, client_ca: Path | None = None) -> ssl.SSLContext:
    """TLS 1.2 or newer, HTTP/1.1 only; with `client_ca`, clients must show a certificate. Raises OSError (ssl.SSLError is one)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(certificate, key)
    if client_ca is not None:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class Reloader:
    """Keeps a context's certificate as the files have it. A pair that does not fit together is left alone until it does."""

    def __init__(self, context: ssl.SSLContext, certificate: Path, key: Path) -> None:
        self._context = context
        self._certificate = certificate
        self._key = key
        self._seen = self._signature()
        self.expires_at = _expiry(certificate)
        """Unix seconds."""

    async def run(self, every_seconds: float) -> None:
        while True:
            await asyncio.sleep(every_seconds)
            self.check()

    def check(self) -> bool:
        """Load what has changed; True: it has."""
        signature = self._signature()
        if signature == self._seen:
            return False
        try:
            server_context(self._certificate, self._key)  # a trial first: a context half changed would serve nobody
            self._context.load_cert_chain(self._certificate, self._key)
        except (OSError, ValueError) as error:
            log.error("the new certificate cannot be used, the old one stays", certificate=self._certificate, error=error)
            return False
        self._seen = signature
        self.expires_at = _expiry(self._certificate)
        log.info("certificate loaded again", certificate=self._certificate)
        return True

    def warn_if_expiring(self) -> None:
        left_days = (self.expires_at - datetime.now(UTC).timestamp()) / 86_400
        if left_days < ALARM_BEFORE_DAYS:
            log.error("the webhook's certificate expires soon", days_left=round(left_days, 1), certificate=self._certificate)

    def _signature(self) -> tuple[tuple[int, int, int], ...] | None:
        with contextlib.suppress(OSError):
            found = [path.stat() for path in (self._certificate, self._key)]
            return tuple((f.st_mtime_ns, f.st_ino, f.st_size) for f in found)
        return None


def _expiry(certificate: Path) -> float:
    return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc.timestamp()
