"""`sluice up` as an operator meets it: start, stop, kill -9, ports taken, rollback, traces, refused objects."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.backends import backends
from tests.support.objects import config_map, ingress, many, service, tls_secret
from tests.support.up import SluiceUp, get

pytestmark = [pytest.mark.nats, pytest.mark.nginx]


@pytest.fixture
def ports() -> Iterator[dict[str, int]]:
    with backends("blue", "green") as found:
        yield found


def _basic(up: SluiceUp, ports: dict[str, int]) -> None:
    up.write("services.yaml", many(*service("blue", [ports["blue"]]), *service("green", [ports["green"]])))
    up.write("web.yaml", many(ingress("web", {"web.example.com": {"/": "blue"}})))


def test_start_serve_and_stop_leaves_no_process(tmp_path: Path, ports: dict[str, int]) -> None:
    up = SluiceUp(tmp_path)
    _basic(up, ports)
    with up:
        assert [n["http"] for n in up.up()["nodes"]] == [f"http://127.0.0.1:{p}" for p in up.http]
        for port, health in zip(up.http, up.health, strict=True):
            assert get(port, "web.example.com")[2].startswith(b"blue")
            assert get(port, "nobody.example.com")[0] == 404
            assert get(health, "localhost", "/healthz")[0] == 200
            assert get(health, "localhost", "/readyz")[0] == 200
            assert b"sluice_version" in get(health, "localhost", "/metrics")[2]
        running = up.processes()
        assert len(running) >= 10
        assert up.stop(signal.SIGINT) == 0
        assert [p for p in running if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []


def test_state_survives_a_restart_with_the_same_version(tmp_path: Path, ports: dict[str, int]) -> None:
    up = SluiceUp(tmp_path)
    _basic(up, ports)
    with up:
        before = up.status()
        up.stop()
        up.start()
        after = up.status()
    assert (after["version"], after["digest"]) == (before["version"], before["digest"])


def test_killed_supervisor_leaves_nginx_serving_and_the_next_up_takes_over(tmp_path: Path, ports: dict[str, int]) -> None:
    up = SluiceUp(tmp_path)
    _basic(up, ports)
    with up:
        masters = [up.nginx(n).pid for n in range(2)]
        assert up.stop(signal.SIGKILL) == -signal.SIGKILL
        assert [get(p, "web.example.com")[0] for p in up.http] == [200, 200]
        up.start()
        assert [up.nginx(n).pid for n in range(2)] == masters, "a healthy nginx is adopted, not restarted"
        up.write("web.yaml", many(ingress("web", {"web.example.com": {"/": "green"}})))
        up.wait()
        assert get(up.http[1], "web.example.com")[2].startswith(b"green")


def test_nodes_restart_and_serve_with_everything_else_gone(tmp_path: Path, ports: dict[str, int]) -> None:
    up = SluiceUp(tmp_path, nodes=1)
    _basic(up, ports)
    with up:
        directory = up.state / "nodes" / "node-0"
        up.stop()
        assert os.spawnlp(os.P_WAIT, "/usr/sbin/nginx", "nginx", "-p", str(directory), "-c", "current/nginx.conf") == 0
        try:
            assert get(up.http[0], "web.example.com")[2].startswith(b"blue")
        finally:
            up.nginx(0).send_signal(signal.SIGQUIT)


def test_a_taken_port_is_one_sentence(tmp_path: Path) -> None:
    up = SluiceUp(tmp_path)
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", up.http[1]))
        taken.listen()
        up.launch()
        assert up.stop(signal.SIGCONT) == 1
    text = up.log.read_text()
    assert f"port {up.http[1]} (http of node-1) is taken by" in text
    assert "Traceback" not in text


def test_unknown_flag_names_the_nearest(tmp_path: Path) -> None:
    up = SluiceUp(tmp_path, arguments=("--set-flag", "ingress-clas=x"))
    up.launch()
    assert up.stop(signal.SIGCONT) == 1
    assert "ingress-class" in up.log.read_text()


def test_a_policy_that_nginx_refuses_holds_up_nobody_else(tmp_path: Path, ports: dict[str, int]) -> None:
    up = SluiceUp(tmp_path)
    _basic(up, ports)
    up.write("config.yaml", many(config_map({"allow-snippet-annotations": "true", "annotations-risk-level": "Critical"})))
    with up:
        bad = {"configuration-snippet": "no_such_directive on;"}
        up.write("bad.yaml", many(ingress("bad", {"bad.example.com": {"/": "blue"}}, annotations=bad)))
        done = up.run("wait", "--for", "default/bad")
        assert done.returncode == 1
        for n in range(3):
            up.write("web.yaml", many(ingress("web", {"web.example.com": {"/": "green" if n % 2 == 0 else "blue"}})))
            up.wait("--for", "default/web")
        for port in up.http:
            assert get(port, "web.example.com")[2].startswith(b"green")
            assert get(port, "bad.example.com")[0] in (404, 503)
        found = {v["name"]: v for v in up.status()["verdicts"]}
        assert "no_such_directive" in json.dumps(found["bad"])
        assert found["bad"]["accepted"] is False
        assert "configuration-snippet" in found["bad"]["problems"][0]["field"]

        up.write("bad.yaml", many(ingress("bad", {"bad.example.com": {"/": "blue"}})))
        up.wait("--for", "default/bad")
        assert get(up.http[0], "bad.example.com")[0] == 200


def test_rollback_diff_and_history(tmp_path: Path, ports: dict[str, int]) -> None:
    up = SluiceUp(tmp_path, nodes=1)
    _basic(up, ports)
    with up:
        first = json.loads(up.run("history", "--json").stdout)[0]["number"]
        up.write("web.yaml", many(ingress("web", {"web.example.com": {"/": "green"}})))
        up.wait()
        second = json.loads(up.run("history", "--json").stdout)[0]["number"]
        shown = json.loads(up.run("diff", str(first), str(second), "--json").stdout)
        assert [c["name"] for c in shown["causes"]] == ["web"]
        assert "h/web.example.com" in [r["key"] for r in shown["rows"]]

        assert up.json("diff", f"1.{first}", f"1.{second}") == shown
        assert up.json("diff", f"1.{second}")["before"] == f"1.{second - 1}"
        assert up.run("diff").returncode == up.run("diff", "1", "2", "3").returncode == 2
        for wrong in (("diff", "1.x"), ("rollback", "0"), ("rollback", "1.2.3")):
            done = up.run(*wrong)
            assert done.returncode == 2
            assert "is no version: it is written 1.88 or 88, as `sluice history` shows it" in done.stderr

        done = up.run("rollback", f"1.{first}")
        assert done.returncode == 0, done.stderr
        assert f"the content of version {first}, pinned" in done.stdout
        _until(lambda: get(up.http[0], "web.example.com")[2].startswith(b"blue"))
        assert up.run("wait").returncode == 1
        told = up.run("explain", "http://web.example.com//x/..").stdout
        assert f"a rollback to version {first} is pinned" in told
        assert "default/blue:80" in told
        assert up.run("rollback", "--release").returncode == 0
        up.wait()
        assert get(up.http[0], "web.example.com")[2].startswith(b"green")
        assert up.run("rollback", "99999").returncode == 1


def test_trace_shows_the_way_to_three_nodes(tmp_path: Path, ports: dict[str, int]) -> None:
    up = SluiceUp(tmp_path, nodes=3)
    _basic(up, ports)
    with up:
        up.write("web.yaml", many(ingress("web", {"web.example.com": {"/": "green"}})))
        up.wait()
        shown = json.loads(up.run("trace", "default/web", "--json").stdout)
    assert [n["node"] for n in shown["nodes"]] == ["node-0", "node-1", "node-2"]
    for node in shown["nodes"]:
        assert 0 < shown["published"] <= shown["compiled"] <= shown["committed"] <= node["received"] <= node["live"]


def test_a_half_written_file_keeps_the_last_good_content(tmp_path: Path, ports: dict[str, int]) -> None:
    up = SluiceUp(tmp_path, nodes=1)
    _basic(up, ports)
    with up:
        up.write("web.yaml", "apiVersion: v1\nkind: [broken\n")
        assert up.run("wait").returncode == 1
        assert get(up.http[0], "web.example.com")[0] == 200
        problems = [p for w in up.status()["watchers"] for p in w.get("problems", [])]
        assert any("web.yaml:" in p["field"] for p in problems)


def test_admission_over_https(tmp_path: Path, ports: dict[str, int]) -> None:
    up = SluiceUp(tmp_path, nodes=1)
    _basic(up, ports)
    with up:
        good = ingress("other", {"other.example.com": {"/": "blue"}})
        clash = ingress("other", {"web.example.com": {"/": "blue"}})
        bad = ingress("other", {"other.example.com": {"/": "blue"}}, annotations={"limit-rps": "many"})
        odd = ingress("other", {"other.example.com": {"/": "blue"}}, annotations={"proxy-body-siz": "8m"})
        assert _review(up, good)["allowed"] is True
        refused = _review(up, clash)
        assert refused["allowed"] is False
        assert "default/web" in refused["status"]["message"]
        refused = _review(up, bad)
        assert refused["allowed"] is False
        assert "limit-rps" in refused["status"]["message"]
        warned = _review(up, odd)
        assert warned["allowed"] is True
        assert any("proxy-body-size" in w for w in warned["warnings"])


def test_an_ingress_as_large_as_an_api_server_takes_it(tmp_path: Path, ports: dict[str, int]) -> None:
    up = SluiceUp(tmp_path, nodes=1)
    _basic(up, ports)
    large = ingress("large", {"large.example.com": {f"/{n}/{'x' * 1900}": "blue" for n in range(700)}})
    text = many(large)
    assert 1_300_000 < len(text) < 1_500_000
    with up:
        assert _review(up, large)["allowed"] is True
        up.write("large.json", text)
        up.wait("--for", "default/large")
        assert get(up.http[0], "large.example.com", f"/699/{'x' * 1900}")[0] == 200


def _review(up: SluiceUp, obj: dict[str, Any]) -> dict[str, Any]:
    webhook = up.up()["webhook"]
    request = {
        "uid": "9c1f6f4e-7f7b-4b7e-9d4b-0e5a4c1c9a11",
        "kind": {"group": "networking.k8s.io", "version": "v1", "kind": "Ingress"},
        "resource": {"group": "networking.k8s.io", "version": "v1", "resource": "ingresses"},
        "namespace": "default",
        "name": "other",
        "operation": "CREATE",
        "object": obj | {"metadata": {**obj["metadata"], "uid": "0f8b2c9e-6f3a-4b8a-8f60-111111111111"}},
    }
    body = json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}).encode()
    post = urllib.request.Request(webhook["url"], data=body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(post, context=ssl.create_default_context(cafile=webhook["ca"]), timeout=10) as answer:
        response: dict[str, Any] = json.loads(answer.read())["response"]
    return response


def test_tls_by_name_with_a_certificate_that_changes(tmp_path: Path, ports: dict[str, int]) -> None:
    up = SluiceUp(tmp_path, nodes=1)
    _basic(up, ports)
    up.write("web.yaml", many(ingress("web", {"web.example.com": {"/": "blue"}}, tls={"web-tls": ["web.example.com"]})))
    up.write("tls.yaml", many(tls_secret("web-tls", "web.example.com")))
    with up:
        assert get(up.https[0], "web.example.com", tls=True)[0] == 200
        status, headers, _ = get(up.http[0], "web.example.com", "/a/?b=c")
        assert (status, headers["location"]) == (308, "https://web.example.com/a/?b=c")


def _until(true: object, seconds: float = 20) -> None:
    assert callable(true)
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not become so"
        time.sleep(0.02)
