"""Cookie affinity: who gets a cookie, which, and where it leads (behaviours 6, 7)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.backends import Echoes, echoes
from tests.support.edge import Edge, running
from tests.support.nats import free_port
from tests.support.objects import ingress, service

pytestmark = pytest.mark.nginx

NAMES = ("a", "b", "c", "d")
EXPECTED = (r"connect\(\) failed \(111: Connection refused\) while connecting to upstream",)
ATTRIBUTES = {
    "session-cookie-expires": "3600",
    "session-cookie-max-age": "7200",
    "session-cookie-domain": "example.com",
    "session-cookie-path": "/all",
    "session-cookie-samesite": "Lax",
    "session-cookie-secure": "true",
}


@pytest.fixture(scope="module")
def backends() -> Iterator[Echoes]:
    with echoes(*NAMES, "new") as found:
        yield found


@pytest.fixture(scope="module")
def dead() -> int:
    return free_port()


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory, backends: Echoes, dead: int) -> Iterator[Edge]:
    cookie, new = {"affinity": "cookie"}, {"canary": "true", "canary-by-header": "X-C"}
    ports = [backends.ports[n] for n in NAMES]
    objects = []
    for name in ("balanced", "persistent", "attributes", "shared"):
        objects += service(name, ports)
    for name in ("stays", "moves"):
        objects += service(name, [dead, ports[0], ports[1]])
    objects += [
        *service("new", [backends.ports["new"]]),
        ingress("balanced", {"balanced.example.com": {"/": "balanced"}}, annotations=cookie | {"session-cookie-name": "route"}),
        ingress("persistent", {"persistent.example.com": {"/p": "persistent"}}, annotations=cookie | {"affinity-mode": "persistent"}),
        ingress("attributes", {"attributes.example.com": {"/": "attributes"}}, annotations=cookie | ATTRIBUTES),
        ingress("shared", {"shared.example.com": {"/": "shared"}}, annotations=cookie),
        ingress("shared-other", {"other.example.com": {"/": "shared"}}),
        ingress("shared-canary", {"shared.example.com": {"/": "new"}}, annotations={"canary": "true", "canary-by-header": "X-C"}),
        *service("left", ports),
        ingress("left", {"left.example.com": {"/": "left"}}, annotations=cookie),
        *service("right", [backends.ports["new"], backends.ports["a"]]),
        ingress("left-canary", {"left.example.com": {"/": "right"}}, annotations=new | {"affinity-canary-behavior": "sticky"}),
        *service("legacy", ports),
        ingress("legacy", {"legacy.example.com": {"/": "legacy"}}, annotations=cookie),
        *service("legacy-new", [backends.ports["new"], backends.ports["a"]]),
        ingress("legacy-canary", {"legacy.example.com": {"/": "legacy-new"}}, annotations=new | {"affinity-canary-behavior": "legacy"}),
        ingress("stays", {"stays.example.com": {"/": "stays"}}, annotations=cookie | {"affinity-mode": "persistent"}),
        ingress(
            "moves",
            {"moves.example.com": {"/": "moves"}},
            annotations=cookie | {"affinity-mode": "persistent", "session-cookie-change-on-failure": "true"},
        ),
    ]
    with running(tmp_path_factory.mktemp("edge"), objects, expected=EXPECTED) as made:
        yield made


def _start(edge: Edge, host: str, path: str = "/") -> tuple[str, str]:
    """A new client: (the endpoint, the cookie with its attributes)."""
    status, headers, body = edge.get(host, path)
    assert status == 200
    return json.loads(body)["name"], headers["set-cookie"]


def _again(edge: Edge, host: str, cookie: str, path: str = "/", count: int = 6) -> set[str]:
    """Where a client with this cookie is sent; no new one is set."""
    out = set()
    for _ in range(count):
        status, headers, body = edge.get(host, path, {"Cookie": f"x=1; {cookie.split(';')[0]}; y=2"})
        assert (status, headers.get("set-cookie")) == (200, None)
        out.add(json.loads(body)["name"])
    return out


def _backend_id(service_name: str) -> str:
    name = f"default-{service_name}-80"
    return hashlib.md5((hashlib.md5(name.encode()).hexdigest() + name).encode()).hexdigest()


def _key(service_name: str, port: int) -> str:
    return hashlib.md5(f"default-{service_name}-80127.0.0.1:{port}".encode()).hexdigest()


def test_balanced_clients_stay_and_are_spread(edge: Edge) -> None:
    clients = [_start(edge, "balanced.example.com") for _ in range(24)]
    assert {name for name, _ in clients} == set(NAMES)
    for name, cookie in clients:
        assert re.fullmatch(rf"route=\d+\.\d+\.\d+\.\d+\|{_backend_id('balanced')}; Path=/; HttpOnly", cookie), cookie
        assert _again(edge, "balanced.example.com", cookie, count=3) == {name}


def test_clients_of_one_endpoint_have_a_cookie_too_and_stay_on_their_side_of_a_canary(tmp_path: Path, backends: Echoes) -> None:
    objects = [
        *service("one", [backends.ports["a"]]),
        ingress("one", {"one.example.com": {"/": "one"}}, annotations={"affinity": "cookie"}),
        *service("new", [backends.ports["new"]]),
        ingress("one-canary", {"one.example.com": {"/": "new"}}, annotations={"canary": "true", "canary-weight": "50"}),
    ]
    with running(tmp_path, objects) as edge:
        clients = [_start(edge, "one.example.com") for _ in range(24)]
        assert {name for name, _ in clients} == {"a", "new"}
        for name, cookie in clients:
            assert _again(edge, "one.example.com", cookie, count=4) == {name}


def test_persistent_clients_stay_by_a_cookie_that_names_their_endpoint(edge: Edge, backends: Echoes) -> None:
    clients = [_start(edge, "persistent.example.com", "/p") for _ in range(24)]
    assert {name for name, _ in clients} == set(NAMES)
    for name, cookie in clients:
        expected = f"INGRESSCOOKIE={_key('persistent', backends.ports[name])}|{_backend_id('persistent')}; Path=/p; HttpOnly"
        assert cookie == expected
        assert _again(edge, "persistent.example.com", cookie, "/p", count=3) == {name}


@pytest.mark.parametrize("value", ["nonsense", "a|b", "|", f"x|{_backend_id('persistent')}", "%00|%00"])
def test_a_cookie_that_leads_nowhere_is_replaced(edge: Edge, value: str) -> None:
    status, headers, _ = edge.get("persistent.example.com", "/p", {"Cookie": f"INGRESSCOOKIE={value}"})
    assert status == 200
    assert headers["set-cookie"].endswith("; Path=/p; HttpOnly")


def test_a_cookie_of_another_backend_says_nothing(edge: Edge, backends: Echoes) -> None:
    """Although its key is one of an endpoint here."""
    value = f"{_key('persistent', backends.ports['a'])}|{_backend_id('balanced')}"
    answers = [edge.get("persistent.example.com", "/p", {"Cookie": f"INGRESSCOOKIE={value}"}) for _ in range(16)]
    assert all("set-cookie" in headers for _, headers, _ in answers)
    assert len({json.loads(body)["name"] for _, _, body in answers}) > 1


def test_every_attribute_in_its_order(edge: Edge) -> None:
    _, cookie = _start(edge, "attributes.example.com")
    date = r"\w{3}, \d\d-\w{3}-\d\d \d\d:\d\d:\d\d GMT"
    pattern = rf"INGRESSCOOKIE=[^;]+; Expires={date}; Max-Age=7200; Domain=example\.com; Path=/all; Secure; HttpOnly; SameSite=Lax"
    assert re.fullmatch(pattern, cookie), cookie


def test_only_the_ingress_that_asked_sets_a_cookie(edge: Edge) -> None:
    assert "set-cookie" in edge.get("shared.example.com")[1]
    assert "set-cookie" not in edge.get("other.example.com")[1]


def test_a_client_of_the_main_side_is_not_moved_to_a_canary(edge: Edge) -> None:
    assert edge.seen("shared.example.com", "/", {"X-C": "always"})["name"] == "new"
    name, cookie = _start(edge, "shared.example.com")
    sent = {"Cookie": cookie.split(";")[0], "X-C": "always"}
    assert edge.seen("shared.example.com", "/", sent)["name"] == name


def test_a_client_of_a_sticky_canary_stays_there_without_the_header(edge: Edge) -> None:
    status, headers, body = edge.get("left.example.com", "/", {"X-C": "always"})
    assert (status, headers["set-cookie"].split("|")[1]) == (200, f"{_backend_id('right')}; Path=/; HttpOnly")
    assert _again(edge, "left.example.com", headers["set-cookie"], count=12) == {json.loads(body)["name"]}


def test_a_legacy_canary_sets_no_cookie(edge: Edge) -> None:
    assert "set-cookie" not in edge.get("legacy.example.com", "/", {"X-C": "always"})[1]
    name, cookie = _start(edge, "legacy.example.com")
    assert edge.seen("legacy.example.com", "/", {"Cookie": cookie.split(";")[0], "X-C": "always"})["name"] == name


def test_over_https_a_cookie_is_secure(edge: Edge) -> None:
    assert edge.get("balanced.example.com", tls=True)[1]["set-cookie"].endswith("; Path=/; Secure; HttpOnly")


def test_an_endpoint_that_fails_keeps_its_client_unless_told_otherwise(edge: Edge, dead: int) -> None:
    def lost(name: str) -> dict[str, str]:
        return {"Cookie": f"INGRESSCOOKIE={_key(name, dead)}|{_backend_id(name)}"}

    assert edge.get("stays.example.com", "/", lost("stays"))[0] == 502
    status, headers, body = edge.get("moves.example.com", "/", lost("moves"))
    assert status == 200
    assert _again(edge, "moves.example.com", headers["set-cookie"]) == {json.loads(body)["name"]}


def test_persistent_clients_stay_when_endpoints_come_and_go(edge: Edge, backends: Echoes) -> None:
    clients = [_start(edge, "persistent.example.com", "/p") for _ in range(12)]
    gone, stays = clients[0], [c for c in clients if c[0] != clients[0][0]]
    slice_of = next(o for o in service("persistent", [backends.ports[gone[0]]]) if o["kind"] == "EndpointSlice")
    edge.update(slice_of | {"endpoints": []})
    for name, cookie in stays:
        assert _again(edge, "persistent.example.com", cookie, "/p", count=2) == {name}
    status, headers, body = edge.get("persistent.example.com", "/p", {"Cookie": gone[1].split(";")[0]})
    assert status == 200
    assert json.loads(body)["name"] != gone[0]
    assert "set-cookie" in headers
    edge.update(slice_of)
    assert _again(edge, "persistent.example.com", gone[1], "/p") == {gone[0]}
