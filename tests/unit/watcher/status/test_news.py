"""What is news: verdicts that change, versions that are live everywhere, hosts that wait. The clock is the test's."""

from __future__ import annotations

from typing import Any

import msgspec

from services.shared.contracts.objects import Ingress, IngressClass, IngressClassSpec, IngressRule, IngressSpec, Key, Metadata
from services.shared.contracts.problem import Problem, Reason, Verdict
from services.shared.contracts.report import DeferredRow, NodeReport
from services.shared.contracts.subjects import token, verdict_key
from services.shared.contracts.version import Cause, Manifest
from services.shared.flags import Flags
from services.watcher.status.news import DEFERRED_SECONDS, LIVE_SECONDS, SETTLE_SECONDS, News, Note
from services.watcher.status.ours import OurIngresses


class Told:
    """News, and what it has said."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.notes: list[Note] = []
        self.ours = OurIngresses(Flags())
        nginx = IngressClass(metadata=Metadata(name="nginx"), spec=IngressClassSpec(controller="k8s.io/ingress-nginx"))
        self.ours.note(Key("IngressClass", "", "nginx"), nginx)
        self.news = News(None, self.ours, self.notes.append, lambda: self.now)  # type: ignore[arg-type]  # not followed here

    def ingress(self, name: str, *hosts: str, class_name: str = "nginx") -> None:
        spec = IngressSpec(ingress_class_name=class_name, rules=tuple(IngressRule(host=h) for h in hosts))
        self.ours.note(Key("Ingress", "default", name), Ingress(metadata=Metadata(name=name, namespace="default"), spec=spec))

    def verdict(self, name: str, *problems: Problem, accepted: bool = False, quiet: bool = False) -> None:
        found = Verdict(kind="Ingress", namespace="default", name=name, accepted=accepted, problems=problems)
        self.news.take_verdict(verdict_key("default", "Ingress", "default", name), msgspec.json.encode(found), quiet=quiet)

    def version(self, number: int, *names: str, group: str = "default", op: Any = "upsert") -> None:
        causes = tuple(Cause(kind="Ingress", namespace="default", name=n, op=op) for n in names)
        made = Manifest(
            group=group, epoch=1, number=number, digest="", policy_digest="", tables_digest="", rows=0, row_bytes=0, causes=causes
        )
        self.news.take_version(made)

    def report(self, node: str, number: int, *deferred: str, group: str = "default", count: int = 0, refused: str = "") -> None:
        rows = tuple(DeferredRow(key=f"h/{host}", policy="p1") for host in deferred)
        found = NodeReport(
            node=node,
            group=group,
            at=0.0,
            epoch=1,
            number=number,
            deferred=rows,
            deferred_count=count or len(rows),
            refused={"p1": refused} if refused else {},
        )
        self.news.take_report(token(node), msgspec.json.encode(found))

    def gone(self, node: str) -> None:
        self.news.take_report(token(node), None)

    def later(self, seconds: float = SETTLE_SECONDS) -> list[Note]:
        """What is said after so many seconds."""
        self.now += seconds
        self.notes.clear()
        self.news.tick()
        return list(self.notes)


BAD = Problem(reason=Reason.INVALID_ANNOTATION, field="metadata.annotations[a]", message="is no number", example="5")
ODD = Problem(reason=Reason.UNKNOWN_ANNOTATION, field="metadata.annotations[b]", message="is not known", severity="warning")
REFUSED = Problem(reason=Reason.REFUSED_BY_NGINX, field="metadata.annotations", message="nginx refuses what it makes: x")


def reasons(notes: list[Note]) -> list[str]:
    return [n.reason for n in notes]


# --- verdicts


def test_a_rejection_names_field_problem_and_a_good_value() -> None:
    told = Told()
    told.verdict("shop", BAD, ODD)
    assert [(n.type, n.reason, n.message) for n in told.notes] == [
        ("Warning", "Rejected", "metadata.annotations[a]: is no number (for example: 5)"),
        ("Warning", "UnknownAnnotation", "metadata.annotations[b]: is not known"),
    ]


def test_what_the_bus_does_not_take_is_said_once_until_it_was_taken() -> None:
    told = Told()
    large = Problem(reason=Reason.TOO_LARGE, field="metadata.name", message="has 9 bytes", object="Ingress default/shop")
    told.news.take_refused([large, Problem(reason=Reason.TOO_LARGE, field="data", message="has 9 bytes", object="Secret default/shop")])
    told.news.take_refused([large])
    assert [(n.namespace, n.name, n.type, n.reason, n.message) for n in told.notes] == [
        ("default", "shop", "Warning", "Rejected", "metadata.name: has 9 bytes")
    ]
    told.news.take_refused([])
    told.news.take_refused([large])
    assert reasons(told.notes) == ["Rejected", "Rejected"]


def test_an_accepted_ingress_has_problems_by_their_names_and_a_refused_policy_is_a_quarantine() -> None:
    told = Told()
    told.verdict("shop", ODD, accepted=True)
    told.verdict("blog", REFUSED)
    assert reasons(told.notes) == ["UnknownAnnotation", "Quarantined"]


def test_what_was_there_before_and_what_comes_again_is_no_news() -> None:
    told = Told()
    told.verdict("shop", BAD, quiet=True)
    told.verdict("shop", BAD)
    assert told.notes == []
    told.verdict("shop", BAD, ODD)
    assert reasons(told.notes) == ["UnknownAnnotation"], "only what is new of it"


def test_a_problem_that_is_mended_and_comes_back_is_said_again() -> None:
    told = Told()
    told.verdict("shop", BAD)
    told.news.take_verdict(verdict_key("default", "Ingress", "default", "shop"), None)
    told.verdict("shop", BAD)
    assert reasons(told.notes) == ["Rejected", "Rejected"]


def test_many_problems_are_counted_not_listed() -> None:
    told = Told()
    told.verdict("shop", *(Problem(reason=Reason.INVALID_PATH, field=f"spec.rules[{n}]", message="x") for n in range(50)))
    assert len(told.notes) == 4
    assert "and 47 more problems" in told.notes[-1].message


def test_verdicts_of_other_kinds_and_nonsense_are_left_alone() -> None:
    told = Told()
    config = Verdict(kind="ConfigMap", namespace="default", name="shop", accepted=False, problems=(BAD,))
    told.news.take_verdict("configmap.default.shop", msgspec.json.encode(config))
    told.news.take_verdict("default.shop", b"\xff{")
    assert told.notes == []


# --- live


def test_live_when_every_node_has_it_and_once() -> None:
    told = Told()
    told.ingress("shop", "shop.example.com")
    told.report("n1", 4)
    told.report("n2", 4)
    told.version(5, "shop")
    assert told.later() == []
    told.report("n1", 5)
    assert told.later() == []
    told.report("n2", 6)
    assert [(n.type, n.reason, n.message) for n in told.later()] == [("Normal", "Live", "live on all 2 nodes as of version 1.5")]
    assert told.later(100) == []


def test_the_verdict_of_the_same_change_has_time_to_come() -> None:
    told = Told()
    told.ingress("shop")
    told.report("n1", 5)
    told.version(5, "shop")
    assert told.later(SETTLE_SECONDS / 2) == []
    assert reasons(told.later(SETTLE_SECONDS / 2)) == ["Live"]


def test_a_node_that_is_gone_is_not_waited_for_and_without_nodes_nothing_is_live() -> None:
    told = Told()
    told.ingress("shop")
    told.version(5, "shop")
    assert told.later() == []
    told.report("n1", 5)
    told.report("n2", 4)
    assert told.later() == []
    told.gone("n2")
    assert reasons(told.later()) == ["Live"]


def test_many_changes_of_one_ingress_are_one_event_in_ten_seconds() -> None:
    told = Told()
    told.ingress("shop")
    said = []
    for number in range(5, 35):  # 30 s
        told.version(number, "shop")
        told.report("n1", number)
        said += told.later(1.0)
    said += told.later(LIVE_SECONDS)
    assert len(said) == 4
    assert said[-1].message.endswith("version 1.34"), "the last one is said"


def test_each_group_of_nodes_counts_its_own_versions() -> None:
    told = Told()
    told.ingress("shop")
    told.version(90, "shop", group="blue")
    told.version(5, "shop", group="green")
    told.report("b1", 90, group="blue")
    told.report("g1", 4, group="green")
    assert told.later() == []
    told.report("g1", 5, group="green")
    assert reasons(told.later()) == ["Live"]


def test_rejected_foreign_and_deleted_ingresses_are_not_live() -> None:
    told = Told()
    told.ingress("rejected")
    told.ingress("foreign", class_name="other")
    told.version(5, "rejected", "foreign", "unknown")
    told.version(5, "deleted", op="delete")
    told.report("n1", 5)
    told.verdict("rejected", BAD)  # it may come after the version
    assert told.later() == []


def test_one_host_that_waits_does_not_keep_the_others_from_being_live() -> None:
    told = Told()
    told.ingress("waits", "waits.example.com")
    told.ingress("shop", "shop.example.com")
    told.report("n1", 5, "waits.example.com")
    told.version(5, "waits", "shop")
    assert [n.name for n in told.later()] == ["shop"]
    told.report("n1", 5)
    assert [n.name for n in told.later()] == ["waits"]


def test_of_more_deferred_rows_than_a_report_names_any_may_be_one() -> None:
    told = Told()
    told.ingress("shop", "shop.example.com")
    told.report("n1", 5, "a.example.com", count=500)
    told.version(5, "shop")
    assert told.later() == []


# --- deferred


def test_a_host_that_waits_for_long_is_said_once_and_a_reload_is_not_worth_a_word() -> None:
    told = Told()
    told.ingress("shop", "shop.example.com")
    told.ingress("other", "other.example.com")
    told.report("n1", 5, "shop.example.com")
    told.report("n2", 5)
    assert told.later(DEFERRED_SECONDS / 2) == []
    told.report("n1", 5)  # the reload is over
    told.report("n1", 6, "shop.example.com")
    assert told.later(DEFERRED_SECONDS / 2) == []
    told.report("n1", 7, "shop.example.com", refused="directive is not allowed")
    said = told.later(DEFERRED_SECONDS / 2)
    message = "host shop.example.com keeps its previous form on 1 of 2 nodes: directive is not allowed"
    assert [(n.name, n.type, n.reason, n.message) for n in said] == [("shop", "Warning", "Deferred", message)]
    assert told.later(100) == []


def test_state_does_not_grow_with_what_is_gone() -> None:
    told = Told()
    for n in range(100):
        told.ingress(f"i{n}")
        told.version(n + 1, f"i{n}")
        told.report(f"n{n}", 1000, f"h{n}.example.com")
        told.gone(f"n{n}")
        told.verdict(f"i{n}", BAD)
        told.news.take_verdict(verdict_key("default", "Ingress", "default", f"i{n}"), None)
    told.report("n", 1000)
    told.later()
    told.later(100)
    kept = {name: len(value) for name, value in vars(told.news).items() if isinstance(value, dict | set) and name != "_nodes"}
    assert set(kept.values()) == {0}, kept
