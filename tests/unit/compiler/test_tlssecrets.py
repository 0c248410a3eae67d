"""What the author of an Ingress is told of its TLS Secrets: all that is not as it should be, and nothing once it is (behaviours 3.1)."""

from __future__ import annotations

from typing import Any

import pytest

from services.compiler.engine import Engine
from services.shared.contracts.objects import Key
from services.shared.contracts.problem import Reason
from services.shared.flags import Flags
from tests.support.compiling import CLASS, delete, upsert
from tests.support.objects import certificate, ingress, secret, service, tls_secret

APP = Key("Ingress", "default", "app")
CHAIN, KEY = certificate("app.example.com")


class _World:
    def __init__(self, hosts: list[str], flags: Flags | None = None, annotations: dict[str, str] | None = None) -> None:
        self.now = 1_790_000_000.0
        self.engine = Engine(flags or Flags(), clock=lambda: self.now)
        app = ingress("app", {"app.example.com": {"/": "web"}}, tls={"cert": hosts}, annotations=annotations)
        for obj in (CLASS, *service("web", [80]), app):
            self.engine.apply(upsert(obj))
        self.told: dict[Key, list[tuple[Reason, str, str]]] = {}

    def compile(self, *deltas: Any) -> list[tuple[Reason, str, str]]:
        """What `app` has been told, after these."""
        for delta in deltas:
            self.engine.apply(delta)
        for key, verdict in self.engine.compile().verdicts.items():
            assert verdict is None or (verdict.accepted and all(p.severity == "warning" for p in verdict.problems))
            self.told[key] = [(p.reason, p.field, p.message) for p in verdict.problems] if verdict else []
        return self.told.get(APP, [])


def _only(told: list[tuple[Reason, str, str]]) -> tuple[Reason, str, str]:
    assert len(told) == 1, told
    return told[0]


def test_a_secret_that_is_not_there_is_named_until_it_is() -> None:
    world = _World(["app.example.com"])
    reason, field, message = _only(world.compile())
    assert (reason, field) == (Reason.REFERENCE_NOT_FOUND, "spec.tls[0].secretName")
    assert "default/cert, which does not exist" in message
    good = upsert(tls_secret("cert", "app.example.com"))
    assert world.compile(good) == []
    assert _only(world.compile(delete(good)))[0] == Reason.REFERENCE_NOT_FOUND


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "has no tls.crt and tls.key"),
        ({"tls.crt": CHAIN, "tls.key": "garbage"}, "tls.key is not an unencrypted PEM private key"),
        ({"tls.crt": "garbage", "tls.key": KEY}, "tls.crt does not begin with a PEM certificate"),
        ({"tls.crt": CHAIN, "tls.key": certificate("app.example.com", serial=2)[1]}, "tls.key does not belong"),
    ],
)
def test_garbage_is_named_and_what_is_shown_instead(data: dict[str, str], words: str) -> None:
    world = _World(["app.example.com"])
    garbage = upsert(secret("cert", data))
    reason, field, message = _only(world.compile(garbage))
    assert (reason, field) == (Reason.INVALID_CERTIFICATE, "spec.tls[0].secretName")
    assert words in message
    assert "the default certificate is shown" in message
    assert world.compile(upsert(tls_secret("cert", "app.example.com"))) == []
    assert "the last good one is shown" in _only(world.compile(garbage))[2]


def test_each_host_that_a_certificate_is_not_for_is_named() -> None:
    world = _World(["app.example.com", "b.example.com", "c.other.test"])
    told = world.compile(upsert(tls_secret("cert", "app.example.com", "*.other.test")))
    assert [(r, f) for r, f, _ in told] == [(Reason.INVALID_CERTIFICATE, "spec.tls[0].hosts[1]")]
    assert "is for app.example.com, *.other.test, not for b.example.com" in told[0][2]
    assert world.compile(upsert(tls_secret("cert", "*.example.com", "*.other.test"))) == []


def test_a_certificate_that_expires_is_told_of_by_itself() -> None:
    world = _World(["app.example.com"])
    assert world.compile(upsert(tls_secret("cert", "app.example.com"))) == []
    assert not world.engine.notice_expiry()
    world.now += 200 * 365 * 86400
    assert world.engine.notice_expiry()
    reason, field, message = _only(world.compile())
    assert (reason, field) == (Reason.CERTIFICATE_EXPIRED, "spec.tls[0].secretName")
    assert "expired at 20" in message
    assert not world.engine.notice_expiry()
    world.now -= 200 * 365 * 86400
    assert world.compile(upsert(tls_secret("cert", "app.example.com", serial=3))) == []


def test_the_default_certificate_has_a_verdict_of_its_own() -> None:
    world = _World([], Flags(default_ssl_certificate="default/main"))
    world.compile()
    key = Key("Secret", "default", "main")
    assert [r for r, _, _ in world.told[key]] == [Reason.INVALID_CERTIFICATE]
    assert "does not exist" in world.told[key][0][2]
    world.compile(upsert(tls_secret("main", "any.test")))
    assert world.told[key] == []


def test_a_canary_needs_none() -> None:
    world = _World(["app.example.com"], annotations={"canary": "true", "canary-weight": "1"})
    assert [r for r, _, _ in world.compile() if r in (Reason.REFERENCE_NOT_FOUND, Reason.INVALID_CERTIFICATE)] == []
