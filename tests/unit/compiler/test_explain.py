"""`explain` tells what the newest version's rows say, also where the compiler's own are others by now."""

from __future__ import annotations

from services.compiler.engine import Engine
from services.compiler.explain import explain
from services.compiler.head import Served
from services.shared.contracts.question import ExplainQuestion
from services.shared.contracts.version import Policy, PolicyBundle
from tests.support.compiling import delete, engine_of, small_world, upsert
from tests.support.objects import ingress

QUESTION = ExplainQuestion(url="http://h0.example.com/api/x")


def served(engine: Engine, *, pinned: int = 0) -> Served:
    return Served(version="1.7", pinned=pinned, rows=dict(engine.rows), bundle=None)


def test_the_version_is_named_and_the_rule_is_known_while_the_row_is_the_same() -> None:
    engine = engine_of(small_world())
    found = explain(engine, QUESTION, served(engine))
    assert (found.ingress, found.rule, found.path_type) == ("default/app-0", "spec.rules[0].http.paths[0]", "Prefix")
    assert (found.backend, found.status, found.version, found.pinned) == ("default/web-0:80", 0, "1.7", 0)


def test_a_pinned_rollback_is_told_and_not_the_present_objects() -> None:
    engine = engine_of(small_world())
    before = served(engine, pinned=3)
    gone = upsert(ingress("app-0", {"h0.example.com": {"/api": "web-0"}}))
    engine.apply(delete(gone))
    engine.apply(upsert(ingress("other", {"h0.example.com": {"/api": "web-5"}})))
    engine.compile()

    found = explain(engine, QUESTION, before)
    assert (found.ingress, found.backend, found.version, found.pinned) == ("default/app-0", "default/web-0:80", "1.7", 3)
    assert found.notes[0] == "a rollback to version 3 is pinned: this is its content, without what changed since"
    assert (found.rule, found.path_type, found.problems) == ("", "Prefix", ())
    assert any("the rule is not known" in n for n in found.notes)
    assert explain(engine, QUESTION).ingress == "default/other"


def test_policies_of_a_pinned_version_are_its_own() -> None:
    engine = engine_of(small_world())
    policy = explain(engine, QUESTION).policy
    assert explain(engine, QUESTION).policy_text
    old = Served(
        version="1.7",
        pinned=3,
        rows={k: v.replace(policy.encode(), b"0ld") for k, v in engine.rows.items()},
        bundle=PolicyBundle(policies=(Policy(hash="0ld", scope="location", text="of old"),)),
    )
    found = explain(engine, QUESTION, old)
    assert (found.policy, found.policy_text) == ("0ld", "of old")


def test_without_a_version_it_says_so() -> None:
    engine = engine_of(small_world())
    assert explain(engine, QUESTION).notes[0] == "there is no version yet: this is what would be served"
    unreadable = Served(version="1.7", pinned=3, rows=None, bundle=None)
    assert explain(engine, QUESTION, unreadable).notes[0] == "version 1.7 cannot be read: this is what the present objects give"


def test_what_nginx_refuses_has_neither_row_nor_ingress() -> None:
    found = explain(engine_of(small_world()), ExplainQuestion(url="http://h0.example.com/../../etc"))
    assert (found.status, found.matched_host, found.ingress) == (400, "", "")
    assert found.notes[-1] == "400: nginx refuses this before it looks for a host: the path leads above /"
