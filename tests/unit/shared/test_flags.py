"""Controller flags: what each takes, what excludes what, and what is said of the rest."""

from __future__ import annotations

import pytest

from services.shared.flags import FlagError, Flags, overlaid, parse_flags


@pytest.mark.parametrize(
    "value", ["203.0.113.7", "2001:db8::1", "lb.example.com", "lb", "203.0.113.7, 2001:db8::1,lb.example.com", "1.example", ""]
)
def test_addresses_of_status(value: str) -> None:
    assert parse_flags([f"publish-status-address={value}"]).publish_status_address == value


@pytest.mark.parametrize(
    "bad",
    ["1.2.3.4:80", "A.B.com", "1.2.3.400", "1.2.3", "[::1]", "fe80::1%eth0", "-a.example", "a..b", "a_b", "http://a", "a" * 64, "a b"],
)
def test_what_is_no_address_of_status(bad: str) -> None:
    with pytest.raises(FlagError, match="publish-status-address is a list of IP addresses") as error:
        parse_flags([f"publish-status-address=lb.example.com,{bad}"])
    assert repr(bad) in str(error.value)
    assert "for example 203.0.113.7,lb.example.com" in str(error.value)


def test_a_list_of_nothing() -> None:
    with pytest.raises(FlagError, match="publish-status-address"):
        parse_flags(["publish-status-address= , "])


@pytest.mark.parametrize("bad", ["Foo_Bar", "Foo", "foo_bar", "-a", "a-", "a..b", ".a", "", "a/b", "a" * 254, "ä"])
def test_an_election_is_named_as_an_object(bad: str) -> None:
    with pytest.raises(FlagError, match=r"election-id is an object's name.*for example ingress-controller-leader"):
        parse_flags([f"election-id={bad}"])
    assert parse_flags(["election-id=a.b-1"]).election_id == "a.b-1"


def test_a_service_and_addresses_exclude_each_other() -> None:
    with pytest.raises(FlagError, match="publish-service and --set-flag publish-status-address cannot be given together"):
        parse_flags(["publish-service=a/b", "publish-status-address=203.0.113.7"])
    assert parse_flags(["publish-service=", "publish-status-address=203.0.113.7"]).publish_service == ""


def test_a_further_group_may_have_the_other_of_two() -> None:
    flags = Flags(publish_service="a/b", ingress_class="x")
    found = overlaid(flags, ["publish-status-address=203.0.113.7"])
    assert (found.publish_service, found.publish_status_address, found.ingress_class) == ("", "203.0.113.7", "x")
    assert overlaid(flags, ["publish-status-address="]) == flags
    with pytest.raises(FlagError, match="together"):
        overlaid(flags, ["publish-status-address=203.0.113.7", "publish-service=c/d"])
