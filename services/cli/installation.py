"""The Secrets of an installed release (docs/installation.md): what is missing or no longer right is made, everything else stays."""

from __future__ import annotations

import base64
import functools
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from services.shared.natsauth import registrar
from services.shared.natsauth.authority import FILE as AUTHORITY_FILE
from services.shared.natsauth.authority import Authority
from services.shared.natsauth.roles import NEWCOMER, ROLES
from services.shared.sealing.keyfile import FILE as SEAL_FILE
from services.shared.sealing.ring import encode_keys, new_key
from services.webhook.certificate import Material, generate, is_good

if TYPE_CHECKING:
    from services.shared.kube.client import Api

RESOLVER_DIRECTORY: Final = "/data/accounts"
CREDENTIALS: Final = "user.creds"
REGISTRAR: Final = "registrar.json"
NOT_FOUND: Final = 404


class Release(Struct, frozen=True, kw_only=True):
    """Which Secrets: `<prefix>-authority`, `<prefix>-seal`, `<prefix>-nats` and `<prefix>-nats-<service>` of a namespace."""

    namespace: str
    prefix: str


class Stored(Struct):
    """A Secret's content. `version` empty: there is none yet."""

    data: dict[str, bytes] = {}
    version: str = ""


async def complete(api: Api, release: Release) -> list[str]:
    """Make what is missing; the names of the Secrets that were written. Raises BadAuthority, KubeError."""
    prefix, written = release.prefix, list[str]()

    async def keep(name: str, now: Stored, wanted: dict[str, bytes]) -> None:
        if {**now.data, **wanted} != now.data:
            await write(api, release.namespace, name, now, wanted)
            written.append(name)

    # The authority first, and at once: what it signs is worth nothing without it.
    name = f"{prefix}-authority"
    now = await read(api, release.namespace, name)
    authority = Authority.of(now.data.get(AUTHORITY_FILE), f"Secret {release.namespace}/{name}")
    await keep(name, now, {AUTHORITY_FILE: authority.encoded})

    name = f"{prefix}-seal"
    now = await read(api, release.namespace, name)
    await keep(name, now, {} if SEAL_FILE in now.data else {SEAL_FILE: encode_keys([new_key(time.time())])})

    name = f"{prefix}-nats"
    now = await read(api, release.namespace, name)
    material = _material(now.data, release)
    configuration = now.data.get("auth.conf", b"").decode(errors="replace")
    if not authority.is_told_by(configuration):
        configuration = authority.server_configuration(RESOLVER_DIRECTORY)
    servers = {"auth.conf": configuration.encode(), "tls.crt": material.certificate, "tls.key": material.key, "ca.crt": material.ca}
    await keep(name, now, servers)

    issuers = {role: functools.partial(authority.service, role) for role in ROLES} | {NEWCOMER: authority.newcomer}
    for user, issue in issuers.items():
        name = f"{prefix}-nats-{user}"
        now = await read(api, release.namespace, name)
        credentials = issue(now.data.get(CREDENTIALS, b"").decode(errors="replace"))
        wanted = {CREDENTIALS: credentials.encode(), "ca.crt": material.ca}
        if user == "watcher":
            wanted[REGISTRAR] = registrar.encode_key(authority.registrar)
        await keep(name, now, wanted)
    return written


def _material(data: dict[str, bytes], release: Release) -> Material:
    """The servers' certificate: the present one while it is good."""
    service = f"{release.prefix}-nats.{release.namespace}.svc"
    hosts = (f"*.{service}", service)
    present = Material(ca=data.get("ca.crt", b""), certificate=data.get("tls.crt", b""), key=data.get("tls.key", b""))
    return present if is_good(present, hosts) else generate(hosts, client=True)


async def read(api: Api, namespace: str, name: str) -> Stored:
    """Raises KubeError."""
    from services.shared.kube.client import ApiError  # not in every image

    try:
        found = msgspec.json.decode(await api.request("GET", f"/api/v1/namespaces/{namespace}/secrets/{name}"))
    except ApiError as error:
        if error.status == NOT_FOUND:
            return Stored()
        raise
    data = {key: base64.b64decode(value) for key, value in (found.get("data") or {}).items()}
    return Stored(data=data, version=found["metadata"]["resourceVersion"])


async def write(api: Api, namespace: str, name: str, now: Stored, wanted: dict[str, bytes]) -> None:
    """Change some keys of a Secret, or make it. Raises KubeError: also when it is another one by now."""
    metadata: dict[str, Any] = {"name": name, "namespace": namespace}
    data = {key: base64.b64encode(value).decode() for key, value in wanted.items()}
    path = f"/api/v1/namespaces/{namespace}/secrets"
    if not now.version:
        body = {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata, "data": data}
        await api.request("POST", path, body=body)
        return
    patch = {"metadata": {"resourceVersion": now.version}, "data": data}
    await api.request("PATCH", f"{path}/{name}", body=patch, content_type="application/merge-patch+json")
