"""Who may pass: passwords, an external service, sign-in, address lists, and their combination (behaviours 8, 9)."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import pytest

from tests.support.backends import Echoes, echoes
from tests.support.edge import Edge, running
from tests.support.objects import ingress, secret, service

pytestmark = pytest.mark.nginx

EXPECTED = (
    r"auth request unexpected status: (302|404|500|502) while sending to client",  # the auth service's own doing here
    r"connect\(\) failed \(111: Connection refused\) while connecting to upstream, .*subrequest: \"/\.sluice/auth\"",
    r'user "[^"]*": password mismatch',
    r'user "[^"]*" was not found',
)

# `myPassword`, as Apache's documentation shows what htpasswd writes, and as openssl passwd writes it. nginx itself knows apr1, {SHA}, {SSHA}
# and {PLAIN}; for the rest it asks the system's crypt. Debian's (libxcrypt) knows bcrypt, SHA-256, SHA-512, yescrypt, MD5 and DES.
HASHES = {
    "bcrypt": "$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC",  # htpasswd -B
    "apr1": "$apr1$r31.....$HqJZimcKQFAMYayBlzkrA/",  # htpasswd -m, its default
    "sha": "{SHA}VBPuJHI7uixaa6LQGWx4s+5GKNE=",  # htpasswd -s
    "ssha": "{SSHA}" + base64.b64encode(bytes.fromhex("90bdfefed21b67ce833a131a73e178bbc946dbbe") + b"salt").decode(),
    "des": "rqXexS6ZhobKA",  # htpasswd -d
    "sha256": "$5$abcdefgh$Dj7Hs.c2KPj.A3thTJcMTEHg3jDYvo4r9p7V1GGMvlA",  # openssl passwd -5
    "sha512": "$6$abcdefgh$vd/23X3cwvfSktK8g8ZrCYdcWYlKD1KOv4Gc9wAngWRrkUauykD1U1wxHuTWE0sLAQyZJhLvoMoXOvwt3tk020",  # openssl passwd -6
    "yescrypt": "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$mPRe/61VxTps1wMzvJAbmZwcJQf594V7W1XpKuyeFF8",  # mkpasswd
}


@pytest.fixture(scope="module")
def backends() -> Iterator[Echoes]:
    with echoes("web", "auth") as found:
        yield found


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory, backends: Echoes) -> Iterator[Edge]:
    web, users = {"/": "web"}, {"auth-type": "basic", "auth-secret": "users"}
    check = f"http://127.0.0.1:{backends.ports['auth']}/check"
    lines = [f"{name}:{hashed}" for name, hashed in HASHES.items()]
    plain = {
        "basic": users | {"auth-realm": "members only"},
        "mapped": {"auth-type": "basic", "auth-secret": "map", "auth-secret-type": "auth-map"},
        "nosecret": {"auth-type": "basic", "auth-secret": "nobody"},
        "nokey": {"auth-type": "basic", "auth-secret": "map"},
        "ask": {"auth-url": check + "?u=$host", "auth-response-headers": "X-User,X-Missing"},
        "dead": {"auth-url": "http://127.0.0.1:1/check"},
        "svcask": {"auth-url": "http://auth.default.svc.cluster.local/check"},
        "signin": {"auth-url": check, "auth-signin": "https://login.example.com/start", "auth-method": "POST"},
        "param": {"auth-url": check, "auth-signin": "https://login.example.com/?a=b", "auth-signin-redirect-param": "next"},
        "cookies": {"auth-url": check, "auth-always-set-cookie": "true"},
        "allow": {"whitelist-source-range": "10.0.0.0/8,::1"},
        "allowed": {"allowlist-source-range": "127.0.0.0/8"},
        "deny": {"denylist-source-range": "127.0.0.1"},
        "both": {"denylist-source-range": "127.0.0.1", "allowlist-source-range": "127.0.0.0/8"},
        "all-of": users | {"allowlist-source-range": "127.0.0.0/8"},
        "none-of": users | {"allowlist-source-range": "10.0.0.0/8"},
        "any-address": users | {"allowlist-source-range": "127.0.0.0/8", "satisfy": "any"},
        "any-password": users | {"allowlist-source-range": "10.0.0.0/8", "satisfy": "any"},
    }
    objects = [
        *service("web", [backends.ports["web"]]),
        *service("auth", [backends.ports["auth"]]),
        secret("users", {"auth": "\n".join(["# as htpasswd writes it", *lines, ""])}),
        secret("map", HASHES),
        *(ingress(name, {f"{name}.example.com": web}, annotations=said) for name, said in plain.items()),
    ]
    with running(tmp_path_factory.mktemp("edge"), objects, expected=EXPECTED) as made:
        yield made


def _code(edge: Edge, host: str, user: str, password: str) -> str:
    return edge.curl("-u", f"{user}:{password}", "-o", "/dev/null", "-w", "%{http_code}", host=host).stdout


@pytest.mark.parametrize("host", ["basic.example.com", "mapped.example.com"])
@pytest.mark.parametrize("user", HASHES)
def test_passwords_of_every_format(edge: Edge, host: str, user: str) -> None:
    assert _code(edge, host, user, "myPassword") == "200"
    assert _code(edge, host, user, "myPasswOrd") == "401"
    assert _code(edge, host, user, "") == "401"
    assert _code(edge, host, user, HASHES[user]) == "401"


def test_passwords_are_asked_for_and_not_passed_on(edge: Edge) -> None:
    status, headers, _ = edge.get("basic.example.com")
    assert (status, headers["www-authenticate"]) == (401, 'Basic realm="members only"')
    status, headers, _ = edge.get("mapped.example.com")
    assert (status, headers["www-authenticate"]) == (401, 'Basic realm=""')
    assert _code(edge, "basic.example.com", "nobody", "myPassword") == "401"
    answer = json.loads(edge.curl("-u", "bcrypt:myPassword", host="basic.example.com").stdout)
    assert "authorization" not in answer["headers"]


@pytest.mark.parametrize("host", ["nosecret.example.com", "nokey.example.com"])
def test_without_its_secret_a_route_is_closed(edge: Edge, host: str) -> None:
    assert edge.get(host)[0] == 503
    assert _code(edge, host, "bcrypt", "myPassword") == "503"


# --- an external service


@pytest.mark.parametrize(("said", "status"), [("401", 401), ("403", 403), ("404", 500), ("302", 500), ("500", 500)])
def test_what_the_auth_service_answers(edge: Edge, said: str, status: int) -> None:
    found, headers, _ = edge.get("ask.example.com", "/", {"X-Fail": said})
    assert found == status
    assert headers.get("www-authenticate") == ("Token" if status == 401 else None)


def test_an_auth_service_that_does_not_answer_closes_the_route(edge: Edge) -> None:
    assert edge.get("dead.example.com", "/", {"X-Token": "good"})[0] == 500


def test_what_the_auth_service_is_asked_and_what_the_backend_learns(edge: Edge, backends: Echoes) -> None:
    sent = {"X-Token": "good", "X-User": "mallory", "X-Missing": "forged", "X-Original-URL": "forged", "Cookie": "a=b"}
    seen = edge.seen("ask.example.com", "/p?q", sent)
    assert seen["headers"]["x-user"] == "alice"
    assert "x-missing" not in seen["headers"]
    asked = backends.asked[-1]
    assert (asked["method"], asked["path"]) == ("GET", "/check?u=ask.example.com")
    expected = {
        "host": "127.0.0.1",
        "x-original-url": "http://ask.example.com/p?q",
        "x-original-method": "GET",
        "x-sent-from": "nginx-ingress-controller",
        "x-real-ip": "127.0.0.1",
        "x-auth-request-redirect": "/p?q",
        "cookie": "a=b",
        "x-original-uri": None,
        "x-forwarded-proto": None,
    }
    assert {k: asked["headers"].get(k) for k in expected} == expected


def test_a_body_goes_to_the_backend_and_not_to_the_auth_service(edge: Edge, backends: Echoes) -> None:
    seen = json.loads(edge.curl("-H", "X-Token: good", "-d", "x" * 5000, host="ask.example.com").stdout)
    assert (seen["method"], seen["bytes"]) == ("POST", 5000)
    assert (backends.asked[-1]["method"], backends.asked[-1]["bytes"]) == ("GET", 0)
    assert backends.asked[-1]["headers"]["x-original-method"] == "POST"


def test_cookies_of_the_auth_service_reach_the_client(edge: Edge) -> None:
    good = {"X-Token": "good"}
    assert "auth=1" in edge.get("ask.example.com", "/", good)[1]["set-cookie"]
    assert "set-cookie" not in edge.get("ask.example.com", "/?status=404", good)[1]
    assert "auth=1" in edge.get("cookies.example.com", "/?status=404", good)[1]["set-cookie"]
    both = edge.curl("-i", "-H", "X-Token: good", host="ask.example.com", path="/?h-Set-Cookie=own=2").stdout
    assert {"auth=1", "own=2"} == {x.split(":")[1].strip() for x in both.splitlines() if x.lower().startswith("set-cookie:")}


def test_a_service_of_the_cluster(edge: Edge) -> None:
    assert edge.get("svcask.example.com")[0] == 401
    assert edge.get("svcask.example.com", "/", {"X-Token": "good"})[0] == 200


def test_signin(edge: Edge, backends: Echoes) -> None:
    status, headers, _ = edge.get("signin.example.com", "/p?q=1")
    assert (status, headers["location"]) == (302, "https://login.example.com/start?rd=http://signin.example.com%2Fp%3Fq%3D1")
    asked = backends.asked[-1]
    assert (asked["method"], asked["headers"]["x-original-uri"], asked["headers"]["x-scheme"]) == ("POST", "/p?q=1", "http")
    assert edge.get("signin.example.com", "/", {"X-Token": "good"})[0] == 200
    assert edge.get("signin.example.com", "/", {"X-Fail": "403"})[0] == 403
    assert edge.get("param.example.com", "/")[1]["location"] == "https://login.example.com/?a=b&next=http://param.example.com%2F"


# --- addresses, and both together


@pytest.mark.parametrize(
    ("host", "alone", "with_password"),
    [
        ("allow", 403, "403"),
        ("allowed", 200, "200"),
        ("deny", 403, "403"),
        ("both", 403, "403"),
        ("all-of", 401, "200"),
        ("none-of", 403, "403"),
        ("any-address", 401, "200"),  # satisfy is not honoured yet: both must agree, which opens nothing
        ("any-password", 403, "403"),
    ],
)
def test_addresses_and_passwords(edge: Edge, host: str, alone: int, with_password: str) -> None:
    assert edge.get(f"{host}.example.com")[0] == alone
    assert _code(edge, f"{host}.example.com", "apr1", "myPassword") == with_password
