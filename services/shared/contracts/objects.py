"""Kubernetes objects, normalized: the fields that Sluice reads, typed, and nothing else (no managedFields, no status).

The watcher makes them out of manifests or API objects; the compiler reads them. Field names on the wire are Kubernetes' own
(camelCase), so `msgspec.convert(manifest, Ingress)` both checks and normalizes, and an error names the JSON path.
Fields that Kubernetes defaults carry that default here. What is absent in an object takes the default.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

Port = Annotated[int, Meta(ge=1, le=65535)]


class Object(Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The base of all normalized structs: immutable, camelCase on the wire, defaults left out."""


class Metadata(Object, frozen=True, kw_only=True):
    """ObjectMeta, the part that Sluice reads."""

    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str = ""
    """RFC 3339, UTC, seconds: `2026-03-01T12:00:00Z`; it sorts as text."""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    deletion_timestamp: str = ""
    """Not empty: the object is being deleted."""


# --- networking.k8s.io/v1 Ingress


class ServiceBackendPort(Object, frozen=True, kw_only=True):
    """A port by name or by number; exactly one is set in a valid object."""

    name: str = ""
    number: int = 0


class IngressServiceBackend(Object, frozen=True, kw_only=True):
    name: str
    port: ServiceBackendPort = ServiceBackendPort()


class TypedReference(Object, frozen=True, kw_only=True):
    """A `resource` backend: recognised, never followed."""

    kind: str = ""
    name: str = ""
    api_group: str | None = None


class IngressBackend(Object, frozen=True, kw_only=True):
    service: IngressServiceBackend | None = None
    resource: TypedReference | None = None


class HTTPIngressPath(Object, frozen=True, kw_only=True):
    backend: IngressBackend
    path: str = ""
    path_type: str | None = None
    """Exact, Prefix or ImplementationSpecific; None: not written."""


class HTTPIngressRuleValue(Object, frozen=True, kw_only=True):
    paths: tuple[HTTPIngressPath, ...] = ()


class IngressRule(Object, frozen=True, kw_only=True):
    host: str = ""
    http: HTTPIngressRuleValue | None = None


class IngressTLS(Object, frozen=True, kw_only=True):
    hosts: tuple[str, ...] = ()
    secret_name: str = ""


class IngressSpec(Object, frozen=True, kw_only=True):
    ingress_class_name: str | None = None
    default_backend: IngressBackend | None = None
    rules: tuple[IngressRule, ...] = ()
    tls: tuple[IngressTLS, ...] = ()


class Ingress(Object, frozen=True, kw_only=True, tag_field="kind", tag="Ingress"):
    metadata: Metadata
    spec: IngressSpec = IngressSpec()


class IngressClassSpec(Object, frozen=True, kw_only=True):
    controller: str = ""


class IngressClass(Object, frozen=True, kw_only=True, tag_field="kind", tag="IngressClass"):
    metadata: Metadata
    spec: IngressClassSpec = IngressClassSpec()


# --- v1 Service, discovery.k8s.io/v1 EndpointSlice


class ServicePort(Object, frozen=True, kw_only=True):
    port: Port
    name: str = ""
    target_port: int | str = 0
    """0: not written, the same number as `port`."""
    protocol: str = "TCP"
    app_protocol: str = ""


class ServiceSpec(Object, frozen=True, kw_only=True):
    type: str = "ClusterIP"
    cluster_ip: Annotated[str, Meta()] = msgspec.field(default="", name="clusterIP")
    """`None` (the text): a headless Service; empty: not assigned."""
    external_name: str = ""
    ports: tuple[ServicePort, ...] = ()


class Service(Object, frozen=True, kw_only=True, tag_field="kind", tag="Service"):
    metadata: Metadata
    spec: ServiceSpec = ServiceSpec()


class EndpointConditions(Object, frozen=True, kw_only=True):
    ready: bool | None = None
    """None counts as ready (EndpointSlice API reference)."""


class Endpoint(Object, frozen=True, kw_only=True):
    addresses: tuple[str, ...] = ()
    conditions: EndpointConditions = EndpointConditions()


class EndpointPort(Object, frozen=True, kw_only=True):
    name: str | None = None
    port: int | None = None
    protocol: str | None = None
    """None: TCP."""


class EndpointSlice(Object, frozen=True, kw_only=True, tag_field="kind", tag="EndpointSlice"):
    """The Service it belongs to is the label `kubernetes.io/service-name`."""

    metadata: Metadata
    address_type: str = "IPv4"
    endpoints: tuple[Endpoint, ...] | None = None
    ports: tuple[EndpointPort, ...] | None = None


# --- v1 Secret, ConfigMap, Namespace, Node, Pod


class Secret(Object, frozen=True, kw_only=True, tag_field="kind", tag="Secret"):
    metadata: Metadata
    type: str = "Opaque"
    data: dict[str, bytes] = {}
    """Decoded from base64; manifests' `stringData` is merged in by the watcher. Never logged."""

    def __repr__(self) -> str:
        return f"Secret({self.metadata.namespace}/{self.metadata.name}, data=<redacted>)"


class ConfigMap(Object, frozen=True, kw_only=True, tag_field="kind", tag="ConfigMap"):
    metadata: Metadata
    data: dict[str, str] = {}


class Namespace(Object, frozen=True, kw_only=True, tag_field="kind", tag="Namespace"):
    metadata: Metadata


class Node(Object, frozen=True, kw_only=True, tag_field="kind", tag="Node"):
    metadata: Metadata


class Pod(Object, frozen=True, kw_only=True, tag_field="kind", tag="Pod"):
    metadata: Metadata


AnyObject = Ingress | IngressClass | Service | EndpointSlice | Secret | ConfigMap | Namespace | Node | Pod
"""Any object that the watcher publishes; the tag is `kind`."""

KINDS: Final[tuple[str, ...]] = (
    "Namespace",
    "IngressClass",
    "ConfigMap",
    "Secret",
    "Service",
    "EndpointSlice",
    "Node",
    "Pod",
    "Ingress",
)
"""In the order in which a first list is published: what is referenced before what refers to it."""


class Key(Struct, frozen=True, order=True):
    """What identifies an object. `str(key)` is how messages to people name it."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


def kind_of(obj: AnyObject) -> str:
    """The Kubernetes kind of a normalized object."""
    return type(obj).__name__


def key_of(obj: AnyObject) -> Key:
    """The key of a normalized object."""
    return Key(type(obj).__name__, obj.metadata.namespace, obj.metadata.name)
