"""The controller ConfigMap: one bad value harms nothing else, and what is said of it has a good value in it (behaviours 23)."""

from __future__ import annotations

import pytest

from services.compiler.configmap import KEYS, parse_settings
from services.compiler.engine import Engine
from services.compiler.settings import GlobalSettings
from services.shared.contracts.objects import Key
from services.shared.contracts.problem import Reason
from services.shared.flags import Flags
from tests.support.compiling import CLASS, upsert
from tests.support.objects import config_map, ingress, service


@pytest.mark.parametrize("name", sorted(KEYS))
def test_the_example_of_each_key_is_a_good_value(name: str) -> None:
    settings, problems = parse_settings({name: KEYS[name].example})
    assert problems == []
    assert getattr(settings, KEYS[name].field) is not None


@pytest.mark.parametrize(
    ("name", "bad", "example"),
    [
        ("proxy-body-size", "much", "1m"),
        ("proxy-buffering", "yes", "off"),
        ("ssl-ciphers", "NONSENSE", "ECDHE-ECDSA-AES128-GCM-SHA256"),
        ("ssl-ecdh-curve", "prime256v1:nonsense", "auto"),
        ("whitelist-source-range", "everybody", "10.0.0.0/8"),
        ("custom-http-errors", "many", "404,503"),
    ],
)
def test_a_bad_value_keeps_the_last_good_one_and_shows_one(name: str, bad: str, example: str) -> None:
    good, _ = parse_settings({name: KEYS[name].example, "keep-alive": "10"})
    after, (problem,) = parse_settings({name: bad, "keep-alive": "20"}, good, "ConfigMap a/b")
    assert getattr(after, KEYS[name].field) == getattr(good, KEYS[name].field)
    assert after.keep_alive == 20
    assert (problem.reason, problem.field, problem.severity) == (Reason.INVALID_CONFIG_KEY, f"data[{name}]", "error")
    assert problem.example.startswith(example)


@pytest.mark.parametrize(
    ("name", "value", "left"),
    [
        ("whitelist-source-range", "10.0.0.0/8,10.9.9.999", ("10.0.0.0/8",)),
        ("proxy-real-ip-cidr", "10.0.0.0/8, nobody", ("10.0.0.0/8",)),
        ("proxy-real-ip-cidr", "nobody", ()),
        ("global-auth-response-headers", "X-User, bad name, X-B", ("X-User", "X-B")),
        ("block-user-agents", "curl,~(", ("=curl",)),
        ("custom-http-errors", "404,many", (404,)),
    ],
)
def test_the_good_items_of_a_list_count(name: str, value: str, left: tuple[object, ...]) -> None:
    settings, (problem,) = parse_settings({name: value})
    assert (getattr(settings, KEYS[name].field), settings.closed) == (left, False)
    assert (problem.severity, problem.example) == ("warning", KEYS[name].example)


def test_error_codes_that_nginx_cannot_intercept_are_left_out_and_named() -> None:
    settings, (problem,) = parse_settings({"custom-http-errors": "302, 404,499,999,503"})
    assert settings.custom_http_errors == (302, 404, 503)
    assert (problem.severity, problem.field) == ("warning", "data[custom-http-errors]")
    assert "from 300 to 599" in problem.message


def test_what_nginx_refuses_of_it_is_in_its_verdict_until_it_is_other() -> None:
    engine = Engine(Flags())
    for obj in (CLASS, *service("web", [80]), ingress("web", {"web.example.com": {"/": "web"}}), config_map({"keep-alive": "10"})):
        engine.apply(upsert(obj))
    engine.compile()
    key = Key("ConfigMap", "ingress-nginx", "ingress-nginx-controller")
    assert engine.verdict(key) is None
    (http,) = (p.hash for p in engine.bundle.policies if p.scope == "http")
    assert engine.refuse({http: "no such thing", "of another version": "x"}) == [str(key)]
    assert engine.refuse({http: "no such thing"}) == [], "nodes repeat their reports"
    verdict = engine.compile().verdicts[key]
    assert verdict is not None
    (problem,) = verdict.problems
    assert problem.reason == Reason.REFUSED_BY_NGINX
    assert "(http): no such thing; nodes keep what they had" in problem.message
    engine.apply(upsert(config_map({"keep-alive": "11"})))
    assert engine.compile().verdicts[key] is None
    assert engine.settings == GlobalSettings(keep_alive=11)


def test_what_every_ingress_is_refused_for_is_no_ingresses_fault() -> None:
    engine = Engine(Flags())
    objects = (
        ingress("web", {"web.example.com": {"/": "web"}}),
        ingress("own", {"b.example.com": {"/": "web"}}, annotations={"limit-rps": "5"}),
    )
    for obj in (CLASS, *service("web", [80]), *objects, config_map({"proxy-read-timeout": "7"})):
        engine.apply(upsert(obj))
    engine.compile()
    rows = dict(engine.rows)
    locations = {p.hash: "no" for p in engine.bundle.policies if p.scope == "location"}
    assert len(locations) > 1
    key = Key("ConfigMap", "ingress-nginx", "ingress-nginx-controller")
    assert engine.refuse(locations) == [str(key)]
    verdicts = engine.compile().verdicts
    assert verdicts.keys() == {key}
    verdict = verdicts[key]
    assert verdict is not None
    assert "of every Ingress" in verdict.problems[0].message
    assert engine.rows == rows, "no route is closed"


def test_another_configmap_ends_quarantines() -> None:
    engine = Engine(Flags())
    app = ingress("web", {"web.example.com": {"/": "web"}}, annotations={"limit-rps": "5"})
    for obj in (CLASS, *service("web", [80]), app, config_map({"proxy-read-timeout": "7"})):
        engine.apply(upsert(obj))
    engine.compile()
    (policy,) = (p.hash for p in engine.bundle.policies if "limit_req" in p.text and p.scope == "location")
    assert engine.refuse({policy: "no"}) == ["default/web"]
    engine.compile()
    assert b'"deny":503' in engine.rows["h/web.example.com"]
    engine.apply(upsert(config_map({"proxy-read-timeout": "8"})))
    engine.compile()
    assert b'"deny":503' not in engine.rows["h/web.example.com"]
    assert engine.verdict(Key("Ingress", "default", "web")) is None
