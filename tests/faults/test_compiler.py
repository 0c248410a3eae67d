"""The compiler service on a real bus: what it loses, what contradicts it, what it is asked, and another one beside it."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from services.compiler.engine import Engine
from services.compiler.service import CompilerOptions, serve
from services.shared.bus.jetstream import JetStreamBus
from services.shared.bus.port import BusError, NoAnswer, Request
from services.shared.contracts import subjects
from services.shared.contracts.problem import Verdict
from services.shared.contracts.question import (
    AdmissionAnswer,
    AdmissionQuestion,
    CoverAnswer,
    CoverQuestion,
    ExplainAnswer,
    ExplainQuestion,
    RollbackAnswer,
    RollbackQuestion,
)
from services.shared.contracts.report import NodeReport
from services.shared.contracts.version import Manifest, VersionId
from services.shared.flags import Flags
from services.shared.versions import read
from services.shared.versions.diff import diff
from services.shared.versions.read import digest_of
from tests.support.cluster import Cluster
from tests.support.compiling import CLASS, engine_of, small_world
from tests.support.nats import NatsServer
from tests.support.objects import ingress, service
from tests.support.sealing import key_directory
from tests.support.versions import GROUP, content_of

pytestmark = pytest.mark.nats

T = TypeVar("T")
DEADLINE_SECONDS = 30


class Rig:
    """A server, a connection, a cluster to publish, and compilers that are started and stopped."""

    def __init__(self, server: NatsServer, bus: JetStreamBus, directory: Path) -> None:
        self.seal = key_directory(directory)
        self.server = server
        self.bus = bus
        self.cluster = Cluster(bus)
        self._running: list[tuple[asyncio.Event, asyncio.Task[None]]] = []

    def start(self) -> None:
        """One more compiler, with a connection of its own."""
        stop = asyncio.Event()

        async def run() -> None:
            async with JetStreamBus(self.server.url, name="compiler") as bus:
                await serve(bus, CompilerOptions(group=GROUP, seal_keys=self.seal), stop)

        self._running.append((stop, asyncio.create_task(run())))

    async def stop(self) -> None:
        """End the compilers; one that failed raises here."""
        running, self._running = self._running, []
        for stop, _ in running:
            stop.set()
        async with asyncio.timeout(DEADLINE_SECONDS):
            await asyncio.gather(*(task for _, task in running))

    async def until(self, true: Callable[[Manifest], bool]) -> Manifest:
        """The newest version, once this is true of it."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                for _, task in self._running:
                    if task.done():
                        task.result()
                with contextlib.suppress(BusError):
                    found = await read.head(self.bus, GROUP)
                    if found is not None and true(found[0]):
                        return found[0]
                await asyncio.sleep(0.01)

    async def ask(self, subject: str, question: object, kind: type[T]) -> T:
        return msgspec.json.decode(await self._asked(subject, msgspec.json.encode(question)), type=kind)

    async def _asked(self, subject: str, payload: bytes) -> bytes:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                try:
                    return await self.bus.request(subjects.of_group(subject, GROUP), payload, timeout=DEADLINE_SECONDS)
                except NoAnswer:  # it is starting
                    await asyncio.sleep(0.01)

    async def cover(self, sequence: int, ingress: str = "") -> CoverAnswer:
        return await self.ask(subjects.ASK_COMPILER_COVER, CoverQuestion(sequence=sequence, ingress=ingress), CoverAnswer)

    async def edit(self, host: str, name: str = "edit") -> CoverAnswer:
        """Publish an Ingress and wait for the version that covers it."""
        sequence = await self.cluster.put(ingress(name, {host: {"/": "web-0"}}))
        await self.cluster.mark()
        return await self.cover(sequence)

    async def edit_anyway(self, host: str) -> CoverAnswer:
        """The same, again and again, while the server is coming up."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                with contextlib.suppress(BusError):
                    return await self.edit(host)
                await asyncio.sleep(0.01)

    async def content(self) -> tuple[str, dict[str, bytes]]:
        """(digest, rows) of the newest version, as a late joiner gets them."""
        found = await read.head(self.bus, GROUP)
        assert found is not None
        return found[0].digest, await content_of(self.bus, found[0])

    def oracle(self) -> dict[str, bytes]:
        """What the cluster must become."""
        return engine_of(self.cluster.deltas.values()).rows


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with NatsServer(tmp_path / "nats") as server, JetStreamBus(server.url, name="test") as bus:
        await bus.ensure()
        made = Rig(server, bus, tmp_path / "seal")
        try:
            yield made
        finally:
            await made.stop()


async def _filled(rig: Rig, count: int = 6) -> CoverAnswer:
    """A synced compiler with a small cluster."""
    await rig.cluster.publish(*small_world(count))
    sequence = await rig.cluster.mark()
    rig.start()
    return await rig.cover(sequence)


# --- nothing half-known


async def test_nothing_is_published_from_half_a_world(rig: Rig) -> None:
    await rig.cluster.publish(*small_world(4))
    mark = await rig.cluster.mark()
    rig.cluster.deltas.clear()
    incomplete = Cluster(rig.bus)
    await incomplete.put(CLASS)
    await incomplete.mark()  # counts that the stream contradicts
    resyncs = asyncio.Event()

    async def resync(_: Request) -> bytes:
        resyncs.set()
        return b"{}"

    end = await rig.bus.serve(subjects.ASK_WATCHER_RESYNC, resync)
    rig.start()
    async with asyncio.timeout(DEADLINE_SECONDS):
        await resyncs.wait()
    assert await read.head(rig.bus, GROUP) is None

    complete = Cluster(rig.bus)
    await complete.publish(*small_world(4))
    answer = await rig.cover(await complete.mark())
    assert (answer.epoch, answer.number, answer.error) == (1, 1, "")
    assert mark > 0
    await end()


async def test_a_burst_is_few_versions_and_loses_nothing(rig: Rig) -> None:
    await _filled(rig)
    last = 0
    for n in range(300):
        last = await rig.cluster.put(ingress(f"burst-{n % 50}", {f"b{n}.example.com": {"/": "web-0"}}))
    answer = await rig.cover(last)

    _, rows = await rig.content()
    assert rows == rig.oracle()
    assert answer.number < 150
    stored = await read.stored(rig.bus, GROUP)
    caused = [c.name for m in stored for c in m.causes]
    assert set(caused) >= {f"burst-{n}" for n in range(50)}


@pytest.mark.parametrize("payload", [b"", b"\xff\xfe", b"{", b'{"op":"upsert"}', b"[" * 100_000, b"null"])
async def test_a_delta_that_is_none_stops_nothing(rig: Rig, payload: bytes) -> None:
    await rig.bus.publish(subjects.cluster_subject("Ingress", "default", "poison"), payload)
    await _filled(rig)
    await rig.bus.publish(subjects.SYNC_SUBJECT, payload)
    await rig.bus.put(subjects.NODES_BUCKET, "n", payload)
    answer = await rig.edit("after.example.com")

    assert "h/after.example.com" in (await rig.content())[1]
    assert answer.error == ""


async def test_any_order_and_a_restart_give_the_same_digest(rig: Rig) -> None:
    deltas = small_world(12)
    digests = set()
    for seed in range(3):
        random.Random(seed).shuffle(deltas)
        await rig.cluster.publish(*deltas)
        sequence = await rig.cluster.mark()
        rig.start()
        digests.add((await rig.cover(sequence)).digest)
        await rig.stop()
    assert len(digests) == 1
    assert len(await read.stored(rig.bus, GROUP)) == 1


# --- losses


async def test_a_wiped_server_is_filled_again_in_a_higher_epoch(rig: Rig) -> None:
    await rig.cluster.put(ingress("broken", {"x.example.com": {"/": "web-0"}}, annotations={"limit-rps": "many"}))
    before = await _filled(rig)
    rig.server.kill()
    rig.server.wipe()
    await rig.server.start()
    rig.cluster.forget("Ingress", "app-0")
    await rig.bus.ensure()
    await rig.cluster.again()
    expected = digest_of(rig.oracle()).hex
    made = await rig.until(lambda m: m.epoch > before.epoch and m.tables_digest == expected)

    assert made.number > before.number
    assert await content_of(rig.bus, made) == rig.oracle()
    async with asyncio.timeout(DEADLINE_SECONDS):
        while "default.ingress.default.broken" not in await rig.bus.entries(subjects.VERDICTS_BUCKET):
            await asyncio.sleep(0.01)


async def test_what_vanished_while_the_cluster_stream_was_lost_is_gone(rig: Rig) -> None:
    """Only CLUSTER is lost: the versions go on, and hold nothing of what no watcher publishes any more."""
    before = await _filled(rig)
    await rig.bus._connection.js.delete_stream(subjects.CLUSTER_STREAM)
    await rig.bus.ensure()
    rig.cluster.forget("Ingress", "app-1")
    await rig.cluster.again()
    made = await rig.until(lambda m: m.digest != before.digest)

    assert (made.epoch, made.number) == (before.epoch, before.number + 1)
    assert (await rig.content())[1] == rig.oracle()


async def test_lost_versions_come_back_without_any_change(rig: Rig) -> None:
    before = await _filled(rig)
    await rig.bus._connection.js.delete_stream(subjects.CONFIG_STREAM)
    await rig.bus.ensure()
    made = await rig.until(lambda m: m.epoch > before.epoch)

    assert made.digest == before.digest
    assert await content_of(rig.bus, made) == rig.oracle()


async def test_a_restart_with_the_server_gone_waits_for_it(rig: Rig) -> None:
    await _filled(rig)
    await rig.stop()
    rig.server.kill()
    rig.start()
    await asyncio.sleep(0)
    await rig.server.start()

    assert (await rig.edit_anyway("after.example.com")).number == 2


async def test_kill_and_start_of_the_server_under_edits(rig: Rig) -> None:
    await _filled(rig)
    for n in range(3):
        rig.server.kill()
        await rig.server.start()
        assert (await rig.edit_anyway(f"kill-{n}.example.com")).error == ""
    assert (await rig.content())[1] == rig.oracle()
    numbers = [m.number for m in await read.stored(rig.bus, GROUP)]
    assert numbers == sorted(set(numbers))


# --- nodes


def _report(manifest: CoverAnswer, **fields: object) -> bytes:
    report = {"node": "n", "group": GROUP, "at": 0.0, "epoch": manifest.epoch, "number": manifest.number, "digest": manifest.digest}
    return msgspec.json.encode(msgspec.convert({**report, **fields}, NodeReport))


async def test_a_node_that_is_ahead_or_contradicts_raises_the_epoch(rig: Rig) -> None:
    first = await _filled(rig)
    await rig.bus.put(subjects.NODES_BUCKET, "n", _report(first, digest="other"))
    second = await rig.until(lambda m: m.epoch == 2)
    await rig.bus.put(subjects.NODES_BUCKET, "n", _report(first, epoch=7, number=100))
    third = await rig.until(lambda m: m.epoch == 8)

    assert first.digest == second.digest == third.digest
    assert third.number == 101
    assert "epoch raised" in third.note


async def test_a_refused_policy_touches_only_its_ingress_until_that_changes(rig: Rig) -> None:
    await _filled(rig)
    bad = ingress("bad", {"bad.example.com": {"/": "web-0"}}, annotations={"proxy-read-timeout": "77"})
    answer = await rig.cover(await rig.cluster.put(bad))
    manifest = await rig.until(lambda m: m.number == answer.number)
    policies = {p.hash: p for p in (await read.bundle_of(rig.bus, manifest)).policies}
    refused = next(h for h, p in policies.items() if p.scope == "location" and "77" in p.text)
    await rig.bus.put(subjects.NODES_BUCKET, "n", _report(answer, refused={refused: "unknown directive"}))
    healed = await rig.until(lambda m: m.number > answer.number)

    assert refused not in {p.hash for p in (await read.bundle_of(rig.bus, healed)).policies}
    found = await rig.cover(healed.covers, "default/bad")
    assert not found.accepted and "unknown directive" in found.problems[0].message
    async with asyncio.timeout(DEADLINE_SECONDS):
        while "default.ingress.default.bad" not in (verdicts := await rig.bus.entries(subjects.VERDICTS_BUCKET)):
            await asyncio.sleep(0.01)
    assert not msgspec.json.decode(verdicts["default.ingress.default.bad"], type=Verdict).accepted

    mended = await rig.cover(await rig.cluster.put(ingress("bad", {"bad.example.com": {"/": "web-0"}})), "default/bad")
    assert mended.accepted and not mended.problems
    assert "default.ingress.default.bad" not in await rig.bus.entries(subjects.VERDICTS_BUCKET)


# --- several compilers


async def test_two_compilers_make_one_version_of_each_content(rig: Rig) -> None:
    await _filled(rig)
    rig.start()
    for n in range(30):
        await rig.edit(f"edit-{n}.example.com")
    stored = await read.stored(rig.bus, GROUP)
    digests = [m.digest for m in stored]

    assert len(digests) == len(set(digests)) == 31, "no content twice"
    assert [m.number for m in stored] == list(range(1, 32))
    assert {m.epoch for m in stored} == {1}
    assert (await rig.content())[1] == rig.oracle()


# --- questions


async def test_rollback_release_and_restart(rig: Rig) -> None:
    first = await _filled(rig)
    await rig.edit("bad.example.com")
    rolled = await rig.ask(subjects.ASK_COMPILER_ROLLBACK, RollbackQuestion(number=first.number), RollbackAnswer)
    assert (rolled.number, rolled.error) == (3, "")
    held = await rig.edit("meanwhile.example.com", "meanwhile")
    assert (held.number, held.pinned, held.digest) == (3, 1, first.digest)

    await rig.stop()
    rig.start()
    held = await rig.edit("later.example.com", "later")
    assert (held.number, held.pinned, held.digest) == (3, 1, first.digest)
    later = ExplainQuestion(url="http://later.example.com/")
    told = await rig.ask(subjects.ASK_COMPILER_EXPLAIN, later, ExplainAnswer)
    assert (told.matched_host, told.ingress, told.version, told.pinned) == ("_", "", "1.3", 1), "what is served, not what is wanted"

    released = await rig.ask(subjects.ASK_COMPILER_ROLLBACK, RollbackQuestion(release=True), RollbackAnswer)
    assert (released.number, released.error) == (4, "")
    manifest = await rig.until(lambda m: m.number == 4)
    assert (manifest.pinned, manifest.note) == (0, "release")
    assert "later" in {c.name for c in manifest.causes}, "what was held back is named"
    told = await rig.ask(subjects.ASK_COMPILER_EXPLAIN, later, ExplainAnswer)
    assert (told.ingress, told.version, told.pinned) == ("default/later", "1.4", 0)
    assert (await rig.content())[1] == rig.oracle()

    again = await rig.ask(subjects.ASK_COMPILER_ROLLBACK, RollbackQuestion(release=True), RollbackAnswer)
    assert "nothing is pinned" in again.error
    unknown = await rig.ask(subjects.ASK_COMPILER_ROLLBACK, RollbackQuestion(number=99), RollbackAnswer)
    assert "version 99 is not kept; 1 to 4 are" in unknown.error
    unknown = await rig.ask(subjects.ASK_COMPILER_ROLLBACK, RollbackQuestion(number=1, epoch=9), RollbackAnswer)
    assert "version 9.1 is not kept; 1.1 to 1.4 are" in unknown.error


async def test_differences_name_objects_policies_and_rows(rig: Rig) -> None:
    first = await _filled(rig)
    await rig.cover(await rig.cluster.put(ingress("new", {"new.example.com": {"/": "web-0"}}, annotations={"proxy-read-timeout": "77"})))
    last = await rig.cover(await rig.cluster.remove("Ingress", "app-0"))
    found = await diff(rig.bus, GROUP, VersionId(0, first.number), VersionId(0, last.number))
    back = await diff(rig.bus, GROUP, VersionId(0, last.number), VersionId(0, first.number))

    assert [(c.op, c.name) for c in found.causes] == [("delete", "app-0"), ("upsert", "new")]
    added = next(r for r in found.rows if r.key == "h/new.example.com")
    assert added.before is None and added.after is not None
    assert [p.scope for p in found.policies_added] == ["location"] and "77" in found.policies_added[0].text
    assert [(r.key, r.after, r.before) for r in back.rows] == [(r.key, r.before, r.after) for r in found.rows]
    with pytest.raises(read.Unreadable, match="version 9 is not kept; 1 to 3 are"):
        await diff(rig.bus, GROUP, VersionId(0, 1), VersionId(0, 9))

    step = await diff(rig.bus, GROUP, None, VersionId(last.epoch, last.number))
    assert (step.before, step.after) == (f"{last.epoch}.{last.number - 1}", f"{last.epoch}.{last.number}")
    assert [(c.op, c.name) for c in step.causes] == [("delete", "app-0")]
    with pytest.raises(read.Unreadable, match=r"version 7.2 is not kept; 1.1 to 1.3 are"):
        await diff(rig.bus, GROUP, None, VersionId(7, 2))
    with pytest.raises(read.Unreadable, match=r"version 1.1 is the oldest that is kept"):
        await diff(rig.bus, GROUP, None, VersionId(0, 1))


async def test_cover_admit_and_explain(rig: Rig) -> None:
    await _filled(rig)
    sequence = await rig.cluster.put(ingress("shop", {"shop.example.com": {"/": "web-0"}}, annotations={"limit-rps": "many"}))
    covered = await rig.cover(sequence, "default/shop")
    assert covered.found and covered.problems
    assert not (await rig.cover(sequence, "default/nobody")).found
    healed = await rig.cover(await rig.cluster.put(ingress("shop", {"shop.example.com": {"/": "web-0"}})), "default/shop")
    assert healed.accepted and healed.row_keys == ("h/shop.example.com",)

    new = ingress("admitted", {"a.example.com": {"/": "web-0"}})
    question = AdmissionQuestion(namespace="default", name="admitted", operation="CREATE", object=new)
    assert (await rig.ask(subjects.ASK_COMPILER_ADMIT, question, AdmissionAnswer)).allowed
    found = await rig.ask(subjects.ASK_COMPILER_EXPLAIN, ExplainQuestion(url="http://shop.example.com/"), ExplainAnswer)
    assert found.ingress == "default/shop"


async def test_a_question_that_is_none_is_not_answered_and_harms_nothing(rig: Rig) -> None:
    await _filled(rig)
    for subject in (
        subjects.ASK_COMPILER_ADMIT,
        subjects.ASK_COMPILER_COVER,
        subjects.ASK_COMPILER_EXPLAIN,
        subjects.ASK_COMPILER_ROLLBACK,
    ):
        with pytest.raises(NoAnswer):
            await rig.bus.request(subjects.of_group(subject, GROUP), b"{", timeout=0.2)
    assert (await rig.edit("after.example.com")).error == ""


async def test_service_objects_of_an_unknown_kind_do_not_matter(rig: Rig) -> None:
    first = await _filled(rig)
    await rig.bus.publish(
        subjects.cluster_subject("Gadget", "default", "x"), b'{"op":"delete","kind":"Gadget","namespace":"default","name":"x","epoch":1}'
    )
    answer = await rig.cover(await rig.cluster.put(*service("unused", [9999])))
    assert answer.digest == first.digest
    assert answer.number == first.number
    assert Engine(Flags()).compile().bundle.policies
