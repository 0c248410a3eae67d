"""Where each kind is in the API, and how its objects are read: from raw bytes into the contract's structs."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from services.shared.contracts import objects
from services.shared.contracts.objects import AnyObject, Key
from services.watcher import normalize

WATCHED: Final = ("IngressClass", "Secret", "Service", "EndpointSlice", "Ingress")
"""With the ConfigMaps that flags name this is all that the compiler reads. Nodes and Pods change all the time and say nothing to it."""

_PLURAL: Final = {
    "Namespace": ("api/v1", "namespaces"),
    "IngressClass": ("apis/networking.k8s.io/v1", "ingressclasses"),
    "ConfigMap": ("api/v1", "configmaps"),
    "Secret": ("api/v1", "secrets"),
    "Service": ("api/v1", "services"),
    "EndpointSlice": ("apis/discovery.k8s.io/v1", "endpointslices"),
    "Ingress": ("apis/networking.k8s.io/v1", "ingresses"),
}


class Collection(Struct, frozen=True, kw_only=True):
    """One kind, in one namespace or in all."""

    kind: str
    namespace: str = ""
    """Empty: all."""
    name: str = ""
    """Only the object of this name; empty: all."""

    @property
    def path(self) -> str:
        group, plural = _PLURAL[self.kind]
        scoped = self.namespace and self.kind not in normalize.CLUSTER_SCOPED
        return f"/{group}/namespaces/{self.namespace}/{plural}" if scoped else f"/{group}/{plural}"

    @property
    def query(self) -> dict[str, str]:
        return {"fieldSelector": f"metadata.name={self.name}"} if self.name else {}


class _Named(Struct, frozen=True):
    name: str = ""
    namespace: str = ""


class _Anything(Struct, frozen=True):
    metadata: _Named = _Named()


_DECODERS: Final[dict[str, Any]] = {kind: msgspec.json.Decoder(getattr(objects, kind)) for kind in _PLURAL}
_decode_name: Final = msgspec.json.Decoder(_Anything).decode


def read(kind: str, raw: bytes) -> AnyObject | normalize.Invalid:
    """One object as the API server sends it. Fields that are not ours are never built; `Invalid` names what cannot be read."""
    try:
        found: AnyObject = _DECODERS[kind].decode(raw)
        return normalize.with_identity(found)
    except (msgspec.DecodeError, RecursionError):
        return _read_slowly(kind, raw)


def _read_slowly(kind: str, raw: bytes) -> AnyObject | normalize.Invalid:
    """What has nulls, or is wrong: as a manifest is read, which says what is wrong in words."""
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        return normalize.Invalid(field="", message=f"not JSON that can be read: {error}")
    if not isinstance(value, dict):
        return normalize.Invalid(field="", message="not an object")
    document = value | {"kind": kind, "apiVersion": normalize.API_VERSIONS[kind]}
    result = next(iter(normalize.normalize(document))).result
    if isinstance(result, normalize.Ignored):
        return normalize.Invalid(field="kind", message=f"{result.kind} is not {kind}")
    return result


def key_in(kind: str, raw: bytes) -> Key | None:
    """Whose these bytes are, readable or not."""
    try:
        named = _decode_name(raw).metadata
    except (msgspec.DecodeError, RecursionError):
        return None
    return Key(kind, named.namespace, named.name) if named.name else None


def unchanged(before: AnyObject | None, after: AnyObject) -> bool:
    """Whether nothing differs but the resourceVersion: another field, such as status, changed that we do not read."""
    if before is None or type(before) is not type(after):
        return False
    metadata = replace(after.metadata, resource_version=before.metadata.resource_version)
    return bool(replace(after, metadata=metadata) == before)
