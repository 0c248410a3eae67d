"""Who gets a path that two Ingresses want, and that the other is told: in its verdict, and at admission (behaviours 1.5, 21.9)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from services.compiler.admission import admit
from services.compiler.engine import Engine
from services.shared.contracts.objects import Key
from services.shared.contracts.problem import Problem, Reason
from services.shared.contracts.question import AdmissionQuestion
from services.shared.flags import Flags
from tests.support.compiling import CLASS, delete, upsert
from tests.support.objects import ingress, rule, service, typed

HOST = "a.example.com"


def _engine(*objects: dict[str, Any]) -> Engine:
    """Each Ingress is older than the next."""
    engine = Engine(Flags())
    for n, obj in enumerate((CLASS, *service("one", [80]), *service("two", [80]), *objects)):
        engine.apply(upsert(obj, created=f"2026-01-01T00:00:{n:02}Z"))
    engine.compile()
    return engine


def _path(name: str, path: str, kind: str = "Prefix", annotations: dict[str, str] | None = None) -> dict[str, Any]:
    return typed(name, rule(HOST, path, kind, name), annotations=annotations)


def _told(engine: Engine, name: str) -> list[Problem]:
    verdict = engine.verdict(Key("Ingress", "default", name))
    assert verdict is None or verdict.accepted
    return list(verdict.problems) if verdict else []


def _admission(engine: Engine, obj: dict[str, Any]) -> tuple[bool, list[Problem]]:
    question = AdmissionQuestion(namespace="default", name=obj["metadata"]["name"], operation="CREATE", object=msgspec.to_builtins(obj))
    answer = admit(engine, question)
    return answer.allowed, [*answer.problems, *answer.warnings]


@pytest.mark.parametrize(
    ("older", "younger", "left"),
    [
        (("/foo", "Prefix"), ("/foo/", "Prefix"), "serves nothing"),
        (("/foo/", "Prefix"), ("/foo", "Prefix"), "serves /foo itself"),
        (("/foo", "Prefix"), ("/foo", "ImplementationSpecific"), "is not in effect"),
        (("/foo", "Exact"), ("/foo", "Exact"), "is not in effect"),
    ],
)
def test_the_younger_of_two_that_nginx_has_as_one_is_told(older: tuple[str, str], younger: tuple[str, str], left: str) -> None:
    first, second = _path("one", *older), _path("two", *younger)
    engine = _engine(first, second)
    assert _told(engine, "one") == []
    (problem,) = _told(engine, "two")
    assert (problem.reason, problem.field, problem.severity) == (Reason.PATH_CONFLICT, "spec.rules[0].http.paths[0].path", "warning")
    assert "Ingress default/one, which is older" in problem.message
    assert left in problem.message
    allowed, problems = _admission(_engine(first), second)
    assert not allowed
    assert [p.reason for p in problems] == [Reason.PATH_CONFLICT]


@pytest.mark.parametrize(
    ("older", "younger", "allowed"),
    [
        (("/foo", "Exact"), ("/foo/", "Prefix"), True),
        (("/foo/", "Exact"), ("/foo", "Prefix"), True),
        (("/foo", "Exact"), ("/foo", "Prefix"), False),  # as ingress-nginx: the same text, though the data path takes both
        (("/foo", "Prefix"), ("/foo/bar", "Prefix"), True),
        (("/", "Prefix"), ("/foo", "Prefix"), True),
    ],
)
def test_what_nginx_has_apart_is_no_conflict(older: tuple[str, str], younger: tuple[str, str], *, allowed: bool) -> None:
    first, second = _path("one", *older), _path("two", *younger)
    engine = _engine(first, second)
    assert _told(engine, "one") == _told(engine, "two") == []
    assert _admission(_engine(first), second)[0] is allowed


def test_on_a_regex_host_a_slash_makes_another_path() -> None:
    first, second = _path("one", "/foo", annotations={"use-regex": "true"}), _path("two", "/foo/")
    assert _told(_engine(first, second), "two") == []
    assert _admission(_engine(first), second)[0]


def test_one_ingress_may_conflict_with_itself() -> None:
    engine = _engine(typed("one", rule(HOST, "/foo", "Prefix", "one"), rule(HOST, "/foo/", "Prefix", "two")))
    (problem,) = _told(engine, "one")
    assert "of this Ingress (spec.rules[0].http.paths[0])" in problem.message


@pytest.mark.parametrize(
    ("older", "younger", "allowed"),
    [
        ({}, {"canary": "true", "canary-weight": "10"}, True),
        ({}, {"canary": "false"}, True),
        ({"canary": "false"}, {}, True),
        ({"canary": "true"}, {"canary": "true"}, False),
    ],
)
def test_a_word_on_canaries_excuses_one_but_not_two_canaries(older: dict[str, str], younger: dict[str, str], *, allowed: bool) -> None:
    first, second = _path("one", "/foo", annotations=older), _path("two", "/foo", annotations=younger)
    assert _admission(_engine(first), second)[0] is allowed


def test_a_canary_of_a_host_that_nobody_has_is_told_until_somebody_has_it() -> None:
    canary = _path("two", "/", annotations={"canary": "true", "canary-weight": "10"})
    engine = _engine(canary)
    (problem,) = _told(engine, "two")
    assert (problem.reason, problem.field) == (Reason.CANARY_UNMATCHED, "spec.rules[0].http.paths[0]")
    engine.apply(upsert(_path("one", "/")))
    assert engine.compile().verdicts[Key("Ingress", "default", "two")] is None


def test_canary_settings_of_no_canary_are_told() -> None:
    engine = _engine(ingress("one", {HOST: {"/": "one"}}, annotations={"canary-weight": "10", "canary-by-header": "X"}))
    (problem,) = _told(engine, "one")
    assert (problem.reason, problem.severity) == (Reason.NOT_HONOURED, "warning")
    assert "canary-by-header" in problem.field
    assert problem.example == 'nginx.ingress.kubernetes.io/canary: "true"'


def test_an_alias_that_somebody_else_has_is_told_until_it_is_free() -> None:
    first = ingress("one", {HOST: {"/": "one"}}, annotations={"server-alias": "shared.test,b.example.com"})
    second = ingress("two", {"b.example.com": {"/": "two"}, "c.example.com": {"/": "two"}})
    third = ingress("three", {"c.example.com": {"/x": "two"}}, annotations={"server-alias": "shared.test"})
    engine = _engine(first, second, third)
    assert [p.message for p in _told(engine, "one")] == ["b.example.com is a host of its own; this alias has no effect"]
    (problem,) = _told(engine, "three")
    assert problem.message == f"shared.test belongs to host {HOST} of Ingress default/one, which is older; this alias has no effect"
    assert (problem.reason, problem.field) == (Reason.PATH_CONFLICT, "metadata.annotations[nginx.ingress.kubernetes.io/server-alias]")
    engine.apply(delete(upsert(first)))
    assert engine.compile().verdicts[Key("Ingress", "default", "three")] is None


def test_what_an_ingress_sends_to_and_is_not_there_is_told_until_it_is() -> None:
    engine = _engine(ingress("web", {HOST: {"/": "new", "/b": "new"}}))
    (problem,) = _told(engine, "web")
    assert (problem.reason, problem.field) == (Reason.SERVICE_NOT_FOUND, "spec.rules[0].http.paths[0].backend.service.name")
    found = service("new", [81])[0]
    found["spec"]["ports"] = [{"name": "other", "port": 81}]
    engine.apply(upsert(found))
    verdict = engine.compile().verdicts[Key("Ingress", "default", "web")]
    assert verdict is not None
    problem = verdict.problems[0]
    assert (problem.reason, problem.field) == (Reason.PORT_NOT_FOUND, "spec.rules[0].http.paths[0].backend.service.port")
    assert "its ports: 81 (other)" in problem.message
    engine.apply(upsert(service("new", [80])[0]))
    assert engine.compile().verdicts[Key("Ingress", "default", "web")] is None
