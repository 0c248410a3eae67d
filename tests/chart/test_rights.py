"""The watcher's rights are those that docs/kubernetes.md names; nobody else but the jobs has any."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from tests.chart.helm import Object, Refused, component, one, render
from tests.support.up import ROOT

Right = tuple[str, str, str, str]
"""group, resource, name (empty: all), verb"""


def rights(rules: list[dict[str, Any]]) -> set[Right]:
    return {
        (group, resource, name, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", [""])
        for verb in rule["verbs"]
    }


def documented() -> set[Right]:
    """tests/cluster shows that these are enough, and that each is needed."""
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    found = re.search(r"    apiVersion: rbac.*?(?=\n\n)", text, re.DOTALL)
    assert found is not None
    return rights(yaml.safe_load(found[0])["rules"])


def bound(rendered: list[Object], account: str) -> dict[tuple[str, str], set[Right]]:
    """(kind, namespace) -> what an account may do by roles of that kind."""
    out: dict[tuple[str, str], set[Right]] = {}
    for binding in (o for o in rendered if o["kind"] in ("RoleBinding", "ClusterRoleBinding")):
        if account not in {subject["name"] for subject in binding["subjects"]}:
            continue
        namespace = binding["metadata"].get("namespace", "")
        (role,) = (
            o
            for o in rendered
            if (o["kind"], o["metadata"]["name"]) == (binding["roleRef"]["kind"], binding["roleRef"]["name"])
            and o["metadata"].get("namespace", "") == namespace
        )
        out.setdefault((role["kind"], namespace), set()).update(rights(role["rules"]))
    return out


ENROL = {("authentication.k8s.io", "tokenreviews", "", "create")}
"""tests/cluster/test_enrolment.py shows that it is enough and needed."""
LEASE = {("coordination.k8s.io", "leases", "edge-sluice-leader", verb) for verb in ("get", "update")} | {
    ("coordination.k8s.io", "leases", "", "create")
}


def test_the_watcher_may_what_is_documented_and_nothing_else() -> None:
    found = bound(render(), "edge-sluice")

    assert found == {("ClusterRole", ""): documented() | ENROL, ("Role", "ingress"): LEASE}


def test_only_the_watcher_and_the_jobs_may_anything(rendered: list[Object]) -> None:
    holders = {s["name"] for o in rendered if o["kind"].endswith("RoleBinding") for s in o["subjects"]}
    accounts = {o["metadata"]["name"]: component(o) for o in rendered if o["kind"] == "ServiceAccount"}

    assert {accounts[h] for h in holders} <= {"watcher", "keys", "admission-webhook"}


def test_the_jobs_may_touch_their_own_objects_only(rendered: list[Object]) -> None:
    for role in rendered:
        if role["kind"] in ("Role", "ClusterRole") and component(role) != "watcher":
            unnamed = {right for right in rights(role["rules"]) if not right[2]}
            # A name cannot be demanded of what does not exist yet.
            assert unnamed <= {("", "secrets", "", "create")}


def test_nobody_may_read_all_secrets_but_the_watcher(rendered: list[Object]) -> None:
    readers = {
        component(role)
        for role in rendered
        if role["kind"] in ("Role", "ClusterRole")
        and {("", "secrets", "", verb) for verb in ("get", "list", "watch", "*")} & rights(role["rules"])
    }

    assert readers == {"watcher"}


def test_rights_in_one_namespace() -> None:
    values = {"rbac": {"scope": True}, "controller": {"scope": {"enabled": True, "namespace": "shop"}}}

    found = bound(render(values), "edge-sluice")

    classes = {right for right in documented() if right[1] == "ingressclasses"}
    own = {("", resource, "", verb) for resource in ("services", "configmaps") for verb in ("get", "list", "watch")}
    assert found == {("ClusterRole", ""): classes | ENROL, ("Role", "shop"): documented() - classes, ("Role", "ingress"): LEASE | own}


def test_rights_in_its_own_namespace() -> None:
    found = bound(render({"rbac": {"scope": True}, "controller": {"scope": {"enabled": True}}}), "edge-sluice")

    assert found[("ClusterRole", "")] | found[("Role", "ingress")] == documented() | LEASE | ENROL
    assert len(found) == 2


@pytest.mark.parametrize(
    ("values", "more"),
    [
        ({"scope": {"namespaceSelector": "team=shop"}}, {("", "namespaces", "", verb) for verb in ("list", "watch")}),
        ({"publishService": {"enabled": False}}, {("", "nodes", "", "get")}),
        ({"extraArgs": {"publish-status-address": "192.0.2.1"}}, set()),
    ],
)
def test_a_flag_brings_the_rights_it_needs(values: dict[str, Any], more: set[Right]) -> None:
    found = bound(render({"controller": values}), "edge-sluice")

    assert found["ClusterRole", ""] == documented() | ENROL | more


def test_the_lease_is_named_as_the_watcher_names_it() -> None:
    values = {"controller": {"ingressClass": "internal", "electionID": "mine"}}

    names = {right[2] for right in bound(render(values), "edge-sluice")["Role", "ingress"]}

    assert names == {"mine-internal", ""}


def test_no_rights_are_made_where_they_are_made_elsewhere() -> None:
    rendered = render({"rbac": {"create": False}, "serviceAccount": {"create": False, "name": "theirs"}})

    assert [o["metadata"]["name"] for o in rendered if "Role" in o["kind"]] == []
    assert one(rendered, "Deployment", "edge-sluice-watcher")["spec"]["template"]["spec"]["serviceAccountName"] == "theirs"


def test_a_scope_without_a_namespace_is_refused() -> None:
    with pytest.raises(Refused, match=r"rbac\.scope needs controller\.scope\.enabled"):
        render({"rbac": {"scope": True}})
