"""Events against an API in memory: counted, not repeated; bounded in number, rate and length."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from services.shared.contracts.objects import Ingress, IngressClass, IngressClassSpec, IngressSpec, Key, Metadata
from services.shared.flags import Flags
from services.shared.kube.client import ApiError, Unreachable
from services.watcher.status import events as module
from services.watcher.status.events import GAP_SECONDS, MESSAGE_CHARACTERS, OBJECT_BURST, WAITING, EventWriter, shown
from services.watcher.status.news import Note
from services.watcher.status.ours import OurIngresses
from services.watcher.status.rate import Rate
from tests.support.fake_api import FakeApi

EVENTS = "/api/v1/namespaces/default/events"


class Cluster:
    def __init__(self) -> None:
        self.api = FakeApi()
        self.ours = OurIngresses(Flags())
        nginx = IngressClass(metadata=Metadata(name="nginx"), spec=IngressClassSpec(controller="k8s.io/ingress-nginx"))
        self.ours.note(Key("IngressClass", "", "nginx"), nginx)

    def ingress(self, name: str = "shop", uid: str = "uid-1") -> None:
        obj = Ingress(metadata=Metadata(name=name, namespace="default", uid=uid), spec=IngressSpec(ingress_class_name="nginx"))
        self.ours.note(Key("Ingress", "default", name), obj)

    def writer(self, reporter: str = "w1") -> EventWriter:
        return EventWriter(self.api, self.ours, reporter)  # type: ignore[arg-type]  # the one method that it uses

    def events(self) -> list[dict[str, Any]]:
        return [self.api.objects[path] for path in sorted(self.api.objects)]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.001)


def note(message: str = "wrong", *, name: str = "shop", reason: str = "Rejected", topic: str = "", ago: float = 0.0) -> Note:
    at = time.monotonic() - ago
    return Note(namespace="default", name=name, type="Warning", reason=reason, message=message, topic=topic, at=at)


@contextlib.asynccontextmanager
async def leading(writer: EventWriter) -> AsyncIterator[None]:
    task = asyncio.create_task(writer.run())
    await asyncio.sleep(0)
    try:
        yield
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PER_SECOND", 10_000)
    monkeypatch.setattr(module, "RETRY_SECONDS", (0.001, 0.01))


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    made.ingress()
    return made


async def test_an_event_is_about_the_ingress_and_the_same_said_again_counts(cluster: Cluster) -> None:
    writer = cluster.writer()
    async with leading(writer):
        for _ in range(3):
            writer.say(note())
        writer.say(note("something else"))
        await cluster.until(lambda: sorted(e["count"] for e in cluster.events()) == [1, 3])
    first = next(e for e in cluster.events() if e["count"] == 3)
    assert first["involvedObject"] == {
        "kind": "Ingress", "apiVersion": "networking.k8s.io/v1", "namespace": "default", "name": "shop", "uid": "uid-1"
    }  # fmt: skip
    assert (first["type"], first["reason"], first["message"], first["source"]) == ("Warning", "Rejected", "wrong", {"component": "sluice"})


async def test_one_topic_is_one_event_with_the_newest_message(cluster: Cluster) -> None:
    writer = cluster.writer()
    async with leading(writer):
        for number in range(1, 4):
            writer.say(note(f"version 1.{number}", reason="Live", topic="live"))
        await cluster.until(lambda: [(e["message"], e["count"]) for e in cluster.events()] == [("version 1.3", 3)])


async def test_an_ingress_made_anew_has_events_of_its_own(cluster: Cluster) -> None:
    writer = cluster.writer()
    async with leading(writer):
        writer.say(note())
        await cluster.until(lambda: len(cluster.events()) == 1)
        cluster.ingress(uid="uid-2")
        writer.say(note())
        await cluster.until(lambda: {e["involvedObject"]["uid"] for e in cluster.events()} == {"uid-1", "uid-2"})


async def test_a_new_leader_says_what_the_last_one_did_not_come_to_and_nothing_twice(cluster: Cluster) -> None:
    first, second = cluster.writer("w1"), cluster.writer("w2")
    for writer in (first, second):  # both hear everything
        writer.say(note("written by the first"))
        writer.say(note("version 1.7", reason="Live", topic="live"))
    async with leading(first):
        await cluster.until(lambda: len(cluster.events()) == 2)
    second.say(note("between the two"))
    second.say(note("long ago", ago=GAP_SECONDS + 1))
    async with leading(second):
        second.say(note("now"))
        await cluster.until(lambda: "now" in {e["message"] for e in cluster.events()})
    assert {(e["message"], e["count"]) for e in cluster.events()} == {
        ("written by the first", 1), ("version 1.7", 1), ("between the two", 1), ("now", 1)
    }  # fmt: skip


async def test_of_ingresses_that_are_gone_or_not_ours_nothing_is_written(cluster: Cluster) -> None:
    writer = cluster.writer()
    async with leading(writer):
        writer.say(note(name="stranger"))
        writer.say(note())
        await cluster.until(lambda: len(cluster.events()) == 1)
    assert len(cluster.api.requests) == 1


@pytest.mark.parametrize("error", [ApiError(429, "TooManyRequests", "x", 0.01), ApiError(503, "ServiceUnavailable", "x"), Unreachable("x")])
async def test_a_server_that_is_away_gets_it_later(cluster: Cluster, error: Exception) -> None:
    errors = [error] * 5
    cluster.api.fail = lambda method, path: errors.pop() if errors else None
    writer = cluster.writer()
    async with leading(writer):
        writer.say(note())
        await cluster.until(lambda: [e["count"] for e in cluster.events()] == [1])


async def test_an_event_that_is_refused_does_not_hold_up_the_next(cluster: Cluster) -> None:
    errors: list[Exception] = [ApiError(403, "Forbidden", "the namespace is being terminated")]
    cluster.api.fail = lambda method, path: errors.pop() if errors else None
    writer = cluster.writer()
    async with leading(writer):
        writer.say(note("first"))
        writer.say(note("second"))
        await cluster.until(lambda: [e["message"] for e in cluster.events()] == ["second"])


async def test_a_flapping_ingress_takes_no_more_than_its_share(cluster: Cluster) -> None:
    cluster.ingress("quiet")
    writer = cluster.writer()
    for n in range(5000):
        writer.say(note(f"wrong in way {n}"))
    writer.say(note(name="quiet"))
    async with leading(writer):
        await cluster.until(lambda: any(e["involvedObject"]["name"] == "quiet" for e in cluster.events()))
    assert len(cluster.events()) == OBJECT_BURST + 1


async def test_what_waits_is_bounded(cluster: Cluster) -> None:
    writer = cluster.writer()
    for n in range(WAITING + 500):
        cluster.ingress(f"i{n}")
        writer.say(note(name=f"i{n}"))
    async with leading(writer):
        await cluster.until(lambda: any(e["involvedObject"]["name"] == f"i{WAITING + 499}" for e in cluster.events()))
    assert len(cluster.events()) == WAITING


@pytest.mark.parametrize("name", ["shop", "a" * 199 + "-b", "a" * 198 + ".-b", "x" * 253])
async def test_names_are_names(cluster: Cluster, name: str) -> None:
    cluster.ingress(name)
    writer = cluster.writer()
    async with leading(writer):
        writer.say(note(name=name))
        await cluster.until(lambda: len(cluster.events()) == 1)
    made = cluster.events()[0]["metadata"]["name"]
    assert len(made) <= 253
    assert all(re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", label) for label in made.split("."))


def test_messages_are_printable_and_bounded() -> None:
    assert shown("a\n\x1b[31mb\u202e\x00") == "a\\n\\x1b[31mb\\u202e\\x00"
    assert shown("x" * 5000) == "x" * (MESSAGE_CHARACTERS - 3) + "..."
    assert len(shown("\u202e" * 5000)) == MESSAGE_CHARACTERS
    assert shown("x" * MESSAGE_CHARACTERS) == "x" * MESSAGE_CHARACTERS


def test_the_rate_is_a_burst_and_then_steady() -> None:
    now = 0.0
    rate = Rate(2, 3, lambda: now)
    assert [rate.try_take() for _ in range(4)] == [True, True, True, False]
    now = 0.5
    assert [rate.try_take() for _ in range(2)] == [True, False]
    now = 100.0
    assert [rate.try_take() for _ in range(4)] == [True, True, True, False]
