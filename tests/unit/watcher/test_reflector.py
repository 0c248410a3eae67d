"""One collection against a scripted API server: whatever it does, what is known is what it has, and nothing is deleted on a suspicion."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import pytest

from services.shared.contracts.objects import AnyObject, Key
from services.shared.kube.client import ApiError, Unreachable
from services.watcher.sources.kubernetes import reflector as module
from services.watcher.sources.kubernetes.kinds import Collection
from services.watcher.sources.kubernetes.reflector import Reflector
from tests.support.objects import ingress

GONE = ApiError(410, "Expired", "too old resource version")


def made(name: str, version: int, **annotations: str) -> dict[str, Any]:
    found = ingress(name, {f"{name}.example.com": {"/": "web"}}, annotations=annotations)
    found["metadata"] |= {"resourceVersion": str(version), "uid": f"uid-{name}", "creationTimestamp": "2026-01-01T00:00:00Z"}
    return {k: v for k, v in found.items() if k not in ("kind", "apiVersion")}  # the items of a list say neither


def listed(*objects: dict[str, Any], version: int, following: str = "") -> bytes:
    return json.dumps({"metadata": {"resourceVersion": str(version), "continue": following}, "items": list(objects)}).encode()


def event(type_: str, obj: dict[str, Any]) -> bytes:
    return json.dumps({"type": type_, "object": obj | {"kind": "Ingress"}}).encode()


Step = bytes | Exception


class Script:
    """An API server's answers in order: to lists, and to watches (a list of lines or errors each). At the end it stays silent."""

    def __init__(self, lists: list[Step], watches: list[list[Step]]) -> None:
        self.lists = lists
        self.watches = watches
        self.asked: list[Mapping[str, str]] = []
        self.watched_from: list[str] = []

    async def request(self, method: str, path: str, *, query: Mapping[str, str], metadata_only: bool = False) -> bytes:
        self.asked.append(query)
        step = self.lists.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    async def lines(self, path: str, *, query: Mapping[str, str], silence: float, begun: Callable[[], None]) -> AsyncGenerator[bytes, None]:
        self.watched_from.append(query["resourceVersion"])
        begun()
        for step in self.watches.pop(0) if self.watches else []:
            if isinstance(step, Exception):
                raise step
            yield step
        if not self.watches:
            await asyncio.Event().wait()


class Seen:
    """What the reflector has told."""

    def __init__(self) -> None:
        self.now: dict[str, str] = {}
        self.deleted: list[str] = []
        self.changes = 0

    def take(self, changes: Mapping[Key, AnyObject | None]) -> None:
        for key, obj in changes.items():
            self.changes += 1
            if obj is None:
                self.now.pop(key.name)
                self.deleted.append(key.name)
            else:
                self.now[key.name] = obj.metadata.annotations.get("nginx.ingress.kubernetes.io/x", "")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_DELAY_SECONDS", 0.001)
    monkeypatch.setattr(module, "LONGEST_DELAY_SECONDS", 0.002)


async def play(script: Script, until: Callable[[Seen, Reflector], bool]) -> tuple[Seen, Reflector]:
    seen = Seen()
    running = Reflector(script, Collection(kind="Ingress"), seen.take)  # type: ignore[arg-type]  # the two methods that it uses
    task = asyncio.create_task(running.run())
    try:
        async with asyncio.timeout(10):
            while not until(seen, running):
                assert not task.done(), task.exception()
                await asyncio.sleep(0.001)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return seen, running


async def test_pages_then_events() -> None:
    script = Script(
        [listed(made("a", 1), version=9, following="more"), listed(made("b", 2), version=9)],
        [[event("ADDED", made("c", 10)), event("MODIFIED", made("a", 11, x="2")), event("DELETED", made("b", 12))]],
    )
    seen, _ = await play(script, lambda s, _: s.now == {"a": "2", "c": ""})
    assert script.asked[1]["continue"] == "more"
    assert script.watched_from[0] == "9"
    assert seen.deleted == ["b"]


async def test_a_list_that_breaks_off_deletes_nothing() -> None:
    """410 in the middle, and a server that goes away: the next list is begun anew, and only a whole one takes away."""
    script = Script(
        [
            listed(made("a", 1), made("b", 1), version=5),
            listed(made("a", 1), version=7, following="more"),
            GONE,
            listed(made("a", 1), version=8, following="more"),
            Unreachable("half open"),
            listed(made("a", 1), made("b", 1), version=9),
        ],
        [[GONE], []],
    )
    seen, _ = await play(script, lambda s, r: not script.lists and r.listed)
    assert seen.now == {"a": "", "b": ""}
    assert seen.deleted == []


async def test_what_a_list_lacks_is_gone() -> None:
    script = Script([listed(made("a", 1), made("b", 1), version=5), listed(made("b", 1), version=7)], [[GONE], []])
    seen, _ = await play(script, lambda s, _: s.now == {"b": ""})
    assert seen.deleted == ["a"]


@pytest.mark.parametrize(
    "trouble",
    [
        Unreachable("connection reset"),
        ApiError(500, "InternalError", "no"),
        ApiError(429, "TooManyRequests", "later", retry_after=0.001),
        b"{garbage",
        b'{"type":"NEWS","object":{}}',
    ],
)
async def test_a_watch_that_ends_badly_goes_on_where_it_was(trouble: Step) -> None:
    script = Script(
        [listed(made("a", 1), version=5)],
        [[event("ADDED", made("b", 6)), trouble], [event("ADDED", made("c", 7))]],
    )
    seen, running = await play(script, lambda s, _: set(s.now) == {"a", "b", "c"})
    assert script.watched_from[:2] == ["5", "6"]
    assert seen.deleted == []
    assert running.trouble == "", "it is well again"


async def test_an_error_event_of_410_lists_again() -> None:
    status = {"code": 410, "reason": "Expired", "message": "compacted"}
    gone = json.dumps({"type": "ERROR", "object": status}).encode()
    script = Script([listed(made("a", 1), version=5), listed(made("a", 9, x="new"), version=9)], [[gone], []])
    seen, _ = await play(script, lambda s, _: s.now == {"a": "new"})
    assert seen.deleted == []


async def test_bookmarks_move_the_place_and_nothing_else() -> None:
    bookmark = json.dumps({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "77"}}}).encode()
    script = Script([listed(made("a", 1), version=5)], [[bookmark, Unreachable("x")], []])
    seen, _ = await play(script, lambda _, __: len(script.watched_from) == 2)
    assert script.watched_from == ["5", "77"]
    assert seen.changes == 1


async def test_what_we_do_not_read_is_no_change() -> None:
    touched = made("a", 6) | {"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}}
    script = Script([listed(made("a", 1), version=5)], [[event("MODIFIED", touched), event("ADDED", made("b", 7))], []])
    seen, _ = await play(script, lambda s, _: "b" in s.now)
    assert seen.changes == 2


async def test_an_object_that_cannot_be_read_keeps_its_last_form_and_is_named() -> None:
    broken = made("a", 6) | {"spec": {"rules": "none"}}
    script = Script(
        [listed(made("a", 1, x="good"), made("b", 1), version=5)], [[event("MODIFIED", broken), event("ADDED", made("c", 7))], []]
    )
    seen, running = await play(script, lambda s, _: "c" in s.now)
    assert seen.now["a"] == "good"
    assert [(k.name, bad.field) for k, bad in running.invalid.items()] == [("a", "spec.rules")]


async def test_the_same_name_made_anew_is_another_object() -> None:
    again = made("a", 9, x="again")
    again["metadata"]["uid"] = "another"
    script = Script([listed(made("a", 1), version=5)], [[event("DELETED", made("a", 8)), event("ADDED", again)], []])
    seen, _ = await play(script, lambda s, _: s.now == {"a": "again"})
    assert seen.deleted == ["a"]


async def test_a_read_that_shows_what_is_not_seen_yet_is_not_caught_up() -> None:
    script = Script([listed(made("a", 3), version=5)], [[], []])
    _, running = await play(script, lambda _, r: r.listed)
    answers: list[tuple[Step, bool]] = [
        (listed(made("a", 3), version=6), True),
        (listed(made("a", 2), version=6), True),
        (listed(made("a", 4), version=6), False),
        (listed(made("a", 3), made("b", 6), version=6), False),
        (listed(version=6), False),
    ]
    for answer, caught_up in answers:
        script.lists = [answer]
        assert await running.caught_up() is caught_up
