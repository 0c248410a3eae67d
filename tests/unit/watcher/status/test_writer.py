"""Statuses against an API in memory: written where they differ, again after errors, never in a fight."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from services.shared.contracts.objects import Ingress, IngressClass, IngressClassSpec, IngressSpec, Key, Metadata
from services.shared.flags import Flags
from services.shared.kube.client import ApiError, KubeError, Unreachable
from services.watcher.status import writer as module
from services.watcher.status.addresses import Published
from services.watcher.status.ours import OurIngresses
from services.watcher.status.writer import StatusWriter
from tests.support.fake_api import FakeApi

WANTED: Published = ({"ip": "203.0.113.7"},)
PATH = "/apis/networking.k8s.io/v1/namespaces/default/ingresses/"

FLAGS = Flags(status_update_interval=600)


class Fixed:
    """Addresses that the test sets."""

    def __init__(self) -> None:
        self.now: Published | None = WANTED
        self.changed: Callable[[], None] = lambda: None

    async def follow(self, changed: Callable[[], None]) -> None:
        self.changed = changed
        await asyncio.Event().wait()

    async def look(self) -> None: ...


class Cluster:
    """A writer, and what it sees."""

    def __init__(self, settings: Flags = FLAGS) -> None:
        self.api = FakeApi()
        self.addresses = Fixed()
        self.ours = OurIngresses(settings)
        self.ours.note(Key("IngressClass", "", "nginx"), _class("nginx", settings.controller_class))
        self.writer = StatusWriter(self.api, settings, self.ours, self.addresses)  # type: ignore[arg-type]  # what it uses of them

    def ingress(self, name: str, *, class_name: str = "nginx", uid: str = "", status: Published = ()) -> None:
        metadata = Metadata(name=name, namespace="default", uid=uid or f"uid-{name}")
        stored = {"metadata": msgspec.to_builtins(metadata), "status": {"loadBalancer": {"ingress": list(status)}}}
        self.api.put(PATH + name, stored)
        self.see(Ingress(metadata=metadata, spec=IngressSpec(ingress_class_name=class_name)))

    def see(self, obj: Ingress | IngressClass) -> None:
        for key in self.ours.note(Key(type(obj).__name__, obj.metadata.namespace, obj.metadata.name), obj):
            self.writer.note(key)

    def status(self, name: str) -> Published:
        return tuple(self.api.objects[PATH + name]["status"]["loadBalancer"].get("ingress", ()))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.001)

    async def quiet(self) -> None:
        """Until nothing has been asked for a while."""
        before = -1
        while before != len(self.api.requests):
            before = len(self.api.requests)
            await asyncio.sleep(0.05)


def _class(name: str, controller: str) -> IngressClass:
    return IngressClass(metadata=Metadata(name=name), spec=IngressClassSpec(controller=controller))


@contextlib.asynccontextmanager
async def leading(cluster: Cluster) -> AsyncIterator[None]:
    task = asyncio.create_task(cluster.writer.run())
    try:
        yield
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", (0.001, 0.01))


async def test_written_where_it_differs_and_only_there() -> None:
    cluster = Cluster()
    cluster.ingress("new")
    cluster.ingress("right", status=WANTED)
    cluster.ingress("wrong", status=({"ip": "198.51.100.1"},))
    cluster.ingress("foreign", class_name="other")
    async with leading(cluster):
        await cluster.until(lambda: cluster.status("new") == cluster.status("wrong") == WANTED)
        await cluster.quiet()
    assert {path for path, _ in cluster.api.writes()} == {f"{PATH}new/status", f"{PATH}wrong/status"}
    assert cluster.status("foreign") == ()


async def test_while_leading_a_new_ingress_a_new_class_and_new_addresses() -> None:
    cluster = Cluster()
    cluster.ingress("late-class", class_name="late")
    async with leading(cluster):
        cluster.ingress("a")
        await cluster.until(lambda: cluster.status("a") == WANTED)
        assert cluster.status("late-class") == ()
        cluster.see(_class("late", "k8s.io/ingress-nginx"))
        await cluster.until(lambda: cluster.status("late-class") == WANTED)
        cluster.addresses.now = ({"hostname": "lb.example.com"},)
        cluster.addresses.changed()
        await cluster.until(lambda: cluster.status("a") == cluster.status("late-class") == cluster.addresses.now)


async def test_an_ingress_that_was_made_anew_gets_its_address_again() -> None:
    """Deleted and created between two looks: only the uid says so."""
    cluster = Cluster()
    cluster.ingress("a", uid="first")
    async with leading(cluster):
        await cluster.until(lambda: cluster.status("a") == WANTED)
        cluster.ingress("a", uid="second")
        assert cluster.status("a") == ()
        await cluster.until(lambda: cluster.status("a") == WANTED)


async def test_another_writer_is_put_right_once_an_interval_not_each_time() -> None:
    cluster = Cluster()
    cluster.ingress("a")
    async with leading(cluster):
        await cluster.until(lambda: cluster.status("a") == WANTED)
        for _ in range(5):
            cluster.ingress("a", status=({"ip": "198.51.100.1"},))
            await cluster.quiet()
    assert len(cluster.api.writes()) == 1
    async with leading(cluster):  # the next comparison
        await cluster.until(lambda: cluster.status("a") == WANTED)


ERRORS = [ApiError(409, "Conflict", "x"), ApiError(429, "TooManyRequests", "x", 0.01), ApiError(500, "Internal", "x"), Unreachable("x")]


@pytest.mark.parametrize("error", ERRORS)
async def test_errors_are_tried_again(error: KubeError) -> None:
    cluster = Cluster()
    left = dict.fromkeys([f"{PATH}i{n}/status" for n in range(40)], 3)

    def fail(method: str, path: str) -> Exception | None:
        if method != "PATCH" or not left[path]:
            return None
        left[path] -= 1
        return error

    cluster.api.fail = fail
    for n in range(40):
        cluster.ingress(f"i{n}")
    async with leading(cluster):
        await cluster.until(lambda: all(cluster.status(f"i{n}") == WANTED for n in range(40)))


async def test_one_object_that_is_refused_does_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", (1000.0, 1000.0))
    cluster = Cluster()
    cluster.api.fail = lambda method, path: ApiError(422, "Invalid", "x") if "bad" in path and method == "PATCH" else None
    for n in range(30):
        cluster.ingress(f"bad{n}")
        cluster.ingress(f"good{n}")
    async with leading(cluster):
        await cluster.until(lambda: all(cluster.status(f"good{n}") == WANTED for n in range(30)))
        await cluster.quiet()
    assert len([1 for path, _ in cluster.api.writes() if "bad" in path]) == 30, "each once, then after a while"


async def test_what_is_deleted_meanwhile_ends_the_work() -> None:
    cluster = Cluster()
    cluster.ingress("gone")
    del cluster.api.objects[PATH + "gone"]
    async with leading(cluster):
        await cluster.until(lambda: len(cluster.api.writes()) == 1)
        await cluster.quiet()
    assert len(cluster.api.writes()) == 1


async def test_a_server_that_needs_rest_gets_few_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", (1000.0, 1000.0))
    cluster = Cluster()
    for n in range(200):
        cluster.ingress(f"i{n}")
    cluster.api.fail = lambda method, path: Unreachable("x") if method == "PATCH" else None
    async with leading(cluster):
        await cluster.until(lambda: len(cluster.api.writes()) >= 1)
        await cluster.quiet()
    assert len(cluster.api.writes()) <= module.PARALLEL


async def test_in_parallel_but_not_without_bound() -> None:
    cluster = Cluster()
    async with leading(cluster):
        await cluster.quiet()
        cluster.api.slow = asyncio.Event()
        for n in range(100):
            cluster.ingress(f"i{n}")
        await cluster.until(lambda: cluster.api.running >= module.PARALLEL)
        await cluster.quiet()
        assert cluster.api.most_running == module.PARALLEL
        cluster.api.slow.set()
        await cluster.until(lambda: all(cluster.status(f"i{n}") == WANTED for n in range(100)))


async def test_writes_of_one_ingress_keep_their_order() -> None:
    cluster = Cluster()
    async with leading(cluster):
        await cluster.quiet()
        cluster.api.slow = asyncio.Event()
        cluster.ingress("a")
        await cluster.until(lambda: cluster.api.running == 1)
        cluster.addresses.now = ({"hostname": "lb.example.com"},)
        cluster.addresses.changed()
        await cluster.quiet()
        assert cluster.api.running == 1
        cluster.api.slow.set()
        await cluster.until(lambda: cluster.status("a") == cluster.addresses.now)


async def test_never_written_where_that_is_switched_off() -> None:
    cluster = Cluster(Flags(update_status=False))
    cluster.ingress("a")
    async with leading(cluster):
        cluster.ingress("b")
        await cluster.quiet()
    await cluster.writer.clear()
    assert cluster.api.requests == []


async def test_nothing_says_which_addresses_so_nothing_is_written() -> None:
    cluster = Cluster()
    cluster.addresses.now = None
    cluster.ingress("a", status=({"ip": "198.51.100.1"},))
    async with leading(cluster):
        await cluster.quiet()
    await cluster.writer.clear()
    assert cluster.status("a") == ({"ip": "198.51.100.1"},)


@pytest.mark.parametrize(
    ("wanted", "flag", "cleared"),
    [(WANTED, True, True), (WANTED, False, False), ((*WANTED, {"ip": "203.0.113.8"}), True, False)],
)
async def test_at_the_end_a_single_address_is_taken_away(wanted: Published, flag: bool, cleared: bool) -> None:
    cluster = Cluster(Flags(update_status_on_shutdown=flag))
    cluster.addresses.now = wanted
    cluster.ingress("a")
    async with leading(cluster):
        await cluster.until(lambda: cluster.status("a") == wanted)
    await cluster.writer.clear()
    assert cluster.status("a") == (() if cleared else wanted)
