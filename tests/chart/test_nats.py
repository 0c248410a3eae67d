"""The NATS that the chart installs: nats-server takes its configuration, and services come in with the credentials of `natsauth`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.shared.natsauth.authority import Authority
from services.webhook.certificate import make_certificate
from tests.chart.helm import Object, Refused, one, pod_of, render, render_text

pytestmark = pytest.mark.nats

SERVER = Path(sys.executable).with_name("nats-server")


def configuration(rendered: list[Object], directory: Path) -> Path:
    """The rendered configuration beside what the keys job would make, in two directories as they are mounted."""
    make_certificate(directory / "nats")
    (directory / "nats" / "auth.conf").write_text(Authority.at(directory).server_configuration(f"{directory}/data/accounts"))
    text: str = one(rendered, "ConfigMap", "edge-sluice-nats-config")["data"]["nats.conf"]
    file = directory / "config" / "nats.conf"
    file.parent.mkdir()
    file.write_text(text.replace("/etc/sluice/nats/", f"{directory}/nats/").replace("/data/", f"{directory}/data/"))
    return file


def check(file: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"POD_NAME": "edge-sluice-nats-0"}
    return subprocess.run([str(SERVER), "-t", "-c", str(file)], capture_output=True, text=True, env=environment, check=False, timeout=60)


@pytest.mark.parametrize("replicas", [1, 3])
def test_the_server_takes_it(replicas: int, tmp_path: Path) -> None:
    done = check(configuration(render({"nats": {"replicas": replicas}}), tmp_path))

    assert done.returncode == 0, done.stderr


def test_the_server_would_refuse_a_word_it_does_not_know(tmp_path: Path) -> None:
    """That is, the test above can fail."""
    file = configuration(render(), tmp_path)
    file.write_text(file.read_text().replace("write_deadline", "rite_deadline"))

    assert check(file).returncode != 0


def test_three_servers_let_only_each_other_into_the_cluster() -> None:
    rendered = render({"nats": {"replicas": 3}})
    text = one(rendered, "ConfigMap", "edge-sluice-nats-config")["data"]["nats.conf"]

    routes = [f"nats://edge-sluice-nats-{i}.edge-sluice-nats.ingress.svc:6222" for i in range(3)]
    assert all(route in text for route in routes)
    assert "verify: true" in text.partition("cluster {")[2]
    policy = one(rendered, "NetworkPolicy", "edge-sluice-nats")
    (routed,) = [rule for rule in policy["spec"]["ingress"] if rule["ports"] == [{"port": 6222, "protocol": "TCP"}]]
    assert routed["from"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "nats"


def test_one_server_has_no_cluster() -> None:
    assert "cluster {" not in one(render(), "ConfigMap", "edge-sluice-nats-config")["data"]["nats.conf"]


def test_a_change_of_the_configuration_starts_the_servers_anew() -> None:
    sums = [
        one(render({"nats": {"maxFileStore": size}}), "StatefulSet", "edge-sluice-nats")["spec"]["template"]["metadata"]["annotations"]
        for size in ("8GB", "8GB", "9GB")
    ]

    assert sums[0] == sums[1] != sums[2]


def test_data_may_live_as_long_as_the_pod() -> None:
    stateful = one(render({"nats": {"storage": {"persistent": False}}}), "StatefulSet", "edge-sluice-nats")

    assert "volumeClaimTemplates" not in stateful["spec"]
    assert {"name": "data", "emptyDir": {}} in pod_of(stateful)["volumes"]


@pytest.mark.parametrize(
    ("nats", "message"),
    [
        ({"enabled": False}, "nats.external.url must say where NATS is"),
        ({"external": {"url": "tls://nats.example.com:4222"}}, "set nats.enabled to false"),
        ({"replicas": 2}, "replicas"),
    ],
)
def test_half_a_setting_is_refused(nats: dict[str, object], message: str) -> None:
    with pytest.raises(Refused, match=message):
        render_text({"nats": nats})


def test_servers_of_someone_else() -> None:
    rendered = render({"nats": {"enabled": False, "external": {"url": "tls://nats.example.com:4222"}}})

    assert not [o for o in rendered if o["kind"] == "StatefulSet"]
    arguments = pod_of(one(rendered, "Deployment", "edge-sluice-compiler"))["containers"][0]["args"]
    assert arguments[arguments.index("--nats-url") + 1] == "tls://nats.example.com:4222"
