"""Documents -> objects with a stable identity, or what is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from services.shared.contracts.objects import AnyObject, ConfigMap, EndpointSlice, Ingress, Key, Secret, Service, key_of
from services.watcher.normalize import UNKNOWN_AGE, Ignored, Invalid, Item, normalize


def items(document: Any) -> list[Item]:
    return list(normalize(document))


def only(document: Any) -> AnyObject:
    (item,) = items(document)
    assert not isinstance(item.result, Invalid | Ignored), item.result
    return item.result


def invalid(document: Any) -> Invalid:
    (item,) = items(document)
    assert isinstance(item.result, Invalid), item.result
    return item.result


def manifest(kind: str, api_version: str = "v1", *, metadata: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": "x"} | (metadata or {})} | fields


def ingress(**fields: Any) -> dict[str, Any]:
    return manifest("Ingress", "networking.k8s.io/v1", **fields)


def test_a_namespaced_object_without_one_is_in_default_and_a_cluster_scoped_one_in_none() -> None:
    assert key_of(only(manifest("Service"))) == Key("Service", "default", "x")
    assert key_of(only(manifest("Namespace", metadata={"namespace": "left-over"}))) == Key("Namespace", "", "x")
    assert key_of(only(manifest("IngressClass", "networking.k8s.io/v1"))) == Key("IngressClass", "", "x")


def test_identity_is_the_same_every_time_and_another_for_another_object() -> None:
    one, again = only(ingress()), only(ingress())
    other = only(ingress(metadata={"name": "y"}))
    changed = only(ingress(spec={"ingressClassName": "nginx"}))

    assert one == again
    assert one.metadata.uid and one.metadata.resource_version and one.metadata.creation_timestamp == UNKNOWN_AGE
    assert other.metadata.uid != one.metadata.uid
    assert changed.metadata.uid == one.metadata.uid
    assert changed.metadata.resource_version != one.metadata.resource_version


def test_identity_that_a_document_has_is_kept() -> None:
    metadata = {"uid": "u", "resourceVersion": "7", "creationTimestamp": "2026-03-01T12:00:00Z"}
    kept = only(ingress(metadata=metadata)).metadata

    assert (kept.uid, kept.resource_version, kept.creation_timestamp) == ("u", "7", "2026-03-01T12:00:00Z")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2026-03-01T14:00:00+02:00", "2026-03-01T12:00:00Z"),
        ("2026-03-01T12:00:00.25Z", "2026-03-01T12:00:00Z"),
        ("yesterday", UNKNOWN_AGE),
        (None, UNKNOWN_AGE),
    ],
)
def test_times_sort_as_text(written: str | None, meant: str) -> None:
    assert only(ingress(metadata={"creationTimestamp": written})).metadata.creation_timestamp == meant


def test_lists_of_any_kind_are_opened() -> None:
    typed = {"apiVersion": "v1", "kind": "ServiceList", "items": [{"metadata": {"name": "a"}}, manifest("Service", metadata={"name": "b"})]}
    mixed = {"apiVersion": "v1", "kind": "List", "items": [manifest("Service"), {"kind": "List", "items": [ingress()]}, "junk", typed]}

    found = items(mixed)

    assert [i.path for i in found] == ["items[0]", "items[1].items[0]", "items[2]", "items[3].items[0]", "items[3].items[1]"]
    assert [type(i.result).__name__ for i in found] == ["Service", "Ingress", "Invalid", "Service", "Service"]


def test_other_kinds_are_ignored_and_other_versions_of_ours_are_a_mistake() -> None:
    (deployment,) = items(manifest("Deployment", "apps/v1"))
    (knative,) = items(manifest("Service", "serving.knative.dev/v1"))
    assert isinstance(deployment.result, Ignored)
    assert isinstance(knative.result, Ignored)

    for old in ("extensions/v1beta1", "networking.k8s.io/v1beta1"):
        problem = invalid(manifest("Ingress", old))
        assert problem.field == "apiVersion" and problem.key == Key("Ingress", "default", "x")
        assert problem.example == "networking.k8s.io/v1"


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ("text", ""),
        ([1], ""),
        ({}, "kind"),
        ({"kind": "Ingress"}, "apiVersion"),
        ({"kind": ["Ingress"], "apiVersion": "v1"}, "kind"),
        (manifest("Service", metadata={"name": None}), "metadata.name"),
        (manifest("Service", metadata={"name": "Upper"}), "metadata.name"),
        (manifest("Service", metadata={"name": "a\n"}), "metadata.name"),
        (manifest("Service", metadata={"name": "a" * 254}), "metadata.name"),
        (manifest("Service", metadata={"name": 7}), "metadata.name"),
        (manifest("Service", metadata={"namespace": "../x"}), "metadata.namespace"),
        ({"apiVersion": "v1", "kind": "Service", "metadata": "x"}, "metadata"),
        (manifest("Service", spec={"ports": [{"port": 0}]}), "spec.ports[0].port"),
        (manifest("Service", spec={"ports": [{"port": "80"}]}), "spec.ports[0].port"),
        (ingress(metadata={"annotations": {"a": True}}), "metadata.annotations[...]"),
        (ingress(spec=[]), "spec"),
        (ingress(spec={"rules": [{"http": {"paths": [{"path": "/"}]}}]}), "spec.rules[0].http.paths[0]"),
        (manifest("ConfigMap", data={"a": 1}), "data[...]"),
        (manifest("Secret", data={"a": "***"}), "data[a]"),
        (manifest("Secret", data={"a": 7}), "data[a]"),
        (manifest("Secret", stringData={"a": 7}), "stringData[a]"),
        (manifest("Secret", stringData="x"), "stringData"),
    ],
)
def test_a_bad_document_names_the_field(document: Any, field: str) -> None:
    assert invalid(document).field == field


def test_what_tools_write_for_nothing_is_nothing() -> None:
    service = only(manifest("Service", metadata={"annotations": None, "creationTimestamp": None}, spec=None, status={"loadBalancer": {}}))
    slices = only(manifest("EndpointSlice", "discovery.k8s.io/v1", endpoints=None, ports=None))
    config = only(manifest("ConfigMap", data={"empty": None, 404: "page"}))
    annotated = only(ingress(metadata={"annotations": {"a": None, True: "b"}}))

    assert isinstance(service, Service) and service.metadata.annotations == {}
    assert isinstance(slices, EndpointSlice)
    assert isinstance(config, ConfigMap) and config.data == {"empty": "", "404": "page"}
    assert isinstance(annotated, Ingress) and annotated.metadata.annotations == {"a": "", "true": "b"}


def test_a_secret_is_decoded_and_its_text_merged_over_it() -> None:
    secret = only(manifest("Secret", data={"a": "aGk=", "b": "aG\nk=\n", "e": ""}, stringData={"b": "text", "c": "ü"}))

    assert isinstance(secret, Secret)
    assert secret.data == {"a": b"hi", "b": b"text", "c": "ü".encode(), "e": b""}


def test_no_message_shows_a_secret() -> None:
    problem = invalid(manifest("Secret", data={"a": "p4ssw0rd!"}, stringData={"b": 31337}))

    assert "p4ssw0rd" not in str(problem) and "31337" not in str(problem)
