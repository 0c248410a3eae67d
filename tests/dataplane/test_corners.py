"""Corners of the catalogue: what entries mean together, and for requests that end before any backend is asked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.shared.contracts.objects import Key
from services.shared.flags import Flags
from tests.support.backends import Echoes, echoes
from tests.support.edge import running
from tests.support.objects import config_map, ingress, service

pytestmark = pytest.mark.nginx
REFUSED = r"connect\(\) failed \(111: Connection refused\)"


@pytest.fixture(scope="module")
def backends() -> Iterator[Echoes]:
    with echoes("web", "other", "auth") as found:
        yield found


def _objects(backends: Echoes, config: dict[str, str], **annotations: dict[str, str]) -> list[dict[str, Any]]:
    made = [config_map(config), *service("web", [backends.ports["web"]]), *service("other", [backends.ports["other"]])]
    return [*made, *(ingress(n, {f"{n}.example.com": {"/": "web"}}, annotations=a) for n, a in annotations.items())]


def test_names_of_the_route_stand_in_upstream_vhost_and_snippets(tmp_path: Path, backends: Echoes) -> None:
    snippet = 'more_set_headers "X-Seen: $namespace/$service_name";'
    vhost = {"upstream-vhost": "$service_name.$namespace.svc:$service_port"}
    objects = _objects(
        backends,
        {"allow-snippet-annotations": "true", "annotations-risk-level": "Critical"},
        vhost=vhost,
        snip={"configuration-snippet": snippet},
    )
    with running(tmp_path, objects) as edge:
        assert edge.seen("vhost.example.com")["headers"]["host"] == "web.default.svc:80"
        assert edge.get("snip.example.com")[1]["x-seen"] == "default/web"


@pytest.mark.parametrize(
    ("snippet", "path", "status"),
    [
        ('if ($http_x_a = "1") { return 418; }', "/", 418),
        ("if ($http_x_a = '1') { return 418; }", "/", 418),
        ('if ($http_x_a ~* "^1$") { return 418; }', "/", 418),
        (r"rewrite ^/old/(\d+)\.html$ /new/$1 break;", "/old/7.html", 200),
    ],
)
def test_snippets_in_nginx_own_words(tmp_path: Path, backends: Echoes, snippet: str, path: str, status: int) -> None:
    config = {"allow-snippet-annotations": "true", "annotations-risk-level": "Critical"}
    with running(tmp_path, _objects(backends, config, snip={"configuration-snippet": snippet})) as edge:
        assert edge.engine.verdict(Key("Ingress", "default", "snip")) is None
        found, _, body = edge.get("snip.example.com", path, {"X-A": "1"})
        assert found == status
        if status == 200:
            assert json.loads(body)["path"] == "/new/7"


def test_a_request_without_the_key_of_a_limit_is_not_counted(tmp_path: Path, backends: Echoes) -> None:
    config = {"limit-conn-zone-variable": "$http_x_api_key"}
    limit = {"limit-rps": "1", "limit-burst-multiplier": "1"}
    with running(tmp_path, _objects(backends, config, limited=limit), expected=["limiting requests"]) as edge:
        assert {edge.get("limited.example.com")[0] for _ in range(8)} == {200}
        assert {edge.get("limited.example.com", headers={"X-Api-Key": "k"})[0] for _ in range(8)} == {200, 503}


def test_patterns_have_a_case_unless_they_say_otherwise(tmp_path: Path, backends: Echoes) -> None:
    with running(tmp_path, _objects(backends, {"block-user-agents": "~Bad,~*evil,Exactly"}, web={})) as edge:
        agents = {"Bad": 403, "bad": 200, "EVIL": 403, "exactly": 403, "exactly not": 200}
        assert {a: edge.get("web.example.com", headers={"User-Agent": a})[0] for a in agents} == agents


def test_a_client_without_a_cookie_gets_one_of_an_endpoint_that_answers(tmp_path: Path, backends: Echoes) -> None:
    objects = _objects(backends, {}, sticky={"affinity": "cookie"})
    objects[1:3] = service("web", [backends.ports["web"], 1])
    for slice_ in objects:
        if slice_["kind"] == "Service" and slice_["metadata"]["name"] == "web":
            slice_["spec"]["ports"] = [{"port": 80}]
    with running(tmp_path, objects, expected=[REFUSED]) as edge:
        for _ in range(12):
            status, headers, _ = edge.get("sticky.example.com")
            assert status == 200
            cookie = headers["set-cookie"].split(";")[0]
            assert edge.get("sticky.example.com", headers={"Cookie": cookie})[0] == 200


def test_who_is_redirected_or_refused_is_logged_with_all_names(tmp_path: Path, backends: Echoes) -> None:
    config = {"log-format-upstream": "$status [$proxy_upstream_name] $namespace/$ingress_name/$service_name"}
    objects = _objects(backends, config, moved={"permanent-redirect": "https://a.example"}, forced={"force-ssl-redirect": "true"})
    objects.append(ingress("empty", {"empty.example.com": {"/": "nowhere"}}))
    with running(tmp_path, objects) as edge:
        for host in ("moved", "forced", "empty"):
            edge.get(f"{host}.example.com")
        assert edge.access_log() == [
            "301 [default-web-80] default/moved/web",
            "308 [default-web-80] default/forced/web",
            "503 [default-nowhere-80] default/empty/nowhere",
        ]


def test_the_catch_all_redirects_and_rewrites_nothing(tmp_path: Path, backends: Echoes) -> None:
    """Behaviours 1.3: who takes over the default location brings all annotations but those."""
    everything = {"permanent-redirect": "https://a.example", "force-ssl-redirect": "true", "app-root": "/x", "rewrite-target": "/y"}
    made = ingress("all", {}, annotations=everything | {"upstream-vhost": "kept.example"})
    made["spec"] = {"ingressClassName": "nginx", "defaultBackend": {"service": {"name": "web", "port": {"number": 80}}}}
    with running(tmp_path, [*_objects(backends, {}), made]) as edge:
        seen = edge.seen("nobody.example.com", "/a")
        assert (seen["path"], seen["headers"]["host"]) == ("/a", "kept.example")
        assert edge.get("nobody.example.com")[0] == 200


def test_errors_of_the_global_list_go_to_the_global_backend(tmp_path: Path, backends: Echoes) -> None:
    """Behaviours 1.8; and the ConfigMap's word on interception is about its own list only."""
    config = {"custom-http-errors": "404", "disable-proxy-intercept-errors": "true"}
    own = {"custom-http-errors": "418", "default-backend": "other"}
    objects = _objects(backends, {"custom-http-errors": "404"}, inherits={"default-backend": "web"})
    with running(tmp_path / "a", objects, flags=Flags(default_backend_service="default/other")) as edge:
        assert edge.seen("inherits.example.com", "/?status=404")["name"] == "other"
    with running(
        tmp_path / "b", _objects(backends, config, own=own, none={}), flags=Flags(default_backend_service="default/other")
    ) as edge:
        assert edge.seen("own.example.com", "/?status=418")["name"] == "other"
        assert edge.get("none.example.com", "/?status=404")[0] == 404


def test_an_auth_service_may_say_much(tmp_path: Path, backends: Echoes) -> None:
    url = f"http://127.0.0.1:{backends.ports['other']}/?h-X-Token={'t' * 3930}"
    with running(tmp_path, _objects(backends, {}, ask={"auth-url": url, "auth-response-headers": "X-Token"})) as edge:
        assert edge.seen("ask.example.com")["headers"]["x-token"] == "t" * 3930


def test_details_of_what_is_not_asked_for_close_nothing(tmp_path: Path, backends: Echoes) -> None:
    annotations = {"auth-realm": "Staging (only)", "auth-method": "get", "auth-response-headers": "X User", "auth-always-set-cookie": "yes"}
    with running(tmp_path, _objects(backends, {}, web=annotations)) as edge:
        assert edge.get("web.example.com")[0] == 200
        verdict = edge.engine.verdict(Key("Ingress", "default", "web"))
        assert verdict is not None
        assert Counter((p.severity, "without auth-" in p.message) for p in verdict.problems) == {("warning", True): 4}


def test_the_backends_server_header_may_pass(tmp_path: Path, backends: Echoes) -> None:
    config = {"allow-backend-server-header": "true", "server-tokens": "true"}
    with running(tmp_path, _objects(backends, config, web={})) as edge:
        assert edge.get("web.example.com", "/?h-Server=mine")[1]["server"] == "mine"
