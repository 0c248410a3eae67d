"""The watcher on an API server that fails in every known way, over real HTTP. Each test ends with stream and API server alike."""

from __future__ import annotations

import asyncio
import json
import random

import pytest

from services.shared.contracts.objects import Key
from services.shared.flags import Flags
from services.watcher.sources.kubernetes import reflector
from tests.support.fake_kube import FakeKube, error_event
from tests.support.ways import answers, compacts, fine, gone_event, replays, says, streams
from tests.watcher.conftest import Cell, an_ingress

pytestmark = pytest.mark.nats

A, B, C = (Key("Ingress", "default", name) for name in "abc")


def some(kube: FakeKube) -> None:
    for name in "ab":
        kube.put(an_ingress(name, "1"))
    kube.put({"kind": "Service", "metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}})


def deleted(cell: Cell) -> set[Key]:
    return {key for op, key in cell.deltas if op == "delete"}


async def test_created_changed_and_deleted(cell: Cell) -> None:
    some(cell.kube)
    async with cell.watcher():
        await cell.published_is_what_there_is()
        cell.kube.put(an_ingress("a", "2"))
        cell.kube.put(an_ingress("c", "1"))
        cell.kube.delete(B)
        await cell.published_is_what_there_is()
    assert deleted(cell) <= {B}


async def test_pages_and_a_continue_token_that_expires(cell: Cell) -> None:
    """410 in the middle of a list: begun anew, and what the first pages lacked is not deleted."""
    for n in range(25):
        cell.kube.put(an_ingress(f"i{n}", "1"))
    cell.kube.page = 4
    cell.kube.list_ways["Ingress"].extend([fine(), fine(), compacts()])
    async with cell.watcher():
        await cell.published_is_what_there_is()
        assert cell.kube.lists["Ingress"] == 2
        cell.kube.list_ways["Ingress"].extend([fine(), compacts(), fine(), fine(), fine(), answers(500, "InternalError")])
        cell.kube.watch_ways["Ingress"].append(gone_event())
        # Ends the running watch, too: the next one is told 410.
        cell.kube.restart_watches()
        cell.kube.put(an_ingress("i3", "2"))
        await cell.published_is_what_there_is()
        assert cell.kube.lists["Ingress"] == 5
    assert deleted(cell) == set()


@pytest.mark.parametrize(
    "way",
    [
        answers(500, "InternalError"),
        answers(503, "ServiceUnavailable", retry_after="0.01"),
        answers(429, "TooManyRequests", retry_after="0.01"),
        answers(429, "TooManyRequests", retry_after="tomorrow"),
        answers(403, "Forbidden"),
        says(b'{"metadata": {"resourceVersion": "1"}, "items": [{"met'),
        says(b"<html>502 Bad Gateway</html>"),
        says(b"[" * 100_000),
        streams(b'{"items": [', then="cut"),
    ],
)
async def test_a_list_that_fails_is_asked_for_again(cell: Cell, way: object) -> None:
    some(cell.kube)
    cell.kube.list_ways["Ingress"].extend([way, way])  # type: ignore[list-item]
    async with cell.watcher():
        await cell.published_is_what_there_is()
    assert cell.kube.lists["Ingress"] == 3
    assert deleted(cell) == set()


@pytest.mark.parametrize(
    "way",
    [
        answers(500, "InternalError"),
        answers(429, "TooManyRequests", retry_after="0.01"),
        answers(410, "Gone"),
        gone_event(),
        streams(error_event(500, "InternalError")),
        streams(b'{"type":"ERROR","object":7}\n'),
        streams(b"\xff\xfe garbage\n"),
        streams(b'{"type":"ADDED","object":{"metadata":{"name":"x","resourceVersion":', then="end"),
        streams(then="cut"),
        streams(),
        streams(b"[" * 100_000 + b"\n"),
    ],
)
async def test_a_watch_that_fails_misses_nothing(cell: Cell, way: object) -> None:
    some(cell.kube)
    cell.kube.watch_ways["Ingress"].extend([fine(), way, way])  # type: ignore[list-item]
    async with cell.watcher():
        await cell.published_is_what_there_is()
        cell.kube.restart_watches()
        cell.kube.put(an_ingress("a", "2"))
        cell.kube.put(an_ingress("c", "2"))
        cell.kube.delete(B)
        await cell.published_is_what_there_is()
    assert deleted(cell) <= {B}


async def test_retry_after_is_waited_for(cell: Cell) -> None:
    some(cell.kube)
    cell.kube.list_ways["Ingress"].append(answers(429, "TooManyRequests", retry_after="2"))
    began = asyncio.get_running_loop().time()
    async with cell.watcher():
        await cell.published_is_what_there_is()
    assert asyncio.get_running_loop().time() - began >= 2


async def test_a_place_that_only_brings_garbage_is_given_up(cell: Cell) -> None:
    """The event after this resourceVersion can never be read: another list leads past it."""
    some(cell.kube)
    cell.kube.watch_ways["Ingress"].extend([streams(b"garbage\n")] * reflector.TAKEN_UP)
    async with cell.watcher():
        cell.kube.put(an_ingress("a", "2"))
        await cell.until(A, "2")
        async with asyncio.timeout(30):
            while cell.kube.lists["Ingress"] < 2:
                await asyncio.sleep(0.01)
        await cell.published_is_what_there_is()


async def test_a_half_open_connection_is_cut(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connected, and never a byte: after its own time and some grace the watch is asked for anew."""
    monkeypatch.setattr(reflector, "WATCH_SECONDS", 1)
    monkeypatch.setattr(reflector, "GRACE_SECONDS", 0.5)
    some(cell.kube)
    cell.kube.watch_ways["Ingress"].append(streams(then="silent"))
    async with cell.watcher():
        await cell.until(B, "1")
        cell.kube.put(an_ingress("a", "2"))
        cell.kube.delete(B)
        await cell.until(A, "2")
        await cell.published_is_what_there_is()


async def test_a_watch_that_lost_an_event_or_is_dead_is_given_up_by_a_barrier(cell: Cell) -> None:
    """The server says it is further than it told: no error, nothing to notice, but the barrier compares."""
    some(cell.kube)
    async with cell.watcher():
        await cell.published_is_what_there_is()
        bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "100"}}}
        cell.kube.watch_ways["Ingress"].append(streams(json.dumps(bookmark).encode() + b"\n", then="silent"))
        cell.kube.restart_watches()
        cell.kube.put(an_ingress("a", "2"))
        cell.kube.delete(B)
        await cell.published_is_what_there_is()
        assert cell.kube.lists["Ingress"] == 2


async def test_one_kind_that_hangs_does_not_hold_up_the_others(cell: Cell) -> None:
    some(cell.kube)
    async with cell.watcher():
        await cell.published_is_what_there_is()
        cell.kube.watch_ways["Service"].append(streams(then="silent"))
        cell.kube.restart_watches()
        cell.kube.put(an_ingress("a", "2"))
        await cell.until(A, "2")


@pytest.mark.parametrize("seed", range(6))
async def test_events_again_twice_and_out_of_order(cell: Cell, seed: int) -> None:
    """No object is ever moved back, and nothing that was deleted comes again."""
    some(cell.kube)
    async with cell.watcher():
        await cell.published_is_what_there_is()
        cell.kube.put(an_ingress("a", "2"))
        cell.kube.delete(B)
        await cell.published_is_what_there_is()
        before = len(cell.deltas)
        cell.kube.watch_ways["Ingress"].extend([replays(seed), replays(seed + 1)])
        cell.kube.restart_watches()
        cell.kube.put(an_ingress("a", "3"))
        cell.kube.put(an_ingress("c", "3"))
        cell.kube.delete(C)
        cell.kube.put(an_ingress("b", "again"))
        await cell.published_is_what_there_is()
        assert {key for op, key in cell.deltas[before:] if op == "delete"} <= {C}


async def test_an_etcd_that_was_put_back_counts_by_its_next_list(cell: Cell) -> None:
    """From a backup: resourceVersions run backwards, objects are older. What a list says is what there is."""
    some(cell.kube)
    for _ in range(10):
        cell.kube.put(an_ingress("a", "new"))
    async with cell.watcher():
        await cell.published_is_what_there_is()
        cell.kube.version = 50
        cell.kube.history.clear()
        cell.kube.put(an_ingress("a", "old"))
        cell.kube.watch_ways["Ingress"].append(gone_event())
        cell.kube.restart_watches()
        await cell.until(A, "old")


async def test_the_same_name_made_anew_has_its_new_uid(cell: Cell) -> None:
    some(cell.kube)
    async with cell.watcher():
        await cell.published_is_what_there_is()
        uid = cell.kube.objects[A]["metadata"]["uid"]
        cell.kube.delete(A)
        cell.kube.put(an_ingress("a", "1"))
        await cell.published_is_what_there_is()
        # And unseen: history is gone before the watch comes again.
        cell.kube.delete(A)
        cell.kube.put(an_ingress("a", "1"))
        cell.kube.compact()
        cell.kube.restart_watches()
        await cell.published_is_what_there_is()
        assert uid != cell.kube.objects[A]["metadata"]["uid"]


async def test_the_largest_object_passes_and_one_too_large_is_named(cell: Cell) -> None:
    """1.5 MB is the API server's limit, as it stores objects; 4 MiB of JSON may go on the bus. The stream goes on either way."""
    some(cell.kube)
    async with cell.watcher():
        await cell.published_is_what_there_is()
        managed = [{"manager": "m" * 700_000}]  # not read: it makes the line longer, not the delta
        big = an_ingress("c", "1", note="n" * 1_500_000)
        big["metadata"]["managedFields"] = managed
        cell.kube.put(big)
        await cell.until(C, "1")
        cell.kube.put(an_ingress("c", "2", note="n" * 4_500_000))
        cell.kube.put(an_ingress("a", "2"))
        await cell.until(A, "2")
        assert (await cell.published())[C].metadata.annotations["nginx.ingress.kubernetes.io/x"] == "1"
        cell.kube.put(an_ingress("c", "3"))
        await cell.published_is_what_there_is()


async def test_an_object_that_cannot_be_read_stops_nobody(cell: Cell) -> None:
    some(cell.kube)
    broken = an_ingress("c", "1")
    broken["spec"] = {"rules": "none"}
    key = cell.kube.put(broken)
    async with cell.watcher():
        await cell.until(A, "1")
        cell.kube.put(an_ingress("a", "2"))
        await cell.until(A, "2")
        assert key not in await cell.published()
        cell.kube.put(an_ingress("c", "2"))
        await cell.published_is_what_there_is()


async def test_deleted_while_no_watcher_ran(cell: Cell) -> None:
    some(cell.kube)
    async with cell.watcher():
        await cell.published_is_what_there_is()
    cell.kube.delete(A)
    cell.kube.compact()
    cell.kube.list_ways["Ingress"].append(answers(500, "InternalError"))
    async with cell.watcher("another"):
        await cell.published_is_what_there_is()
    assert deleted(cell) == {A}


async def test_a_watch_that_always_ends_at_once_is_not_asked_for_at_full_speed(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a 410 after each list does not make lists follow each other without a pause that grows."""
    monkeypatch.setattr(reflector, "FIRST_DELAY_SECONDS", 0.1)
    monkeypatch.setattr(reflector, "LONGEST_DELAY_SECONDS", 30.0)
    monkeypatch.setattr(reflector, "SHORT_SECONDS", 1.0)
    some(cell.kube)
    cell.kube.watch_ways["Ingress"].extend([gone_event()] * 1000)
    cell.kube.watch_ways["Service"].extend([streams()] * 1000)
    async with cell.watcher():
        await cell.until(A, "1")
        await asyncio.sleep(3)  # that is what is measured: attempts per time
    assert 2 <= cell.kube.lists["Ingress"] <= 6  # 0.1, 0.2, 0.4, 0.8, 1.6 s: at least so long between them
    assert 2 <= cell.kube.watches["Service"] <= 6


async def test_namespaces_by_label(cell: Cell) -> None:
    """A Namespace that comes to match brings its objects, one that ceases to takes them away; new objects follow its state."""

    def namespace(name: str, **labels: str) -> None:
        cell.kube.put({"kind": "Namespace", "metadata": {"name": name, "labels": labels}})

    def in_(namespace: str, name: str) -> Key:
        manifest = an_ingress(name)
        manifest["metadata"]["namespace"] = namespace
        return cell.kube.put(manifest)

    async def ingresses() -> set[Key]:
        await cell.barrier()
        return {key for key in await cell.published() if key.kind == "Ingress"}

    namespace("one", team="shop")
    namespace("two", team="blog")
    one, two, lost = in_("one", "x"), in_("two", "x"), in_("nowhere", "x")
    flags = Flags(disable_leader_election=True, watch_namespace_selector="team=shop,!frozen")
    async with cell.watcher(flags=flags):
        assert await ingresses() == {one}
        namespace("two", team="shop")
        namespace("nowhere", team="shop", frozen="yes")
        assert await ingresses() == {one, two}
        another = in_("two", "y")
        assert await ingresses() == {one, two, another}
        namespace("one", team="shop", frozen="yes")
        in_("one", "y")
        assert await ingresses() == {two, another}
        namespace("nowhere", team="shop")
        cell.kube.delete(Key("Namespace", "", "two"))
        assert await ingresses() == {lost}


async def test_what_is_wrong_with_the_server_is_in_the_report_until_it_is_well(cell: Cell) -> None:
    some(cell.kube)
    cell.kube.list_ways["Secret"].extend([answers(403, "Forbidden")] * 20)

    async def report() -> str:
        found = await cell.bus.entries("watchers")
        return json.dumps(json.loads(found["watcher"]).get("problems")) if "watcher" in found else ""

    async with cell.watcher(), asyncio.timeout(60):
        while "scripted 403" not in await report():
            await asyncio.sleep(0.02)
        await cell.published_is_what_there_is()
        while "scripted 403" in await report():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("seed", range(3))
async def test_anything_at_any_time(cell: Cell, seed: int) -> None:
    """Objects come, change and go while lists and watches fail at random and history is forgotten."""
    chance = random.Random(seed)
    for_lists = [answers(500, "InternalError"), answers(429, "TooManyRequests", retry_after="0.01"), compacts(), fine()]
    for_watches = [*for_lists, gone_event(), streams(b"garbage\n"), streams(then="cut"), streams(), replays(seed)]
    cell.kube.page = 7
    async with cell.watcher():
        for _ in range(300):
            name = f"i{chance.randrange(30)}"
            key = Key("Ingress", "default", name)
            if key in cell.kube.objects and chance.random() < 0.4:
                cell.kube.delete(key)
            else:
                cell.kube.put(an_ingress(name, str(chance.random())))
            if chance.random() < 0.1:
                cell.kube.watch_ways["Ingress"].append(chance.choice(for_watches))
                cell.kube.list_ways["Ingress"].append(chance.choice(for_lists))
                cell.kube.restart_watches()
            if chance.random() < 0.05:
                cell.kube.compact()
            if chance.random() < 0.3:
                await asyncio.sleep(0.005)
            if chance.random() < 0.02:
                await cell.published_becomes_what_there_is()
        await cell.published_becomes_what_there_is()
