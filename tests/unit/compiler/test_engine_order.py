"""The same objects give the same bytes: in any order, by any way of edits, and deletion leaves nothing behind."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from services.compiler.engine import Engine
from services.shared.contracts.delta import Delta
from services.shared.flags import Flags
from tests.support.compiling import CLASS, delete, engine_of, small_world, upsert
from tests.support.objects import config_map, ingress, service, tls_secret

ANNOTATIONS = [
    {},
    {"rewrite-target": "/x/$1"},
    {"proxy-read-timeout": "77"},
    {"canary": "true", "canary-weight": "30"},
    {"affinity": "cookie"},
    {"server-alias": "alias.example.com,*.wild.example.com"},
    {"auth-type": "basic", "auth-secret": "users"},
    {"enable-cors": "true", "limit-rps": "5"},
    {"limit-rps": "broken"},
    {"upstream-hash-by": "$request_uri"},
    {"app-root": "/start", "ssl-redirect": "false"},
]

ingresses = st.lists(
    st.tuples(
        st.integers(0, 5),  # name
        st.sampled_from(["a.example.com", "b.example.com", "*.example.com", "alias.example.com"]),
        st.sampled_from(["/", "/foo", "/foo/", "/foo/bar"]),
        st.integers(0, 3),  # service
        st.sampled_from(ANNOTATIONS),
        st.booleans(),  # tls
    ),
    max_size=8,
)


def _deltas(specs: list[tuple[int, str, str, int, dict[str, str], bool]]) -> list[Delta]:
    out = {("class", ""): upsert(CLASS), ("secret", ""): upsert(tls_secret("tls", "a.example.com"))}
    out[("config", "")] = upsert(config_map({"proxy-body-size": "3m"}))
    for n in range(3):
        for obj in service(f"web-{n}", [9000 + n, 9100 + n]):
            out[("service", obj["metadata"]["name"] + obj["kind"])] = upsert(obj)
    for name, host, path, target, said, tls in specs:
        made = ingress(f"i{name}", {host: {path: f"web-{target}"}}, annotations=said, tls={"tls": [host]} if tls else None)
        out[("ingress", str(name))] = upsert(made, created=f"2026-01-0{1 + name % 3}T00:00:00Z")
    return list(out.values())


@settings(max_examples=200, deadline=None)
@given(ingresses, st.randoms(use_true_random=False))
def test_order_does_not_show(specs: list[tuple[int, str, str, int, dict[str, str], bool]], shuffle: random.Random) -> None:
    deltas = _deltas(specs)
    expected = engine_of(deltas)
    shuffled = deltas[:]
    shuffle.shuffle(shuffled)

    stepwise = Engine(Flags())
    for delta in shuffled:
        stepwise.apply(delta)
        stepwise.compile()

    assert stepwise.rows == expected.rows
    assert stepwise.bundle == expected.bundle


@settings(max_examples=200, deadline=None)
@given(ingresses, ingresses)
def test_a_way_of_edits_leads_to_the_same_as_a_fresh_start(
    first: list[tuple[int, str, str, int, dict[str, str], bool]], then: list[tuple[int, str, str, int, dict[str, str], bool]]
) -> None:
    specs = [s for s in first if "broken" not in s[4].values()]
    then = [s for s in then if "broken" not in s[4].values()]  # a refused edit keeps its last good form: that is history
    engine = engine_of(_deltas(specs))
    after = {d.key: d for d in _deltas(then)}
    for delta in _deltas(specs):
        if delta.key not in after:
            engine.apply(delete(delta))
    for delta in after.values():
        engine.apply(delta)
    engine.compile()

    assert engine.rows == engine_of(after.values()).rows
    assert engine.bundle == engine_of(after.values()).bundle


def test_deleting_everything_leaves_only_the_catch_all() -> None:
    deltas = small_world()
    engine = engine_of(deltas)
    for delta in deltas:
        engine.apply(delete(delta))
    engine.compile()

    assert engine.rows == engine_of([]).rows


def test_applying_the_same_again_is_no_change() -> None:
    deltas = small_world()
    engine = engine_of(deltas)

    assert not any(engine.apply(delta) for delta in deltas)
    assert engine.compile().empty


def test_endpoints_of_a_service_that_is_only_a_canary() -> None:
    """Nothing but the canary's edge refers to it: its slices arrive later all the same."""
    web, then = service("web", [8000]), service("next", [9000, 9001])
    canary = ingress("next", {"a.example.com": {"/": "next"}}, annotations={"canary": "true", "canary-weight": "10"})
    engine = engine_of([upsert(o) for o in (CLASS, *web, ingress("web", {"a.example.com": {"/": "web"}}), canary, *then[:2])])
    engine.apply(upsert(then[2]))
    engine.compile()

    assert b"9001" in engine.rows["b/default/next:80"]


def test_an_ingress_that_is_being_deleted_is_served_no_more() -> None:
    web = ingress("web", {"a.example.com": {"/": "web-0"}})
    world = [upsert(CLASS), *(upsert(o) for o in service("web-0", [9000])), upsert(web)]
    engine = engine_of(world)
    assert engine.row_keys("default", "web")
    web["metadata"]["deletionTimestamp"] = "2026-03-01T12:00:00Z"
    engine.apply(upsert(web))
    engine.compile()
    assert engine.rows.keys() == engine_of(world[:-1]).rows.keys()
    assert not engine.knows("default", "web")
