"""`tcp` and `udp`: ConfigMaps, ports and flags named as ingress-nginx's chart names them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from services.compiler.streams import parse_streams
from services.shared.flags import Flags, parse_flags
from tests.chart.helm import Object, component, one, pod_of, render
from tests.chart.test_rights import bound

VALUES: dict[str, Any] = {
    "tcp": {"9000": '{{ printf "shop" }}/db:5432:PROXY', 2222: "git/ssh:ssh"},
    "udp": {"53": "kube-system/dns:53"},
}
GROUPS = {"internal": {"ingressClassResource": {"controllerValue": "example.com/internal"}}}


def flags_of(workload: Object) -> Flags:
    return parse_flags([value for name, value in pairwise(pod_of(workload)["containers"][0]["args"]) if name == "--set-flag"])


def ports(workload: Object) -> dict[str, tuple[Any, ...]]:
    found = pod_of(workload)["containers"][0]["ports"]
    return {
        p["name"]: (p["containerPort"], p["protocol"], p.get("hostPort")) for p in found if p["name"] not in ("http", "https", "metrics")
    }


def test_configmaps_flags_and_ports() -> None:
    rendered = render(VALUES)
    tcp = one(rendered, "ConfigMap", "edge-sluice-tcp")
    assert tcp["data"] == {"9000": "shop/db:5432:PROXY", "2222": "git/ssh:ssh"}
    assert one(rendered, "ConfigMap", "edge-sluice-udp")["data"] == {"53": "kube-system/dns:53"}
    assert parse_streams(tcp["data"], "tcp", {})[1] == []
    for obj in rendered:
        if component(obj) in ("watcher", "compiler", "controller") and obj["kind"] == "Deployment":
            flags = flags_of(obj)
            assert (flags.tcp_services_configmap, flags.udp_services_configmap) == ("ingress/edge-sluice-tcp", "ingress/edge-sluice-udp")
    assert ports(one(rendered, "Deployment", "edge-sluice-controller")) == {
        "9000-tcp": (9000, "TCP", None),
        "2222-tcp": (2222, "TCP", None),
        "53-udp": (53, "UDP", None),
    }


def test_service_ports_with_a_prefix_and_node_ports() -> None:
    node_ports = {"tcp": {"9000": 30900}, "udp": {53: 30053}}
    values = {
        "portNamePrefix": "lb",
        "controller": {"service": {"type": "NodePort", "nodePorts": node_ports}, "hostPort": {"enabled": True}},
    }
    rendered = render({**VALUES, **values})
    service = one(rendered, "Service", "edge-sluice-controller")
    found = {p["name"]: (p["port"], p["targetPort"], p["protocol"], p.get("nodePort")) for p in service["spec"]["ports"]}
    assert {name: port for name, port in found.items() if name.startswith("lb")} == {
        "lb-9000-tcp": (9000, "lb-9000-tcp", "TCP", 30900),
        "lb-2222-tcp": (2222, "lb-2222-tcp", "TCP", None),
        "lb-53-udp": (53, "lb-53-udp", "UDP", 30053),
    }
    assert ports(one(rendered, "Deployment", "edge-sluice-controller"))["lb-9000-tcp"] == (9000, "TCP", 9000)


def test_the_compiler_knows_the_nodes_own_ports() -> None:
    probes = {probe: {"httpGet": {"port": 9999}} for probe in ("livenessProbe", "readinessProbe")}
    controller = {"containerPort": {"http": 8080}, "extraArgs": {"healthz-port": 9999}, **probes}
    flags = flags_of(one(render({"controller": controller}), "Deployment", "edge-sluice-compiler"))
    assert (flags.http_port, flags.https_port, flags.healthz_port) == (8080, 443, 9999)


def test_each_group_has_its_own() -> None:
    rendered = render({**VALUES, "groups": GROUPS})
    assert one(rendered, "ConfigMap", "edge-sluice-internal-tcp")["data"] == one(rendered, "ConfigMap", "edge-sluice-tcp")["data"]
    watcher = pod_of(one(rendered, "Deployment", "edge-sluice-watcher"))["containers"][0]["args"]
    assert "internal:tcp-services-configmap=ingress/edge-sluice-internal-tcp" in watcher
    compiler = flags_of(one(rendered, "Deployment", "edge-sluice-compiler-internal"))
    assert compiler.tcp_services_configmap == "ingress/edge-sluice-internal-tcp"


def test_nothing_of_it_without_entries() -> None:
    rendered = render({"groups": GROUPS})
    assert not [o for o in rendered if o["kind"] == "ConfigMap" and o["metadata"]["name"].endswith(("-tcp", "-udp"))]
    assert flags_of(one(rendered, "Deployment", "edge-sluice-watcher")).tcp_services_configmap == ""


def test_rights_in_one_namespace_reach_the_named_configmap_elsewhere() -> None:
    scope = {"rbac": {"scope": True}, "groups": GROUPS}
    values = {"scope": {"enabled": True, "namespace": "shop"}, "tcp": {"configMapNamespace": "net"}, "udp": {"configMapNamespace": "shop"}}
    rendered = render({**VALUES, **scope, "controller": values})
    assert one(rendered, "ConfigMap", "edge-sluice-tcp")["metadata"]["namespace"] == "net"
    names = ("edge-sluice-tcp", "edge-sluice-internal-tcp")
    assert bound(rendered, "edge-sluice")["Role", "net"] == {
        ("", "configmaps", n, verb) for n in names for verb in ("get", "list", "watch")
    }
    everywhere = bound(render({**VALUES, "controller": {"tcp": {"configMapNamespace": "net"}}}), "edge-sluice")
    assert ("Role", "net") not in everywhere
