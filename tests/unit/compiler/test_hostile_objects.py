"""Anyone who may create an Ingress is a potential attacker: no text of theirs becomes a directive, and nobody else is disturbed."""

from __future__ import annotations

import json
import tempfile
from typing import Any

import crossplane
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.applier.gate import check_bundle
from services.compiler.annotations.families import ANNOTATIONS
from services.compiler.render import ENVIRONMENT, UntypedValue
from services.shared.contracts.version import PolicyBundle
from services.shared.nginxtext.strict import Directive, parse
from tests.support.compiling import engine_of, small_world, upsert
from tests.support.objects import config_map, ingress

ATTACKS = [
    'x"; return 200 "pwned',
    "x; load_module /tmp/evil.so",
    "x}\nserver { listen 1234; }\n#",
    "${jndi}",
    "$http_host",
    "a\nb",
    "a\r\nSet-Cookie: x=1",
    "\x00",
    "~^(a+)+$",
    "(*NO_START_OPT)a",
    "unix:/run/x.sock",
    "engine:pkcs11:x",
    "a" * 5000,
    "\u2028",
    "\x0b; alias /etc/;",
    "#",
    "\\",
    '\\"',
    "{{ 7 * 7 }}",
    "{% for x in y %}",
    "../../etc/passwd",
    "@p_0000000000000000",
    "include /etc/passwd;",
    "off",
]


def _names(directives: tuple[Directive, ...]) -> list[tuple[str, int]]:
    return [(d.name, len(d.args)) for d in directives]


def _seen_by_crossplane(text: str) -> list[tuple[str, int]]:
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
        file.write(text)
        file.flush()
        found = crossplane.parse(file.name, single=True, check_ctx=False, check_args=False, comments=False)
    assert not found["errors"], found["errors"]
    return [(d["directive"], len(d["args"])) for d in found["config"][0]["parsed"]]


def _prove(bundle: PolicyBundle) -> None:
    """Both readers see the same directives, and only ones that templates contain."""
    assert check_bundle(bundle) == []
    for policy in bundle.policies:
        if policy.scope == "location":
            assert _names(parse(policy.text)) == _seen_by_crossplane(policy.text)
            assert policy.text.count("proxy_pass ") + policy.text.count("grpc_pass ") == 1


hostile = st.one_of(st.sampled_from(ATTACKS), st.text(max_size=60), st.text(st.characters(max_codepoint=127), max_size=60))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(ANNOTATIONS)), hostile, hostile)
@example("auth-realm", "off", "x")
def test_any_text_in_any_annotation(name: str, value: str, path: str) -> None:
    annotations = {name: value, "auth-type": "basic", "enable-cors": "true"} if name != "configuration-snippet" else {name: value}
    innocent = small_world(6)
    before = engine_of(innocent)
    attack = upsert(ingress("evil", {"evil.example.com": {"/" + path: "web-0"}}, annotations=annotations, namespace="evil"))

    engine = engine_of([*innocent, attack])

    _prove(engine.bundle)
    assert {k: v for k, v in before.rows.items() if k.startswith("h/") and k != "h/evil.example.com"}.items() <= engine.rows.items()


@settings(max_examples=200, deadline=None)
@given(hostile, hostile, hostile)
def test_any_text_in_hosts_services_and_secrets(host: str, service: str, secret: str) -> None:
    attack = ingress("evil", {host: {"/": service}}, tls={secret: [host]}, namespace="evil")
    innocent = small_world(6)
    before = engine_of(innocent)

    engine = engine_of([*innocent, upsert(attack)])

    _prove(engine.bundle)
    assert {k: v for k, v in before.rows.items() if k.startswith("h/h")}.items() <= engine.rows.items()


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["log-format-upstream", "ssl-ciphers", "hide-headers", "proxy-body-size", "gzip-types", "block-user-agents",
                        "limit-conn-zone-variable", "default-type", "large-client-header-buffers", "hsts-max-age"]), hostile)  # fmt: skip
def test_any_text_in_the_config_map(key: str, value: str) -> None:
    engine = engine_of([*small_world(2), upsert(config_map({key: value}))])

    _prove(engine.bundle)
    for policy in engine.bundle.policies:
        parse(policy.text)


@pytest.mark.parametrize("value", ["text", 5, None, True, ["x"], b"x"])
def test_a_template_can_emit_nothing_but_arguments(value: Any) -> None:
    with pytest.raises(UntypedValue):
        ENVIRONMENT.from_string("proxy_pass {{ value }};").render(value=value)
    with pytest.raises(UntypedValue):
        ENVIRONMENT.from_string('{{ "proxy_pass x" }};').render()


def test_the_realm_off_does_not_switch_authentication_off() -> None:
    closed = ingress("evil", {"a.example.com": {"/": "web-0"}}, annotations={"auth-type": "basic", "auth-secret": "s", "auth-realm": "off"})
    engine = engine_of([*small_world(2), upsert(closed)])

    route = json.loads(engine.rows["h/a.example.com"])["routes"][0]
    assert route["deny"] == 503


@pytest.mark.parametrize(
    "annotations",
    [
        {"auth-type": "basic"},
        {"auth-type": "basic", "auth-secret": "missing"},
        {"auth-type": "digest", "auth-secret": "x"},
        {"auth-type": "basic", "auth-secret": "other/x"},
        {"auth-url": "not a url"},
        {"auth-url": "http://a.example.com", "auth-response-headers": "bad header"},
        {"auth-url": "http://a.example.com", "auth-always-set-cookie": "perhaps"},
        {"auth-url": "http://a.example.com", "auth-request-redirect": "a b"},
        {"allowlist-source-range": "nobody"},
        {"denylist-source-range": "10.0.0.0/99"},
    ],
)
def test_security_settings_fail_closed_for_their_route_alone(annotations: dict[str, str]) -> None:
    engine = engine_of([*small_world(4), upsert(ingress("evil", {"evil.example.com": {"/": "web-0"}}, annotations=annotations))])

    row = engine.rows.get("h/evil.example.com")
    assert row is None or all(r.get("deny") == 503 for r in json.loads(row)["routes"])
    assert "deny" not in engine.rows["h/h0.example.com"].decode()
