"""The demo's manifests: a copy of `examples/` that may be edited, and a certificate for its hosts."""

from __future__ import annotations

import base64
import datetime
import shutil
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from services.cli.errors import Stop
from services.cli.state import StateDirectory
from services.shared.files import write_atomically

HOSTS = ("shop.example.com", "grpc.example.com")


def examples() -> Path:
    """Shipped inside the package; in a checkout beside it."""
    for place in (Path(__file__).with_name("examples"), Path(__file__).parents[3] / "examples"):
        if place.is_dir():
            return place
    raise Stop("the example manifests are not installed")


def write_demo(state: StateDirectory) -> Path:
    """`STATE/demo`: made anew from the examples; the certificate of last time is kept."""
    directory = state.demo
    directory.mkdir(parents=True, exist_ok=True)
    for source in examples().glob("*.yaml"):
        shutil.copyfile(source, directory / source.name)
    secret = directory / "90-shop-tls.json"
    if not secret.exists():
        write_atomically(secret, _secret(), mode=0o600)
    return directory


def _secret() -> bytes:
    certificate, key = _certificate()
    data = {"tls.crt": base64.b64encode(certificate).decode(), "tls.key": base64.b64encode(key).decode()}
    manifest = {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": "shop-tls", "namespace": "shop"},
        "data": data,
    }
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def _certificate() -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Sluice demo")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=825))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(h) for h in HOSTS]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(pem), private
