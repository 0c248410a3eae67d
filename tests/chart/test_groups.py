"""Several groups of nodes in one release: whatever they are called, nothing of theirs is another's; what cannot be is said."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from services.shared.flags import parse_flags
from tests.chart.helm import Object, Refused, one, pod_of, render


def _group(name: str, **more: Any) -> dict[str, Any]:
    return {"ingressClassResource": {"controllerValue": f"example.com/{name}", **more.pop("ingressClassResource", {})}, **more}


ALL_ON = {
    "service": {"internal": {"enabled": True, "annotations": {"a": "b"}}},
    "metrics": {"enabled": True, "serviceMonitor": {"enabled": True}},
    "networkPolicy": {"enabled": True},
    "replicaCount": 2,
}


def test_no_name_of_a_group_makes_an_object_of_another() -> None:
    names = ("internal", "admission", "metrics", "watcher", "webhook", "nats", "edge", "a", "a-internal", "a-controller", "1", "true")
    rendered = render({"controller": ALL_ON, "networkPolicy": {"enabled": True}, "groups": {n: _group(n) for n in names}})
    made = Counter((o["kind"], str(o["metadata"].get("namespace")), o["metadata"]["name"]) for o in rendered)
    assert [name for name, count in made.items() if count > 1] == []
    assert all(isinstance(o["metadata"]["name"], str) for o in rendered)
    assert {o["metadata"]["name"] for o in rendered if o["kind"] == "IngressClass"} == {"nginx", *names}


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ({"a": {}}, "groups.a.ingressClassResource.controllerValue"),
        ({"a": _group("a"), "b": _group("a")}, "is that of groups.a already"),
        ({"a": {"ingressClassResource": {"controllerValue": "k8s.io/ingress-nginx"}}}, "is that of controller already"),
        ({"a": _group("a", ingressClassResource={"name": "nginx"})}, "IngressClass nginx is another group's"),
        ({"a": _group("a", ingressClassResource={"aliases": ["b"]}), "b": _group("b")}, "IngressClass b is another group's"),
        ({"default": _group("x")}, "groups.default"),
        ({"Internal": _group("x")}, "groups.Internal"),
        ({"compiler": _group("x")}, "groups.compiler"),
        ({"a": _group("a", admissionWebhooks={"enabled": False})}, "groups.a.admissionWebhooks cannot be honoured"),
        ({"a": _group("a", scope={"enabled": True})}, "groups.a.scope cannot be honoured"),
        ({"a": _group("a", watchIngressWithoutClass=True), "b": _group("b", watchIngressWithoutClass=True)}, "without a class"),
        ({"a": _group("a", rollout={"soakSeconds": -1})}, "soakSeconds"),
        ({"a": _group("a", rollout={"soakSeconds": "abc"})}, "soakSeconds"),
        ({"a": _group("a", nonsense=1)}, "nonsense"),
    ],
)
def test_what_cannot_be_is_refused(groups: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=words):
        render({"groups": groups})


def test_a_name_that_would_be_cut_is_refused() -> None:
    with pytest.raises(Refused, match="longer than 52"):
        render({"fullnameOverride": "x" * 40, "groups": {"a-long-group-name": _group("a")}})


def _told(rendered: list[Object], group: str) -> list[str]:
    arguments = pod_of(one(rendered, "Deployment", "edge-sluice-watcher"))["containers"][0]["args"]
    return [v.partition(":")[2] for v in arguments if v.startswith(f"{group}:")]


def test_the_watcher_is_told_what_a_group_has_and_what_only_the_first_one_has() -> None:
    first = {"watchIngressWithoutClass": True, "ingressClassByName": True, "extraArgs": {"publish-status-address": "203.0.113.1"}}
    own = {"ingressClassByName": False, "extraArgs": {"update-status": "false", "publish-status-address": "203.0.113.2"}}
    rendered = render({"controller": first, "groups": {"a": _group("a", **own), "b": _group("b", watchIngressWithoutClass=False)}})
    a, b = (parse_flags(_told(rendered, group)) for group in "ab")
    assert (a.ingress_class, a.controller_class, a.configmap) == ("a", "example.com/a", "ingress/edge-sluice-a-controller")
    assert (a.watch_ingress_without_class, a.ingress_class_by_name, a.update_status) == (False, False, False)
    assert (a.publish_status_address, b.publish_status_address) == ("203.0.113.2", "203.0.113.1")
    assert (b.watch_ingress_without_class, b.ingress_class_by_name, b.update_status) == (False, True, True)
