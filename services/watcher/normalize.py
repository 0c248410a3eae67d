"""One document, as a plain value, in; normalized objects out, or what is wrong with it.

Identity is assigned here where a document has none (docs/decisions/0004): the same document always gets the same, on any machine, after
any restart, in any order.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

from services.shared.contracts import objects
from services.shared.contracts.objects import AnyObject, Key, Metadata, key_of
from services.shared.contracts.problem import printable

API_VERSIONS: Final[dict[str, str]] = {
    "Namespace": "v1",
    "IngressClass": "networking.k8s.io/v1",
    "ConfigMap": "v1",
    "Secret": "v1",
    "Service": "v1",
    "EndpointSlice": "discovery.k8s.io/v1",
    "Node": "v1",
    "Pod": "v1",
    "Ingress": "networking.k8s.io/v1",
}
CLUSTER_SCOPED: Final = frozenset({"Namespace", "IngressClass", "Node"})
UNKNOWN_AGE: Final = "9999-12-31T23:59:59Z"
"""The creationTimestamp of a document without one: younger than everything that can prove its age."""

Obj = TypeVar("Obj", bound=AnyObject)

_UID_SPACE: Final = uuid.UUID("0b0f6f9e-3c0f-5d3c-9a55-6d3a5f6f3a10").bytes
_MAX_LIST_DEPTH: Final = 4


class Invalid(Struct, frozen=True, kw_only=True):
    """A document that names an object (perhaps) but is not a valid one."""

    field: str
    """The path inside the document; empty: the document itself."""
    message: str
    key: Key | None = None
    """Whose; None: not even that can be told."""
    example: str = ""


class Ignored(Struct, frozen=True, kw_only=True):
    """A document of a kind that Sluice does not read."""

    api_version: str
    kind: str


class Item(Struct, frozen=True, kw_only=True):
    """One thing in a document; `path` leads to it (`items[3]` in a List; empty: the document itself)."""

    path: str
    result: AnyObject | Invalid | Ignored


def normalize(document: Any) -> Iterator[Item]:
    """All objects of one document: itself, or the items of a List."""
    yield from _items(document, "", 0)


def _items(value: Any, path: str, depth: int) -> Iterator[Item]:
    if not isinstance(value, dict):
        yield Item(path=path, result=Invalid(field="", message="not a mapping", example="apiVersion, kind and metadata"))
        return
    kind = value.get("kind")
    if isinstance(kind, str) and kind.endswith("List") and isinstance(value.get("items"), list):
        if depth >= _MAX_LIST_DEPTH:
            yield Item(path=path, result=Invalid(field="", message=f"Lists nested more than {_MAX_LIST_DEPTH} deep"))
            return
        for index, item in enumerate(value["items"]):
            if kind != "List" and isinstance(item, dict):
                # The items of a typed list may leave out what its kind says.
                item = {"apiVersion": value.get("apiVersion"), "kind": kind.removesuffix("List")} | item
            yield from _items(item, f"{path}.items[{index}]".lstrip("."), depth + 1)
        return
    yield Item(path=path, result=_object(value))


def _object(value: dict[str, Any]) -> AnyObject | Invalid | Ignored:
    kind, api_version = value.get("kind"), value.get("apiVersion")
    if not isinstance(kind, str) or not isinstance(api_version, str):
        missing = "kind" if not isinstance(kind, str) else "apiVersion"
        return Invalid(field=missing, message="missing", example="apiVersion: networking.k8s.io/v1, kind: Ingress")
    expected = API_VERSIONS.get(kind)
    if expected is None or not _same_group(kind, api_version, expected):
        return Ignored(api_version=printable(api_version), kind=printable(kind))
    metadata = value.get("metadata")
    if not isinstance(metadata, dict):
        return Invalid(field="metadata", message="missing")
    name = metadata.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        message = "missing" if name in (None, "") else f"`{printable(str(name))}` is not a name: lower-case letters, digits, `-` and `.`"
        return Invalid(field="metadata.name", message=message, example="shop")
    namespace = "" if kind in CLUSTER_SCOPED else metadata.get("namespace") or "default"
    if not isinstance(namespace, str) or (namespace and not _LABEL.fullmatch(namespace)):
        return Invalid(field="metadata.namespace", message=f"`{printable(str(namespace))}` is not a namespace", example="default")
    key = Key(kind, namespace, name)
    if api_version != expected:
        message = f"{printable(api_version)} is not served any more (or not yet); {kind} is read as {expected}"
        return Invalid(field="apiVersion", message=message, key=key, example=expected)
    return _typed(value, metadata, key)


_NAME: Final = re.compile(r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?", re.ASCII)
_LABEL: Final = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)


def _same_group(kind: str, api_version: str, expected: str) -> bool:
    """Is this the kind we mean, in whatever version? Other groups may have kinds of the same name (`serving.knative.dev/v1 Service`)."""
    group = api_version.rpartition("/")[0]
    return group == expected.rpartition("/")[0] or (kind == "Ingress" and group == "extensions")


def _typed(value: dict[str, Any], metadata: dict[str, Any], key: Key) -> AnyObject | Invalid:
    body: dict[str, Any] = value | {"metadata": _without_nulls(metadata) | {"name": key.name, "namespace": key.namespace}}
    for field in ("spec", "data", "endpoints", "ports", "type"):
        if field in body and body[field] is None:
            del body[field]
    for field in ("labels", "annotations"):
        if field in body["metadata"]:
            body["metadata"][field] = _texts(body["metadata"][field])
    if key.kind == "ConfigMap" and "data" in body:
        body["data"] = _texts(body["data"])
    if key.kind == "Secret":
        merged = _secret_data(body)
        if isinstance(merged, Invalid):
            return msgspec.structs.replace(merged, key=key)
        body["data"] = merged
    try:
        return with_identity(_convert(body, key))
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `")
        return Invalid(field=path.removesuffix("`").removeprefix("$").removeprefix("."), message=_plain(message), key=key)


def _plain(message: str) -> str:
    """msgspec's words as people write manifests."""
    expected = message.partition(", got ")[0]
    for type_, plain in (
        ("`str`", "text"),
        ("`int`", "a number"),
        ("`object`", "a mapping"),
        ("`array`", "a list"),
        ("`bool`", "true or false"),
    ):
        message = message.replace(type_, plain)
    hint = "; put it in quotes" if "`str`" in expected and "mapping" not in message and "list" not in message else ""
    return (message[:1].lower() + message[1:]).replace("`", "") + hint


def _convert(body: dict[str, Any], key: Key) -> AnyObject:
    kind = getattr(objects, key.kind)
    try:
        return msgspec.convert(body, kind)  # type: ignore[no-any-return]
    except msgspec.ValidationError as error:
        # Rare, so not done beforehand: Kubernetes takes `null` for "not written", and YAML keys that are not text (`404: page`).
        plain = _json_like(body)
        if plain == body:
            raise
        try:
            return msgspec.convert(plain, kind)  # type: ignore[no-any-return]
        except msgspec.ValidationError as second:
            raise second from error


def _json_like(value: Any) -> Any:
    """As the API server would store it: keys are text, nulls in mappings are left out."""
    if isinstance(value, dict):
        return {_key_text(k): _json_like(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_json_like(item) for item in value]
    return value


def _key_text(key: Any) -> str:
    if isinstance(key, bool):
        return "true" if key else "false"
    return key if isinstance(key, str) else "null" if key is None else str(key)


def _without_nulls(mapping: dict[str, Any]) -> dict[str, Any]:
    """`creationTimestamp: null` is what many tools write."""
    return {k: v for k, v in mapping.items() if v is not None} if None in mapping.values() else mapping


def _texts(value: Any) -> Any:
    """A mapping of texts, as the API server reads it: `key:` without a value is the empty text."""
    if isinstance(value, dict) and None in value.values():
        return {k: "" if v is None else v for k, v in value.items()}
    return value


# --- Secrets


def _secret_data(body: dict[str, Any]) -> dict[str, bytes] | Invalid:
    """`data` decoded, `stringData` over it. No value ever appears in a message."""
    data, text = body.get("data") or {}, body.get("stringData") or {}
    for field, mapping in (("data", data), ("stringData", text)):
        if not isinstance(mapping, dict):
            return Invalid(field=field, message="not a mapping")
    merged: dict[str, bytes] = {}
    for name, encoded in data.items():
        field = f"data[{printable(_key_text(name))}]"
        if not isinstance(encoded, str | None):
            return Invalid(field=field, message="not base64: quote it")
        try:
            # Line breaks are what `base64` without -w0 leaves in block scalars; Go's decoder skips them as well.
            merged[_key_text(name)] = base64.b64decode((encoded or "").replace("\n", "").replace("\r", ""), validate=True)
        except (binascii.Error, ValueError):
            return Invalid(field=field, message="not base64; plain text belongs into stringData", example="aGVsbG8=")
    for name, plain in text.items():
        if not isinstance(plain, str | None):
            return Invalid(field=f"stringData[{printable(_key_text(name))}]", message="not text: quote it")
        merged[_key_text(name)] = (plain or "").encode()
    return merged


# --- identity


def with_identity(obj: Obj) -> Obj:
    """`obj` with a uid, a resourceVersion and a creationTimestamp."""
    metadata = obj.metadata
    created = _utc(metadata.creation_timestamp)
    if metadata.uid and metadata.resource_version and created == metadata.creation_timestamp:
        return obj
    identified: Metadata = msgspec.structs.replace(
        metadata,
        uid=metadata.uid or _uid(str(key_of(obj))),
        resource_version=metadata.resource_version or _content_version(obj),
        creation_timestamp=created,
    )
    return msgspec.structs.replace(obj, metadata=identified)


def _uid(name: str) -> str:
    """`uuid.uuid5(_UID_SPACE, name)`, at a fifth of its time."""
    digest = hashlib.sha1(_UID_SPACE + name.encode(), usedforsecurity=False).digest()
    value = int.from_bytes(digest[:16], "big") & ~(0xF000 << 64) & ~(0xC000 << 48) | 5 << 76 | 0x8000 << 48
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _content_version(obj: AnyObject) -> str:
    """A version for the content as it is: the same content, the same version."""
    return hashlib.sha256(msgspec.json.encode(obj, order="deterministic")).hexdigest()[:16]


def _utc(stamp: str) -> str:
    """RFC 3339 in UTC and whole seconds, so that it sorts as text; `UNKNOWN_AGE` for none and for what is not a time."""
    if not stamp:
        return UNKNOWN_AGE
    if _UTC.fullmatch(stamp):
        return stamp
    try:
        moment = datetime.fromisoformat(stamp)
    except ValueError:
        return UNKNOWN_AGE
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


_UTC: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
