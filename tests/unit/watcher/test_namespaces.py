"""Label selectors, and which objects they leave: the same whatever the order in which Namespaces, labels and objects come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.shared.contracts.objects import AnyObject, EndpointSlice, Ingress, Key, Metadata, Namespace, Secret, Service, key_of
from services.shared.flags import FlagError, Flags, format_flags, parse_flags
from services.shared.labels import parse_selector
from services.watcher.namespaces import Namespaces


@pytest.mark.parametrize(
    ("selector", "labels", "matches"),
    [
        ("", {}, True),
        ("a=b", {"a": "b"}, True),
        ("a==b", {"a": "c"}, False),
        ("a = b , c", {"a": "b", "c": ""}, True),
        ("a=", {"a": ""}, True),
        ("a=", {}, False),
        ("a!=b", {}, True),
        ("a!=b", {"a": "b"}, False),
        ("a in (b, c)", {"a": "c"}, True),
        ("a in (b,c),d", {"a": "c"}, False),
        ("a notin (b,c)", {"a": "c"}, False),
        ("a notin (b,c)", {}, True),
        ("!a", {}, True),
        ("! a", {"a": ""}, False),
        ("in", {"in": "x"}, True),
        ("kubernetes.io/metadata.name=shop", {"kubernetes.io/metadata.name": "shop"}, True),
    ],
)
def test_what_a_selector_matches(selector: str, labels: dict[str, str], matches: bool) -> None:
    assert parse_selector(selector).matches(labels) is matches


@pytest.mark.parametrize("selector", ["a=b=c", "a in b", "a in (b", "=b", ",", "a,,b", "a>1", "ä=b", "a b", "a=\x00"])
def test_what_is_no_selector_is_refused_in_words(selector: str) -> None:
    with pytest.raises(FlagError, match=r"watch-namespace-selector .*label selector"):
        parse_flags([f"watch-namespace-selector={selector}"])


def test_one_namespace_and_a_selector_exclude_each_other() -> None:
    with pytest.raises(FlagError, match="together"):
        parse_flags(["watch-namespace=a", "watch-namespace-selector=b"])


def test_a_selector_goes_through_a_command_line() -> None:
    flags = Flags(watch_namespace_selector="a in (b,c),d!=e")
    assert parse_flags(format_flags(flags)) == flags


# --- which objects count

FLAGS = Flags(
    watch_namespace_selector="team=shop", configmap="sys/config", default_ssl_certificate="sys/tls", default_backend_service="sys/web"
)
NAMES = ("one", "two", "sys")


def namespace(name: str, team: str) -> Namespace:
    return Namespace(metadata=Metadata(name=name, labels={"team": team}))


def slice_of(service: str, space: str) -> EndpointSlice:
    return EndpointSlice(metadata=Metadata(name=f"{service}-1", namespace=space, labels={"kubernetes.io/service-name": service}))


POSSIBLE: list[AnyObject] = [
    *(namespace(n, team) for n in NAMES for team in ("shop", "blog")),
    *(Ingress(metadata=Metadata(name="web", namespace=n, uid=uid)) for n in NAMES for uid in "12"),
    *(Secret(metadata=Metadata(name=name, namespace=n)) for n in NAMES for name in ("tls", "other")),
    *(Service(metadata=Metadata(name=name, namespace=n)) for n in NAMES for name in ("web", "other")),
    *(slice_of(name, n) for n in NAMES for name in ("web", "other")),
]


def counts(obj: AnyObject, world: dict[Key, AnyObject]) -> bool:
    key = key_of(obj)
    space = world.get(Key("Namespace", "", key.namespace))
    named = key in {Key("Secret", "sys", "tls"), Key("Service", "sys", "web"), Key("EndpointSlice", "sys", "web-1")}
    return not key.namespace or named or (space is not None and space.metadata.labels["team"] == "shop")


@given(st.lists(st.lists(st.tuples(st.sampled_from(POSSIBLE), st.booleans()), max_size=6), max_size=12))
def test_what_is_visible_is_what_the_labels_say(batches: list[list[tuple[AnyObject, bool]]]) -> None:
    made, world, seen = Namespaces(FLAGS), dict[Key, AnyObject](), dict[Key, AnyObject]()
    for batch in batches:
        changes: dict[Key, AnyObject | None] = {key_of(obj): obj if there else None for obj, there in batch}
        for target, of in ((world, changes), (seen, made.visible(changes))):
            for key, obj in of.items():
                if obj is None:
                    target.pop(key, None)
                else:
                    target[key] = obj
        assert seen == {key: obj for key, obj in world.items() if counts(obj, world)}


def test_what_flags_name_is_visible_wherever_it_is() -> None:
    flags = Flags(watch_namespace="shop", configmap="edge/main", tcp_services_configmap="edge/tcp", udp_services_configmap="edge/udp")
    named = {Key("ConfigMap", "edge", name): None for name in ("main", "tcp", "udp")}
    assert Namespaces(flags).visible({**named, Key("ConfigMap", "edge", "other"): None}) == named
