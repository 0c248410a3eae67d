"""The example for edge nodes of their own: the names and settings that an ingress-nginx installation of this kind has."""

from __future__ import annotations

import pytest

from tests.chart.helm import CHART, Object, Refused, one, pod_of, render

EXAMPLE = CHART / "examples" / "edge-nodes.yaml"
NAME = "ingress-nginx"


@pytest.fixture
def installed() -> list[Object]:
    return render(None, EXAMPLE, release=NAME, namespace=NAME)


def test_nginx_runs_on_the_edge_nodes_and_their_own_ports(installed: list[Object]) -> None:
    edge = one(installed, "DaemonSet", "ingress-nginx-controller")
    pod = pod_of(edge)

    assert edge["metadata"]["namespace"] == NAME
    assert pod["nodeSelector"] == {"kubernetes.io/os": "linux", "ingress": "true"}
    assert pod["tolerations"] == [{"key": "node-role.kubernetes.io/edge", "operator": "Exists", "effect": "NoSchedule"}]
    assert (pod["hostNetwork"], pod["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")
    (container,) = pod["containers"]
    assert container["name"] == "controller"
    assert {p["name"]: p["containerPort"] for p in container["ports"]} == {"http": 80, "https": 443, "metrics": 10254}
    assert container["securityContext"]["runAsUser"] == 101
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}


def test_nothing_else_runs_there(installed: list[Object]) -> None:
    for obj in installed:
        if obj["kind"] in ("Deployment", "StatefulSet", "Job"):
            assert "tolerations" not in pod_of(obj) and pod_of(obj)["nodeSelector"] == {"kubernetes.io/os": "linux"}


def test_a_node_keeps_its_version_on_its_own_disk(installed: list[Object]) -> None:
    pod = pod_of(one(installed, "DaemonSet", "ingress-nginx-controller"))

    assert {"name": "node", "hostPath": {"path": "/var/lib/sluice", "type": "DirectoryOrCreate"}} in pod["volumes"]
    assert pod["initContainers"][0]["command"] == ["chown", "101:82", "/var/lib/sluice"]


def test_objects_have_the_names_and_settings_of_the_original(installed: list[Object]) -> None:
    config = one(installed, "ConfigMap", "ingress-nginx-controller")
    hook = one(installed, "ValidatingWebhookConfiguration", "ingress-nginx-admission")["webhooks"][0]
    classes = one(installed, "IngressClass", "nginx")

    assert config["data"] == {"allow-snippet-annotations": "true"}
    assert one(installed, "Service", "ingress-nginx-controller")["spec"]["type"] == "ClusterIP"
    assert hook["failurePolicy"] == "Fail"
    assert hook["clientConfig"]["service"]["name"] == "ingress-nginx-controller-admission"
    assert classes["spec"] == {"controller": "k8s.io/ingress-nginx"}
    one(installed, "Job", "ingress-nginx-admission-create")
    one(installed, "Job", "ingress-nginx-admission-patch")
    one(installed, "ClusterRole", "ingress-nginx")


def test_status_is_that_of_the_service(installed: list[Object]) -> None:
    arguments = pod_of(one(installed, "Deployment", "ingress-nginx-watcher"))["containers"][0]["args"]

    assert "publish-service=ingress-nginx/ingress-nginx-controller" in arguments
    assert "configmap=ingress-nginx/ingress-nginx-controller" in arguments


def test_nodes_in_the_hosts_network_reach_nats(installed: list[Object]) -> None:
    """Their pods have no label that counts in a network policy."""
    rules = one(installed, "NetworkPolicy", "ingress-nginx-nats")["spec"]["ingress"]

    assert {"ports": [{"port": 4222, "protocol": "TCP"}]} in rules


def test_one_directory_of_a_node_for_two_pods_is_refused() -> None:
    with pytest.raises(Refused, match=r"nodeDirectory\.hostPath needs controller\.kind: DaemonSet"):
        render({"controller": {"kind": "Deployment"}}, EXAMPLE)
