"""What keeps clients out for everybody, or is not honoured yet and must not leave routes open (behaviours 8, security invariant I-12)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.shared.contracts.objects import Key
from services.shared.flags import Flags
from tests.support.backends import Echoes, echoes
from tests.support.edge import Edge, running
from tests.support.objects import config_map, ingress, service

pytestmark = pytest.mark.nginx

EXPECTED = (r"auth request unexpected status: (500|502) while sending", r"connect\(\) failed \(111: Connection refused\)")
GOOD = {"X-Token": "good"}


@pytest.fixture(scope="module")
def backends() -> Iterator[Echoes]:
    with echoes("web", "auth", "errors") as found:
        yield found


def _objects(backends: Echoes, config: dict[str, str], **annotations: dict[str, str]) -> list[dict[str, Any]]:
    made = [*service("web", [backends.ports["web"]]), *service("errors", [backends.ports["errors"]]), config_map(config)]
    return [*made, *(ingress(name, {f"{name}.example.com": {"/": "web"}}, annotations=a) for name, a in annotations.items())]


def test_global_auth_is_asked_unless_an_ingress_says_otherwise(tmp_path: Path, backends: Echoes) -> None:
    check = f"http://127.0.0.1:{backends.ports['auth']}/check"
    config = {
        "global-auth-url": check,
        "global-auth-method": "POST",
        "global-auth-response-headers": "X-User",
        "global-auth-signin": "https://login.example.com/start",
        "no-auth-locations": "/open",
    }
    own = {"auth-url": check + "?own"}
    objects = _objects(backends, config, all={}, out={"enable-global-auth": "false"}, own=own)
    objects.append(ingress("open", {"all.example.com": {"/open": "web"}}))
    with running(tmp_path, objects) as edge:
        status, headers, _ = edge.get("all.example.com", "/a?b=c")
        assert (status, headers["location"].split("?")[0]) == (302, "https://login.example.com/start")
        seen = edge.seen("all.example.com", "/a", GOOD)
        assert seen["headers"]["x-user"] == "alice"
        assert backends.asked[-1]["method"] == "POST"
        assert edge.get("all.example.com", "/open")[0] == 200
        assert edge.get("out.example.com")[0] == 200
        assert edge.get("own.example.com")[0] == 401, "its own, without the global sign-in"
        assert edge.seen("own.example.com", headers=GOOD)["name"] == "web"
        assert backends.asked[-1]["path"] == "/check?own"
        assert edge.get("nobody.example.com")[0] == 404, "the bare default server is not guarded"


@pytest.mark.parametrize("key", ["global-auth-url", "whitelist-source-range", "denylist-source-range", "block-cidrs"])
def test_a_guard_of_all_routes_that_cannot_be_used_closes_them(tmp_path: Path, backends: Echoes, key: str) -> None:
    with running(tmp_path, _objects(backends, {key: "everybody !"}, web={})) as edge:
        assert edge.get("web.example.com")[0] == 503
        verdict = edge.engine.verdict(Key("ConfigMap", "ingress-nginx", "ingress-nginx-controller"))
        assert verdict is not None
        assert "all routes answer 503" in verdict.problems[0].message


@pytest.mark.parametrize(
    "annotations",
    [
        {"auth-tls-secret": "default/ca", "auth-tls-verify-client": "on"},
        {"auth-tls-match-cn": "CN=client"},
        {"proxy-ssl-secret": "default/ca", "proxy-ssl-verify": "on"},
    ],
)
def test_a_guard_that_is_not_honoured_yet_closes_its_routes(tmp_path: Path, backends: Echoes, annotations: dict[str, str]) -> None:
    with running(tmp_path, _objects(backends, {}, guarded=annotations, other={"proxy-ssl-verify": "off"})) as edge:
        assert edge.get("guarded.example.com")[0] == 503
        assert edge.get("other.example.com")[0] == 200
        verdict = edge.engine.verdict(Key("Ingress", "default", "guarded"))
        assert verdict is not None
        assert any(p.severity == "error" and "503" in p.message for p in verdict.problems)


def test_signing_in_goes_before_an_error_page_for_401(tmp_path: Path, backends: Echoes) -> None:
    check = f"http://127.0.0.1:{backends.ports['auth']}/check"
    both = {"auth-url": check, "auth-signin": "https://login.example.com", "custom-http-errors": "401,404", "default-backend": "errors"}
    with running(tmp_path, _objects(backends, {}, both=both)) as edge:
        status, headers, _ = edge.get("both.example.com")
        assert (status, headers["location"].split("?")[0]) == (302, "https://login.example.com")
        assert edge.seen("both.example.com", "/?status=404", GOOD)["name"] == "errors"


def test_a_dead_endpoint_of_the_auth_service_is_passed_over(tmp_path: Path, backends: Echoes) -> None:
    objects = _objects(backends, {}, ask={"auth-url": "http://auth.default.svc/check"})
    objects += service("auth", [backends.ports["auth"], 1])
    for slice_ in objects:
        if slice_["kind"] == "Service" and slice_["metadata"]["name"] == "auth":
            slice_["spec"]["ports"][0]["port"] = 80
    with running(tmp_path, objects, expected=EXPECTED) as edge:
        assert {edge.get("ask.example.com", headers=GOOD)[0] for _ in range(12)} == {200}


def test_a_canary_whose_name_does_not_resolve_is_never_chosen(tmp_path: Path, backends: Echoes) -> None:
    nowhere = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "nowhere", "namespace": "default"},
        "spec": {"type": "ExternalName", "externalName": "nowhere.invalid", "ports": [{"port": 80}]},
    }
    objects = [*_objects(backends, {}, web={}), nowhere]
    objects.append(ingress("canary", {"web.example.com": {"/": "nowhere"}}, annotations={"canary": "true", "canary-weight": "100"}))
    with running(tmp_path, objects) as edge:
        assert {edge.get("web.example.com")[0] for _ in range(6)} == {200}


def test_connections_are_limited_whatever_the_names_are(tmp_path: Path, backends: Echoes) -> None:
    name = "n" * 232
    objects = [
        *service("web", [backends.ports["web"]]),
        ingress(name, {"long.example.com": {"/": "web"}}, annotations={"limit-connections": "1"}),
    ]
    with running(tmp_path, objects, expected=["limiting connections"]) as edge:
        assert sorted(asyncio.run(_at_once(edge, "long.example.com", 4))) == [200, 503, 503, 503]


async def _at_once(edge: Edge, host: str, count: int) -> list[int]:
    answers = await asyncio.gather(*(asyncio.to_thread(edge.get, host, "/?sleep=1") for _ in range(count)))
    return [status for status, _, _ in answers]


def test_an_error_page_for_a_large_upload_does_not_wait_for_it(tmp_path: Path, backends: Echoes) -> None:
    annotations = {"custom-http-errors": "503", "default-backend": "errors", "proxy-request-buffering": "off", "proxy-body-size": "0"}
    with running(tmp_path, _objects(backends, {}, up=annotations)) as edge:
        (tmp_path / "body").write_bytes(b"x" * 5_000_000)
        done = edge.curl("--data-binary", f"@{tmp_path / 'body'}", "-w", "%{http_code}", host="up.example.com", path="/?status=503")
        assert done.stdout.endswith("200"), done
        assert '"name": "errors"' in done.stdout
        assert '"bytes": 0' in done.stdout


def test_who_is_blocked_gets_the_error_page_for_it(tmp_path: Path, backends: Echoes) -> None:
    objects = _objects(backends, {"block-user-agents": "evil", "custom-http-errors": "403"}, web={})
    with running(tmp_path, objects, flags=Flags(default_backend_service="default/errors")) as edge:
        seen = edge.seen("web.example.com", headers={"User-Agent": "evil"})
        assert (seen["name"], seen["headers"]["x-code"]) == ("errors", "403")


def test_the_original_forwarded_for_is_that_of_the_configured_header(tmp_path: Path, backends: Echoes) -> None:
    with running(tmp_path, _objects(backends, {"forwarded-for-header": "CF-Connecting-IP"}, web={})) as edge:
        headers = edge.seen("web.example.com", headers={"CF-Connecting-IP": "192.0.2.7", "X-Forwarded-For": "192.0.2.8"})["headers"]
        assert headers["x-original-forwarded-for"] == "192.0.2.7"
