"""What the chart renders holds together, whatever the values file: names, labels, selectors, accounts, security contexts, probes."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest

from tests.chart.helm import CHART, KUBERNETES, Object, component, objects, pod_of, render_text, run, service_of, workloads

TOKENS = {"watcher", "keys", "admission-webhook"}
"""Components that speak to the API server."""


def test_lint() -> None:
    assert "0 chart(s) failed" in run("lint", "--strict", "--kube-version", KUBERNETES, str(CHART))


def test_each_object_is_there_once_with_a_legal_name(rendered: list[Object]) -> None:
    names = Counter((o["kind"], o["metadata"].get("namespace", ""), o["metadata"]["name"]) for o in rendered)

    assert [name for name, count in names.items() if count > 1] == []
    assert [name for _, _, name in names if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name)] == []
    # The names of its pods become labels, with a hash.
    assert [o["metadata"]["name"] for o in workloads(rendered) if len(o["metadata"]["name"]) > 52 and o["kind"] == "StatefulSet"] == []


def test_labels_are_legal(rendered: list[Object]) -> None:
    for obj in rendered:
        labels = dict(obj["metadata"]["labels"])
        if "template" in obj.get("spec", {}):
            labels |= obj["spec"]["template"]["metadata"]["labels"]
        for name, value in labels.items():
            assert isinstance(value, str) and re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", value), (name, value)


def test_a_workload_selects_its_own_pods_and_no_others(rendered: list[Object]) -> None:
    pods = {o["metadata"]["name"]: o["spec"]["template"]["metadata"]["labels"] for o in workloads(rendered)}
    for obj in workloads(rendered):
        if obj["kind"] == "Job":
            continue
        wanted = obj["spec"]["selector"]["matchLabels"].items()
        assert [name for name, labels in pods.items() if wanted <= labels.items()] == [obj["metadata"]["name"]]


def test_every_other_selector_finds_pods(rendered: list[Object]) -> None:
    pods = [o["spec"]["template"]["metadata"]["labels"] for o in workloads(rendered)]
    selectors = [o["spec"]["selector"] for o in rendered if o["kind"] == "Service"]
    selectors += [o["spec"]["selector"]["matchLabels"] for o in rendered if o["kind"] == "PodDisruptionBudget"]
    selectors += [o["spec"]["podSelector"]["matchLabels"] for o in rendered if o["kind"] == "NetworkPolicy"]

    assert selectors
    for selector in selectors:
        assert any(selector.items() <= labels.items() for labels in pods), selector


def test_a_service_names_ports_that_the_pods_have(rendered: list[Object]) -> None:
    for service in (o for o in rendered if o["kind"] == "Service"):
        wanted = service["spec"]["selector"].items()
        ports = {
            port["name"]
            for workload in workloads(rendered)
            if wanted <= workload["spec"]["template"]["metadata"]["labels"].items()
            for container in pod_of(workload)["containers"]
            for port in container.get("ports", [])
        }
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports, service["metadata"]["name"]


def test_scalers_scale_what_is_there(rendered: list[Object]) -> None:
    deployments = {o["metadata"]["name"]: o for o in rendered if o["kind"] == "Deployment"}
    for scaler in (o for o in rendered if o["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")):
        assert "replicas" not in deployments[scaler["spec"]["scaleTargetRef"]["name"]]["spec"]


def test_only_the_watcher_and_the_jobs_have_a_token(rendered: list[Object]) -> None:
    with_token = {component(o) for o in workloads(rendered) if pod_of(o)["automountServiceAccountToken"]}
    accounts = {o["metadata"]["name"]: o["automountServiceAccountToken"] for o in rendered if o["kind"] == "ServiceAccount"}

    assert with_token == TOKENS & {component(o) for o in workloads(rendered)}
    for workload in workloads(rendered):
        assert accounts[pod_of(workload)["serviceAccountName"]] == (component(workload) in TOKENS)


def test_nobody_shares_an_account(rendered: list[Object]) -> None:
    users: dict[str, set[str]] = {}
    for workload in workloads(rendered):
        users.setdefault(pod_of(workload)["serviceAccountName"], set()).add(component(workload))

    assert [account for account, components in users.items() if len(components) > 1] == []


def test_no_container_may_more_than_it_needs(rendered: list[Object]) -> None:
    for workload in workloads(rendered):
        pod = pod_of(workload)
        for container in pod["containers"]:
            context = {**pod.get("securityContext", {}), **container["securityContext"]}
            assert context["runAsNonRoot"] is True and context["runAsUser"] > 0
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["seccompProfile"] == {"type": "RuntimeDefault"}
            assert context["capabilities"]["drop"] == ["ALL"]
            assert context["capabilities"].get("add", []) == (["NET_BIND_SERVICE"] if service_of(workload) == "controller" else [])


def test_init_containers_of_the_edge_only_hand_over_a_directory(rendered: list[Object]) -> None:
    found = [c for w in workloads(rendered) for c in pod_of(w).get("initContainers", [])]

    assert all(c["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["CHOWN"]} for c in found)
    assert all(c["command"][0] == "chown" and [m["mountPath"] for m in c["volumeMounts"]] == ["/var/lib/sluice"] for c in found)


def test_probes_ask_the_health_port(rendered: list[Object]) -> None:
    paths = {"watcher": "/readyz", "compiler": "/readyz", "webhook": "/healthz", "controller": "/readyz"}
    for workload in workloads(rendered):
        if service_of(workload) not in paths:
            continue
        (container,) = pod_of(workload)["containers"]
        arguments = container["args"]
        health = int(arguments[arguments.index("--health-port") + 1])
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        live, ready = container["livenessProbe"]["httpGet"], container["readinessProbe"]["httpGet"]
        assert [ports.get(p["port"], p["port"]) for p in (live, ready)] == [health, health]
        assert (live["path"], ready["path"]) == ("/healthz", paths[service_of(workload)])


def test_every_mount_has_its_volume_and_every_volume_its_mount(rendered: list[Object]) -> None:
    for workload in workloads(rendered):
        pod = pod_of(workload)
        volumes = {v["name"] for v in pod["volumes"]} if "volumes" in pod else set()
        claims = {c["metadata"]["name"] for c in workload["spec"].get("volumeClaimTemplates", [])}
        mounts = {m["name"] for c in [*pod["containers"], *pod.get("initContainers", [])] for m in c.get("volumeMounts", [])}
        assert mounts == volumes | claims, workload["metadata"]["name"]


def secrets_of(workload: Object) -> set[str]:
    return {v["secret"]["secretName"] for v in pod_of(workload).get("volumes", []) if "secret" in v}


def test_each_service_has_its_own_credential_and_keys_only(rendered: list[Object]) -> None:
    names = {service_of(w): secrets_of(w) for w in workloads(rendered) if secrets_of(w)}
    full = next(iter(names["watcher"])).partition("-nats-watcher")[0].removesuffix("-seal")
    expected = {
        "watcher": {f"{full}-nats-watcher", f"{full}-seal"},
        "compiler": {f"{full}-nats-compiler", f"{full}-seal"},
        "webhook": {f"{full}-nats-webhook", f"{full}-admission"},
        "controller": {f"{full}-nats-edge"},
        "command": {f"{full}-nats-command"},
        "nats": {f"{full}-nats"},
    }

    assert names == {name: expected[name] for name in names}
    # The keys that sign stay where no pod mounts them.
    assert not any(f"{full}-authority" in found for found in names.values())


def test_the_jobs_are_hooks_in_order(rendered: list[Object]) -> None:
    hooks = {o["metadata"]["name"].rpartition("-")[2]: o["metadata"]["annotations"] for o in rendered if o["kind"] == "Job"}

    when = {name: (a["helm.sh/hook"], int(a["helm.sh/hook-weight"])) for name, a in hooks.items()}
    expected = {
        "keys": ("pre-install,pre-upgrade", -5),
        "create": ("pre-install,pre-upgrade", 0),
        "patch": ("post-install,post-upgrade", 0),
    }
    assert when == {name: expected[name] for name in when}
    for obj in rendered:
        if component(obj) in ("keys", "admission-webhook") and obj["kind"] in ("ServiceAccount", "Role", "RoleBinding", "ClusterRole"):
            assert int(obj["metadata"]["annotations"]["helm.sh/hook-weight"]) < -5


@pytest.mark.parametrize("kubernetes", ["1.25.0", "1.36.0"])
def test_it_renders_for_old_and_new_clusters(kubernetes: str) -> None:
    values: dict[str, Any] = {"controller": {"resizePolicy": [{"resourceName": "cpu"}], "service": {"trafficDistribution": "PreferClose"}}}

    text = render_text(values, kubernetes=kubernetes)

    assert ("resizePolicy" in text, "trafficDistribution" in text) == (kubernetes > "1.33", kubernetes > "1.31")
    assert objects(text)
