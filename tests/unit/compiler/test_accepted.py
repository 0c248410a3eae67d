"""Which form of an Ingress is in effect while nginx refuses policies of it, whatever its owner does meanwhile."""

from __future__ import annotations

from services.compiler.engine import Engine
from services.shared.contracts.objects import Key
from services.shared.flags import Flags
from tests.support.compiling import CLASS, upsert
from tests.support.objects import ingress, service

KEY = Key("Ingress", "default", "web")


class Owner:
    """Edits one Ingress; its form shows in a policy (a time-out)."""

    def __init__(self) -> None:
        self.engine = Engine(Flags())
        for obj in (CLASS, *service("web", [9000])):
            self.engine.apply(upsert(obj))

    def says(self, **annotations: str) -> None:
        self.engine.apply(upsert(ingress("web", {"web.example.com": {"/": "web"}}, annotations=annotations)))
        self.engine.compile()

    def refuse(self) -> None:
        """nginx refuses the policy that is in effect."""
        (policy,) = (p for p in self.engine.bundle.policies if p.scope == "location" and "proxy_read_timeout 60s" not in p.text)
        self.engine.refuse({policy.hash: "no"})
        self.engine.compile()

    @property
    def seconds(self) -> set[str]:
        """Of the policies that are in effect for the Ingress."""
        found = {
            p.text.partition("proxy_read_timeout ")[2].partition("s;")[0] for p in self.engine.bundle.policies if p.scope == "location"
        }
        return found - {"60"}

    @property
    def accepted(self) -> bool:
        verdict = self.engine.verdict(KEY)
        return verdict is None or verdict.accepted

    @property
    def closed(self) -> bool:
        return b'"deny":503' in self.engine.rows["h/web.example.com"]


def test_a_refused_edit_leaves_the_form_before_it() -> None:
    owner = Owner()
    owner.says(**{"proxy-read-timeout": "71"})
    owner.says(**{"proxy-read-timeout": "72"})
    owner.refuse()
    assert (owner.seconds, owner.accepted) == ({"71"}, False)


def test_a_second_edit_that_is_refused_too_does_not_bring_back_the_first() -> None:
    owner = Owner()
    owner.says(**{"proxy-read-timeout": "71"})
    for seconds in ("72", "73", "74"):
        owner.says(**{"proxy-read-timeout": seconds})
        assert (owner.seconds, owner.accepted) == ({seconds}, True), "it may be right this time"
        owner.refuse()
        assert (owner.seconds, owner.accepted) == ({"71"}, False)
    owner.says(**{"proxy-read-timeout": "75"})
    assert (owner.seconds, owner.accepted) == ({"75"}, True)


def test_an_edit_that_is_no_good_does_not_bring_back_the_refused_one() -> None:
    owner = Owner()
    owner.says(**{"proxy-read-timeout": "71"})
    owner.says(**{"proxy-read-timeout": "72"})
    owner.refuse()
    owner.says(**{"proxy-read-timeout": "73", "limit-rps": "many"})
    assert (owner.seconds, owner.accepted) == ({"71"}, False)


def test_without_a_form_before_it_is_closed_until_one_is_taken() -> None:
    owner = Owner()
    owner.says(**{"proxy-read-timeout": "72"})
    owner.refuse()
    assert (owner.seconds, owner.accepted, owner.closed) == (set(), False, True)
    owner.says(**{"proxy-read-timeout": "72", "limit-rps": "many"})
    assert (owner.seconds, owner.accepted, owner.closed) == (set(), False, True)
    owner.says(**{"proxy-read-timeout": "73"})
    assert (owner.seconds, owner.accepted, owner.closed) == ({"73"}, True, False)


def test_the_same_form_again_stays_refused() -> None:
    owner = Owner()
    owner.says(**{"proxy-read-timeout": "71"})
    owner.says(**{"proxy-read-timeout": "72"})
    owner.refuse()
    owner.says(**{"proxy-read-timeout": "72"})
    assert (owner.seconds, owner.accepted) == ({"71"}, False)
