"""docs/chart-values.md is true: each value of ingress-nginx's chart is honoured, refused by name, or without effect as it says."""

from __future__ import annotations

import base64
import functools
import json
import re
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
import yaml

from services.compiler.configmap import KEYS
from services.shared import flags
from tests.chart.helm import CHART, Refused, component, one, pod_of, render, render_text
from tests.chart.schema import FILE, build, original, parts
from tests.support.up import ROOT

ROW = re.compile(r"\| `(?P<key>[^`]+)` \| (?P<how>honoured|refused|no effect) \| ?(?P<note>.*) \|")
TABLE = {
    found["key"]: (found["how"], found["note"])
    for found in map(ROW.match, (ROOT / "docs" / "chart-values.md").read_text().splitlines())
    if found
}
ORIGINAL = original()

CONTEXTS: tuple[tuple[str, str], ...] = (
    (r"controller\.keda\.", "controller.keda.enabled=true controller.keda.triggers=[{type: cpu}]"),
    (r"controller\.keda\.fallback", "controller.keda.enabled=true"),
    (r"controller\.autoscaling(Template|\.)", "controller.autoscaling.enabled=true"),
    (r"controller\.(minAvailable|maxUnavailable|unhealthyPodEvictionPolicy)", "controller.replicaCount=3"),
    (
        r"controller\.metrics\.",
        "controller.metrics.enabled=true controller.metrics.serviceMonitor.enabled=true controller.metrics.prometheusRule.enabled=true",
    ),
    (r"controller\.metrics\.service\.(loadBalancer|externalTraffic|nodePort)", "controller.metrics.service.type=LoadBalancer"),
    (r"controller\.service\.internal\.", "controller.service.internal.enabled=true controller.service.internal.annotations={a: b}"),
    (r"controller\.service\.internal\.annotations", "controller.service.internal.annotations={}"),
    (r"controller\.service\.internal\.enabled", "controller.service.internal.enabled=false"),
    (r"controller\.hostPort\.", "controller.hostPort.enabled=true"),
    (r"controller\.reportNodeInternalIp", "controller.hostNetwork=true"),
    (r"controller\.disableLeaderElection", "watcher.replicaCount=1"),
    (r"controller\.scope\.namespace$", "controller.scope.enabled=true"),
    (r"rbac\.scope", "controller.scope.enabled=true"),
    (r"controller\.admissionWebhooks\.certManager\.[a-z]+Cert", "controller.admissionWebhooks.certManager.enabled=true"),
    (r"controller\.admissionWebhooks\.certManager\.issuerRef", "controller.admissionWebhooks.certManager.enabled=true"),
    (r"controller\.admissionWebhooks\.service\.loadBalancer", "controller.admissionWebhooks.service.type=LoadBalancer"),
    (r"defaultBackend\.", "defaultBackend.enabled=true"),
    (r"defaultBackend\.(minAvailable|maxUnavailable|unhealthyPodEvictionPolicy)", "defaultBackend.replicaCount=3"),
    (r"defaultBackend\.autoscaling\.", "defaultBackend.autoscaling.enabled=true"),
    (r"defaultBackend\.service\.loadBalancer", "defaultBackend.service.type=LoadBalancer"),
    (r"(portNamePrefix|controller\.(tcp\.|service\.(internal\.)?nodePorts\.tcp))", "tcp={8000: shop/web:80}"),
    (r"controller\.(udp\.|service\.(internal\.)?nodePorts\.udp)", "udp={53: kube-system/dns:53}"),
    (r"controller\.metrics\.port$", "controller.livenessProbe.httpGet.port=metrics controller.readinessProbe.httpGet.port=metrics"),
)
"""What must be set besides, for a value to count."""

PROBES: dict[str, Any] = {
    "controller.kind": "DaemonSet",
    "controller.admissionWebhooks.failurePolicy": "Ignore",
    "controller.admissionWebhooks.certificate": "/usr/local/certificates/tls.crt",
    "controller.admissionWebhooks.key": "/usr/local/certificates/tls.key",
    "controller.dnsPolicy": "Default",
    "controller.livenessProbe.httpGet.port": "metrics",
    "controller.readinessProbe.httpGet.port": "metrics",
    "controller.livenessProbe.httpGet.scheme": "HTTPS",
    "controller.readinessProbe.httpGet.scheme": "HTTPS",
    "controller.readinessProbe.httpGet.path": "/other",
    "controller.image.repository": "registry.example.com/edge",
    "controller.service.type": "NodePort",
    "controller.service.internal.type": "NodePort",
    "controller.service.trafficDistribution": "PreferClose",
    "controller.metrics.port": 10300,
    "controller.resizePolicy": [{"resourceName": "cpu", "restartPolicy": "NotRequired"}],
    "defaultBackend.extraConfigMaps": [{"name": "pages", "data": {"a": "b"}}],
    "tcp": {"8000": "shop/web:80"},
    "udp": {"53": "kube-system/dns:53"},
    "controller.extraArgs": {"update-status": "false"},
    "controller.startupProbe": {"httpGet": {"path": "/healthz", "port": 10254}},
    "controller.service.ipFamilies": ["IPv6"],
    "controller.service.internal.ipFamilies": ["IPv6"],
    "controller.service.external.enabled": False,
    "controller.service.internal.ports": {"http": 8080},
    "controller.service.internal.targetPorts": {"http": "https"},
    "controller.ingressClass": "front",
    "controller.service.nodePorts.tcp": {"8000": 30000},
    "controller.service.nodePorts.udp": {"53": 30053},
    "controller.service.internal.nodePorts.tcp": {"8000": 30001},
    "controller.service.internal.nodePorts.udp": {"53": 30054},
    "controller.service.allocateLoadBalancerNodePorts": False,
    "controller.service.internal.allocateLoadBalancerNodePorts": False,
    "controller.metrics.serviceMonitor.honorLabels": True,
}
"""Values of those whose kind their default does not tell."""

OBJECTS = frozenset({"controller.keda.fallback", "controller.admissionWebhooks.certManager.issuerRef", "controller.resources.limits"})
LISTS_OF_TEXT = re.compile(r"(aliases|IPs|SourceRanges|ipFamilies|command|drop|targetLabels)$")


def probe(key: str) -> Any:
    """A value other than the default."""
    if key in PROBES:
        return PROBES[key]
    default = yaml.safe_load(ORIGINAL[key]) if ORIGINAL[key] else None
    ours: Any = yaml.safe_load((CHART / "values.yaml").read_text())
    for step in parts(key):
        ours = ours.get(step) if isinstance(ours, dict) else None
    if isinstance(default, bool):
        return not (ours if isinstance(ours, bool) else default)
    if isinstance(default, int):
        return default + 7
    if isinstance(default, dict) or key in OBJECTS:
        return {"probe": "probed"}
    if isinstance(default, list):
        return ["192.0.2.7"] if LISTS_OF_TEXT.search(key) else [{"name": "probe"}]
    return "7" if re.search(r"(Port|Unavailable|seconds)$", key) else "probe"


def put(values: dict[str, Any], key: str, value: Any) -> None:
    *way, last = parts(key)
    for step in way:
        values = values.setdefault(step, {})
    values[last] = value


def context(key: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for pattern, settings in CONTEXTS:
        if re.match(pattern, key):
            for name, text in re.findall(r"(\S+?)=(\[.*?\]|\{.*?\}|\S+)", settings):
                put(values, name, yaml.safe_load(text))
    return values


def take(values: dict[str, Any], key: str) -> None:
    *way, last = parts(key)
    for step in way:
        values = values.get(step, {})
    values.pop(last, None)


@functools.cache
def rendered_before(values: str) -> str:
    return render_text(yaml.safe_load(values))


def outcome(key: str) -> str:
    """`honoured`, `no effect`, or the sentence of the refusal."""
    before, after = context(key), context(key)
    take(before, key)
    put(after, key, probe(key))
    try:
        changed = render_text(after)
    except Refused as refused:
        return str(refused)
    return "no effect" if changed == rendered_before(yaml.safe_dump(before)) else "honoured"


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(ORIGINAL, pool.map(outcome, ORIGINAL), strict=True))


def test_the_table_has_every_value_of_the_original() -> None:
    assert list(TABLE) == list(ORIGINAL)


def test_each_refusal_and_each_exception_has_its_reason() -> None:
    assert [key for key, (how, note) in TABLE.items() if how != "honoured" and not note] == []


@pytest.mark.parametrize("how", ["honoured", "no effect"])
def test_a_value_does_what_the_table_says(how: str, outcomes: dict[str, str]) -> None:
    wrong = {key: outcomes[key][-300:] for key, (said, _) in TABLE.items() if said == how and outcomes[key] != how}

    assert wrong == {}


def test_a_refusal_names_the_value_or_what_it_goes_with(outcomes: dict[str, str]) -> None:
    wrong = {}
    for key, (how, note) in TABLE.items():
        names = [key, key.rpartition(".")[0], *re.findall(r"goes with `(\w+)`", note)]
        if how == "refused" and not any(re.search(rf"\b{re.escape(name)}\b.* cannot be", outcomes[key]) for name in names if name):
            wrong[key] = outcomes[key][-300:]

    assert wrong == {}


def test_a_file_with_all_defaults_of_the_original_installs() -> None:
    """Many keep a copy of the whole values.yaml. Only its images must go."""
    values: dict[str, Any] = {}
    for key, default in ORIGINAL.items():
        if default and not re.match(r"controller\.(image|admissionWebhooks\.patch\.image)\.(image|tag|digest|digestChroot)$", key):
            put(values, key, yaml.safe_load(default))

    controller = one(render(values), "Deployment", "edge-sluice-controller")

    assert controller["spec"]["replicas"] == 1


def test_an_image_of_the_original_is_refused_with_what_to_do() -> None:
    with pytest.raises(Refused, match=r"controller\.image\.image is an image of ingress-nginx.*Remove controller\.image"):
        render_text({"controller": {"image": {"image": "ingress-nginx/controller"}}})
    with pytest.raises(Refused, match=r"controller\.image\.tag v1\.11\.2 is a release of ingress-nginx"):
        render_text({"controller": {"image": {"tag": "v1.11.2"}}})


def test_a_value_that_no_list_knows_is_refused() -> None:
    with pytest.raises(Refused, match="opentelemetry"):
        render_text({"controller": {"opentelemetry": {"enabled": True}}})


def test_the_helpers_of_the_original_give_this_charts_names() -> None:
    """As its own values.yaml shows it for topologySpreadConstraints."""
    spread = {
        "labelSelector": {"matchLabels": {"app.kubernetes.io/name": '{{ include "ingress-nginx.name" . }}'}},
        "topologyKey": "topology.kubernetes.io/zone",
        "maxSkew": 1,
        "whenUnsatisfiable": "ScheduleAnyway",
    }
    names = {
        "name": "sluice",
        "namespace": "ingress",
        "fullname": "edge-sluice",
        "controller.fullname": "edge-sluice-controller",
        "controller.electionID": "edge-sluice-leader",
        "controller.publishServicePath": "ingress/edge-sluice-controller",
        "admissionWebhooks.fullname": "edge-sluice-admission",
        "admissionWebhooks.patch.serviceAccountName": "edge-sluice-admission",
        "admissionWebhooks.createSecretJob.fullname": "edge-sluice-admission-create",
        "admissionWebhooks.patchWebhookJob.fullname": "edge-sluice-admission-patch",
        "defaultBackend.fullname": "edge-sluice-defaultbackend",
        "defaultBackend.serviceAccountName": "edge-sluice-backend",
        "serviceAccountName": "edge-sluice",
    }
    maps = ("labels", "selectorLabels")
    service = {"annotations": {name: f'{{{{ include "ingress-nginx.{name}" . }}}}' for name in names}}
    service["annotations"] |= {name: f'{{{{ include "ingress-nginx.{name}" . | fromYaml | toJson | b64enc }}}}' for name in maps}

    rendered = render({"controller": {"topologySpreadConstraints": [spread], "service": service}})

    edge = one(rendered, "Deployment", "edge-sluice-controller")
    (constraint,) = pod_of(edge)["topologySpreadConstraints"]
    assert constraint["labelSelector"]["matchLabels"].items() <= edge["spec"]["template"]["metadata"]["labels"].items()
    annotations = one(rendered, "Service", "edge-sluice-controller")["metadata"]["annotations"]
    assert {name: annotations[name] for name in names} == names
    labels, selector = (json.loads(base64.b64decode(annotations[name])) for name in maps)
    assert labels == {k: v for k, v in edge["metadata"]["labels"].items() if k != "app.kubernetes.io/component"}
    assert selector == {"app.kubernetes.io/name": "sluice", "app.kubernetes.io/instance": "edge"}
    for kind, name in (("ServiceAccount", names["serviceAccountName"]), ("Job", names["admissionWebhooks.patchWebhookJob.fullname"])):
        one(rendered, kind, name)


def test_the_schema_is_that_of_the_values() -> None:
    assert FILE.read_text() == build(), "python -m tests.chart.schema"


def test_the_chart_takes_the_flags_that_the_services_take() -> None:
    supported = yaml.safe_load((CHART / "files" / "supported.yaml").read_text())

    assert supported["flags"] == sorted(flags._PARSERS), "charts/sluice/files/supported.yaml"
    assert set(supported["configKeys"]) == {
        key for key in ("add-headers", "allow-snippet-annotations", "proxy-set-headers", "ssl-dh-param") if key in KEYS
    }


def test_an_argument_that_is_no_flag_is_refused() -> None:
    with pytest.raises(
        Refused, match=r"controller\.extraArgs\.enable-ssl-passthrough cannot be honoured: it stands for --enable-ssl-passthrough"
    ):
        render_text({"controller": {"extraArgs": {"enable-ssl-passthrough": ""}}})


def test_addresses_come_from_a_service_or_from_a_list() -> None:
    listed = {"publish-status-address": "203.0.113.1"}
    render({"controller": {"extraArgs": listed}})
    with pytest.raises(Refused, match=r"extraArgs\.publish-service and controller\.extraArgs\.publish-status-address exclude each other"):
        render({"controller": {"extraArgs": listed | {"publish-service": "a/b"}}})


def test_all_services_get_the_same_flags() -> None:
    rendered = render({"controller": {"extraArgs": {"default-ssl-certificate": "ingress/wildcard", "update-status": False}}})

    seen = {}
    for obj in rendered:
        if component(obj) in ("watcher", "compiler", "webhook", "controller") and obj["kind"] == "Deployment":
            arguments = pod_of(obj)["containers"][0]["args"]
            given = [value for name, value in pairwise(arguments) if name == "--set-flag"]
            seen[component(obj)] = flags.parse_flags(given)
    expected = flags.Flags(
        configmap="ingress/edge-sluice-controller",
        election_id="edge-sluice-leader",
        publish_service="ingress/edge-sluice-controller",
        default_ssl_certificate="ingress/wildcard",
        update_status=False,
        shutdown_grace_period=10,
    )
    assert seen == dict.fromkeys(("watcher", "compiler", "webhook", "controller"), expected)
