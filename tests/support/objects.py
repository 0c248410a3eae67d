"""Manifests as text for system tests."""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PREFIX = "nginx.ingress.kubernetes.io/"


def many(*objects: Mapping[str, Any]) -> str:
    """Several objects as one YAML file (JSON documents are YAML)."""
    return "\n---\n".join(json.dumps(o) for o in objects) + "\n"


def service(name: str, ports: Sequence[int], namespace: str = "default") -> list[dict[str, Any]]:
    """A Service on port 80, and one slice with an endpoint on 127.0.0.1 for each of `ports`: a slice a port."""
    meta = {"name": name, "namespace": namespace}
    out: list[dict[str, Any]] = [{"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": [{"port": 80}]}}]
    for port in ports:
        out.append(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {"name": f"{name}-{port}", "namespace": namespace, "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4",
                "endpoints": [{"addresses": ["127.0.0.1"]}],
                "ports": [{"port": port}],
            }
        )
    return out


def ingress(
    name: str,
    rules: Mapping[str, Mapping[str, str]],
    *,
    annotations: Mapping[str, str] | None = None,
    tls: Mapping[str, Sequence[str]] | None = None,
    namespace: str = "default",
) -> dict[str, Any]:
    """`rules`: host -> {path: service}, all Prefix and port 80; `tls`: Secret -> hosts."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {"name": name, "namespace": namespace, "annotations": {PREFIX + k: v for k, v in (annotations or {}).items()}},
        "spec": {
            "ingressClassName": "nginx",
            "tls": [{"secretName": s, "hosts": list(h)} for s, h in (tls or {}).items()],
            "rules": [
                {
                    "host": host,
                    "http": {
                        "paths": [
                            {"path": p, "pathType": "Prefix", "backend": {"service": {"name": s, "port": {"number": 80}}}}
                            for p, s in paths.items()
                        ]
                    },
                }
                for host, paths in rules.items()
            ],
        },
    }


def rule(host: str, path: str, kind: str, to: str) -> dict[str, Any]:
    """One rule with one path of the given pathType."""
    backend = {"service": {"name": to, "port": {"number": 80}}}
    return {"host": host, "http": {"paths": [{"path": path, "pathType": kind, "backend": backend}]}}


def typed(name: str, *rules: dict[str, Any], annotations: Mapping[str, str] | None = None) -> dict[str, Any]:
    """An Ingress of `rule`s."""
    made = ingress(name, {}, annotations=annotations)
    made["spec"]["rules"] = list(rules)
    return made


def secret(name: str, data: Mapping[str, str], namespace: str = "default") -> dict[str, Any]:
    """A Secret of texts."""
    encoded = {k: base64.b64encode(v.encode()).decode() for k, v in data.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace}, "data": encoded}


def config_map(data: Mapping[str, str], name: str = "ingress-nginx-controller") -> dict[str, Any]:
    """The controller ConfigMap, or another beside it."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "ingress-nginx"},
        "data": dict(data),
    }


def port_service(name: str, addresses: Sequence[tuple[str, int]], protocol: str = "TCP", *, port: int = 5432) -> list[dict[str, Any]]:
    """A Service with the port `main` of a protocol, and a slice with one endpoint for each of `addresses`."""
    meta = {"name": name, "namespace": "default"}
    ports = [{"name": "main", "port": port, "protocol": protocol}]
    slices = [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": f"{name}-{n}", "namespace": "default", "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv6" if ":" in address else "IPv4",
            "endpoints": [{"addresses": [address]}],
            "ports": [{"name": "main", "port": number, "protocol": protocol}],
        }
        for n, (address, number) in enumerate(addresses)
    ]
    return [{"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": ports}}, *slices]


@lru_cache(maxsize=64)
def certificate(*hosts: str, serial: int = 1) -> tuple[str, str]:
    """(certificate, key), PEM, self-signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"test {serial}")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=90))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(h) for h in hosts]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return made.public_bytes(pem).decode(), private.decode()


def tls_secret(name: str, *hosts: str, serial: int = 1, namespace: str = "default") -> dict[str, Any]:
    chain, key = certificate(*hosts, serial=serial)
    data = {"tls.crt": base64.b64encode(chain.encode()).decode(), "tls.key": base64.b64encode(key.encode()).decode()}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": name, "namespace": namespace},
        "data": data,
    }
