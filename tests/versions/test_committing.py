"""Committing on a real bus: one content is one version, numbers mean one content for ever, and nothing half-done is visible."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import pytest

from services.compiler import checkpoints
from services.compiler.commit import INLINE_BYTES, Committer
from services.shared.bus.jetstream import JetStreamBus
from services.shared.bus.port import BusUnavailable
from services.shared.contracts.report import NodeReport
from services.shared.contracts.subjects import CLUSTER_STREAM, CONFIG_STREAM, NODES_BUCKET, VERSIONS_KEPT, VERSIONS_STORED, config_subject
from services.shared.contracts.version import Manifest, VersionId, decode_manifest
from services.shared.versions import read, write
from tests.support.nats import NatsServer
from tests.support.sealing import ring
from tests.support.versions import GROUP, Content, bundle, committer_on, content_of, row

pytestmark = pytest.mark.nats

SUBJECT = config_subject(GROUP)


class FlakyBus(JetStreamBus):
    """Fails publishes on demand: before they are stored (`lost`), or after (`unheard`)."""

    lost = unheard = 0

    async def publish(
        self, subject: str, payload: bytes, *, headers: Mapping[str, str] | None = None, expected_last: int | None = None
    ) -> int:
        if subject == SUBJECT and self.lost:
            self.lost -= 1
            raise BusUnavailable("lost")
        sequence = await super().publish(subject, payload, headers=headers, expected_last=expected_last)
        if subject == SUBJECT and self.unheard:
            self.unheard -= 1
            raise BusUnavailable("not acknowledged in time")
        return sequence


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with NatsServer(tmp_path / "nats") as running:
        yield running


@pytest.fixture
async def bus(server: NatsServer) -> AsyncIterator[FlakyBus]:
    made = FlakyBus(server.url, name="test")
    async with made:
        await made.ensure()
        yield made


@pytest.fixture
async def content(bus: FlakyBus) -> AsyncIterator[Content]:
    made = Content(await committer_on(bus), {"a": row(1), "b": row(2)})
    yield made
    await made.committer.close()


async def _head(bus: JetStreamBus) -> Manifest:
    found = await read.head(bus, GROUP)
    assert found is not None
    return found[0]


async def test_the_first_version_rests_on_a_checkpoint_and_the_next_travels_inline(bus: FlakyBus, content: Content) -> None:
    first = await content.commit()
    second = await content.commit({"a": row(9)}, delete=("b",))

    assert first is not None and first.id == VersionId(1, 1)
    assert first.checkpoint is not None and first.checkpoint.number == 1 and first.delta is None
    assert second is not None and second.id == VersionId(1, 2) and second.parent == first.digest
    assert second.delta is not None and set(second.delta.upsert) == {"a"} and second.delta.delete == ("b",)
    assert await content_of(bus, first) == {"a": row(1), "b": row(2)}
    assert await content_of(bus, second) == {"a": row(9)}


async def test_the_same_content_is_no_new_version(bus: FlakyBus, content: Content) -> None:
    await content.commit()

    assert await content.commit() is None
    assert await content.commit({"a": row(1)}) is None
    again = Content(await committer_on(bus), content.rows)
    assert await again.commit() is None, "nor after a restart"
    assert len(await read.stored(bus, GROUP)) == 1


async def test_a_policy_alone_makes_a_version(bus: FlakyBus, content: Content) -> None:
    first = await content.commit()
    content.bundle = bundle("worker_rlimit_nofile 2048;")
    second = await content.commit()

    assert first is not None and second is not None
    assert second.policy_digest != first.policy_digest and second.tables_digest == first.tables_digest
    assert await read.bundle_of(bus, second) == content.bundle


async def test_a_change_too_large_to_travel_inline_is_a_checkpoint(bus: FlakyBus, content: Content) -> None:
    await content.commit()
    large = await content.commit({f"k{n}": row("x" * 10_000) for n in range(INLINE_BYTES // 10_000 + 1)})
    after = await content.commit({"a": row(3)})

    assert large is not None and large.delta is None and large.checkpoint is not None and large.checkpoint.number == large.number
    assert after is not None and after.delta is not None
    assert await content_of(bus, large) != await content_of(bus, after) == content.rows


async def test_a_server_that_takes_only_small_messages_gets_checkpoints(tmp_path: Path) -> None:
    async with NatsServer(tmp_path / "small", max_payload=140_000) as small, JetStreamBus(small.url, name="test") as bus:
        await bus.ensure()
        content = Content(await committer_on(bus), {"a": row(1)})
        await content.commit()
        made = await content.commit({f"k{n}": row("x" * 1000) for n in range(200)})
        await content.committer.close()

        assert made is not None and made.delta is None
        assert await content_of(bus, made) == content.rows


async def test_death_between_blobs_and_manifest_shows_nothing(bus: FlakyBus, content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    await content.commit()

    class Death(BaseException):
        pass

    async def die(*_: object, **__: object) -> int:
        raise Death

    content.bundle = bundle("worker_rlimit_nofile 7;")
    with monkeypatch.context() as patched, pytest.raises(Death):
        patched.setattr(bus, "publish", die)
        await content.commit({f"k{n}": row("x" * 10_000) for n in range(30)})
    assert len(await read.stored(bus, GROUP)) == 1

    successor = Content(await committer_on(bus), content.rows)
    successor.bundle = content.bundle
    made = await successor.commit()
    assert made is not None and made.id == VersionId(1, 2)
    assert await content_of(bus, made) == content.rows
    await successor.committer.close()


@pytest.mark.parametrize("kind", ["lost", "unheard"])
async def test_a_publish_in_doubt_makes_exactly_one_version(bus: FlakyBus, content: Content, kind: str) -> None:
    await content.commit()
    setattr(bus, kind, 1)
    made = await content.commit({"a": row(5)})
    after = await content.commit({"a": row(6)})

    assert made is not None and made.number == 2
    assert after is not None and after.number == 3 and after.delta is not None
    assert [m.number for m in await read.stored(bus, GROUP)] == [1, 2, 3]
    assert await content_of(bus, after) == content.rows


async def test_a_server_killed_during_commits_loses_and_doubles_nothing(bus: FlakyBus, server: NatsServer, content: Content) -> None:
    await content.commit()
    server.kill()
    waiting = asyncio.create_task(content.commit({"a": row("after")}))
    await server.start()
    made = await waiting

    assert made is not None and made.number == 2
    assert (await _head(bus)).digest == made.digest
    assert await content_of(bus, made) == content.rows


# --- several compilers


async def test_of_two_with_the_same_content_one_commits_and_the_other_adopts(bus: FlakyBus) -> None:
    rows = {"a": row(1)}
    two = [Content(await committer_on(bus), rows) for _ in range(2)]
    choice = random.Random(1)
    for step in range(25):
        change = {f"k{choice.randrange(6)}": row(step)}
        for each in two:
            each.covers = step
        made = await asyncio.gather(*(each.commit(change) for each in two))
        assert len([m for m in made if m is not None]) == 1, "one version for one content"
        assert two[0].committer.head == two[1].committer.head
    stored = await read.stored(bus, GROUP)
    assert [m.number for m in stored] == list(range(1, 26))
    assert await content_of(bus, stored[-1]) == two[0].rows == two[1].rows
    for each in two:
        await each.committer.close()


async def test_who_lags_behind_does_not_put_older_content_back(bus: FlakyBus, content: Content) -> None:
    await content.commit()
    lagging = Content(await committer_on(bus), content.rows)
    await lagging.commit()
    content.covers = 7
    newest = await content.commit({"a": row("new"), "b": row("new")})
    lagging.covers = 6
    assert await lagging.commit({"a": row("new")}) is None
    assert (await _head(bus)).digest == (newest.digest if newest else "")

    lagging.covers = 8
    made = await lagging.commit({"b": row("newer")})
    assert made is not None and made.covers == 8
    assert await content_of(bus, made) == lagging.rows


async def test_two_that_disagree_do_not_fight(bus: FlakyBus, content: Content) -> None:
    """During an upgrade two compilers may make different content of one cluster: a version per change, not an endless exchange."""
    await content.commit()
    other = Content(await committer_on(bus), {"a": row("otherwise")})
    assert await other.commit() is not None, "a new compiler's content counts once"
    assert content.committer.note_head(10_000), "the first hears of it"
    assert await content.commit() is None
    assert content.committer.settled
    assert len(await read.stored(bus, GROUP)) == 2


async def test_a_version_of_another_that_goes_inline_is_taken_without_a_look_at_the_blobs(
    bus: FlakyBus, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    await content.commit()
    other = Content(await committer_on(bus), content.rows)
    await other.commit()
    await content.commit({"a": row(2)})

    async def forbidden(*_: object) -> bytes | None:
        raise AssertionError("a blob was read")

    monkeypatch.setattr(bus, "get_blob", forbidden)
    assert await other.commit({"a": row(2)}) is None
    assert other.committer.head == content.committer.head


# --- epochs


async def _report(bus: JetStreamBus, id: VersionId, digest: str = "d", group: str = GROUP) -> None:
    report = NodeReport(node="n", group=group, at=0.0, epoch=id.epoch, number=id.number, digest=digest)
    await bus.put(NODES_BUCKET, "n", msgspec.json.encode(report))


async def test_an_empty_stream_begins_above_everything_that_nodes_have(bus: FlakyBus) -> None:
    await _report(bus, VersionId(4, 90))
    content = Content(await committer_on(bus), {"a": row(1)})
    made = await content.commit()

    assert made is not None and made.id == VersionId(5, 91)
    assert "epoch raised" in made.note and made.checkpoint is not None and made.checkpoint.number == 91


async def test_reports_that_are_no_reports_or_not_believable_stop_nothing(bus: FlakyBus) -> None:
    await bus.put(NODES_BUCKET, "x", b"\xff{")
    await _report(bus, VersionId(2**60, 1))
    await bus.put(NODES_BUCKET, "m", msgspec.json.encode(NodeReport(node="m", group="other", at=0.0, epoch=3, number=3)))
    made = await Content(await committer_on(bus), {"a": row(1)}).commit()

    assert made is not None and made.id == VersionId(1, 1)


async def test_a_wiped_server_gets_a_new_epoch_with_all_content(bus: FlakyBus, server: NatsServer, content: Content) -> None:
    await content.commit()
    before = await content.commit({"a": row(2)})
    server.kill()
    server.wipe()
    await server.start()
    made = await content.commit({"b": row(3)})

    assert before is not None and made is not None
    assert made.epoch > before.epoch and made.number > before.number and made.delta is None
    assert await content_of(bus, made) == content.rows


async def test_a_stream_put_back_to_an_older_state_gets_a_new_epoch(
    bus: FlakyBus, server: NatsServer, content: Content, tmp_path: Path
) -> None:
    import shutil

    await content.commit()
    server.stop()
    shutil.copytree(server.store, tmp_path / "copy")
    await server.start()
    lost = await content.commit({"a": row("lost")})
    server.stop()
    server.wipe()
    shutil.copytree(tmp_path / "copy", server.store)
    await server.start()
    content.committer.distrust()
    made = await content.commit({"a": row("other")})

    assert lost is not None and made is not None
    assert made.epoch > lost.epoch, "the number of the lost version is not used for other content"
    assert made.number > lost.number
    assert await content_of(bus, made) == content.rows


async def test_a_node_ahead_of_the_head_raises_the_epoch(bus: FlakyBus, content: Content) -> None:
    first = await content.commit()
    assert first is not None and content.committer.settled
    assert content.committer.note_node(VersionId(1, 5), "elsewhere")
    made = await content.commit()

    assert made is not None and made.id == VersionId(2, 6) and made.digest == first.digest
    assert await content.commit() is None, "once"


async def test_a_node_with_other_content_under_the_same_number_raises_the_epoch_once(bus: FlakyBus, content: Content) -> None:
    first = await content.commit()
    assert first is not None
    assert not content.committer.note_node(first.id, first.digest)
    assert not content.committer.note_node(first.id, ""), "rows wait there: it does not claim to have it"
    assert content.committer.note_node(first.id, "other")
    content.committer.note_node(first.id, first.digest)
    made = await content.commit()

    assert made is not None and made.epoch == 2
    assert not content.committer.note_node(first.id, "other"), "it is behind now"
    assert await content.commit() is None


async def test_a_node_that_has_another_compilers_version_is_no_reason_for_an_epoch(bus: FlakyBus, content: Content) -> None:
    await content.commit()
    other = Content(await committer_on(bus), content.rows)
    await other.commit()
    theirs = await other.commit({"a": row(2)})
    assert theirs is not None
    content.committer.note_node(theirs.id, theirs.digest)

    assert await content.commit({"a": row(2)}) is None
    assert content.committer.head == theirs


async def test_a_message_that_is_no_version_is_passed_over(bus: FlakyBus, content: Content) -> None:
    first = await content.commit()
    await bus.publish(SUBJECT, b'{"group": 3')
    made = await content.commit({"a": row(2)})

    assert first is not None and made is not None and made.epoch > first.epoch
    assert await content_of(bus, made) == content.rows
    assert [m.id for m in await read.history(bus, GROUP)] == [first.id, made.id]


async def test_another_engine_does_not_inherit_rows(bus: FlakyBus, content: Content) -> None:
    """After a loss of the CLUSTER stream the engine is new: what it does not name is gone."""
    await content.commit()
    content.committer.another_engine()
    fresh = Content(content.committer, {"a": row(1)})
    made = await fresh.commit()

    assert made is not None and made.delta is not None and made.delta.delete == ("b",)
    assert await content_of(bus, made) == {"a": row(1)}


async def test_blobs_that_were_lost_are_stored_again(bus: FlakyBus, content: Content) -> None:
    first = await content.commit()
    assert first is not None and first.checkpoint is not None
    assert await content.committer.audit()
    await bus.delete_blob(first.checkpoint.shards[0])
    assert not await content.committer.audit()
    assert not content.committer.settled
    made = await content.commit()

    assert made is not None and made.epoch == 2
    assert await content_of(bus, made) == content.rows
    assert await content.committer.audit()


async def test_lost_blobs_are_noticed_at_a_start(bus: FlakyBus, content: Content) -> None:
    first = await content.commit()
    assert first is not None and first.checkpoint is not None
    await bus.delete_blob(first.checkpoint.shards[0])
    successor = Content(await committer_on(bus), content.rows)
    made = await successor.commit()

    assert made is not None and made.epoch == 2
    assert await content_of(bus, made) == content.rows


# --- rollback


async def test_a_rollback_holds_live_changes_back_until_its_release(bus: FlakyBus, content: Content) -> None:
    first = await content.commit()
    await content.commit({"a": row("bad")})
    pinned = await content.committer.roll_back(1)
    assert await content.commit({"b": row("meanwhile")}) is None
    assert await content.committer.roll_back(1) == pinned, "again is no change"

    assert first is not None and pinned.digest == first.digest and (pinned.number, pinned.pinned) == (3, 1)
    released = await content.committer.release(content.change())
    assert released is not None and (released.number, released.pinned) == (4, 0)
    assert await content_of(bus, released) == content.rows == {"a": row("bad"), "b": row("meanwhile")}
    after = await content.commit({"a": row("good")})
    assert after is not None and await content_of(bus, after) == content.rows


async def test_a_rollback_to_what_is_not_kept_says_what_is(bus: FlakyBus, content: Content) -> None:
    with pytest.raises(read.Unreadable, match="version 1 is not kept; none is"):
        await content.committer.roll_back(1)
    await content.commit()
    with pytest.raises(read.Unreadable, match="version 9 is not kept; 1 to 1 are"):
        await content.committer.roll_back(9)
    assert not content.committer.pinned


async def test_a_rollback_survives_a_restart(bus: FlakyBus, content: Content) -> None:
    await content.commit()
    await content.commit({"a": row("bad")})
    await content.committer.roll_back(1)
    successor = Content(await committer_on(bus), content.rows)

    assert await successor.commit() is None
    assert successor.committer.pinned == 1
    released = await successor.committer.release(successor.change())
    assert released is not None and await content_of(bus, released) == content.rows


async def test_a_rollback_survives_the_loss_of_all_versions(bus: FlakyBus, server: NatsServer, content: Content) -> None:
    await content.commit()
    await content.commit({"a": row("bad")})
    pinned = await content.committer.roll_back(1)
    server.kill()
    server.wipe()
    await server.start()
    content.committer.distrust()
    made = await content.commit({"b": row("meanwhile")})

    assert made is not None and made.epoch > pinned.epoch
    assert (made.digest, made.pinned) == (pinned.digest, 1)
    assert await content_of(bus, made) == {"a": row(1), "b": row(2)}
    released = await content.committer.release(content.change())
    assert released is not None and await content_of(bus, released) == content.rows


async def test_another_compiler_learns_of_rollback_and_release(bus: FlakyBus, content: Content) -> None:
    await content.commit()
    other = Content(await committer_on(bus), content.rows)
    await other.commit()
    await content.committer.roll_back(1)
    assert await other.commit({"a": row("live")}) is None
    assert other.committer.pinned == 1

    await content.committer.release(content.change())
    assert other.committer.note_head(100), "as the stream's follower tells it"
    other.covers = 1
    made = await other.commit({"a": row("live")})
    assert made is not None and not made.pinned
    assert await content_of(bus, made) == other.rows


# --- history, checkpoints, blobs


async def test_every_kept_version_can_be_had(bus: FlakyBus, content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "EVERY", 16)
    choice = random.Random(3)
    expected: dict[int, dict[str, bytes]] = {}
    for n in range(150):
        key = f"k{choice.randrange(50)}"
        others = sorted(content.rows.keys() - {key})
        made = await content.commit({key: row(n)}, (choice.choice(others),) if n and choice.random() < 0.3 else ())
        assert made is not None
        expected[made.number] = dict(content.rows)
    await content.committer.checkpoints.settle()

    kept = await read.history(bus, GROUP)
    assert [m.number for m in kept] == list(range(151 - VERSIONS_KEPT, 151))
    for manifest in kept:
        assert await content_of(bus, manifest) == expected[manifest.number]
    assert len({m.checkpoint.number for m in kept if m.checkpoint}) > 3


async def test_kept_versions_can_be_had_even_if_no_checkpoint_could_be_written(
    bus: FlakyBus, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, foreground = write.write_checkpoint, asyncio.current_task()

    async def fails_in_the_background(*arguments: Any) -> Any:
        if asyncio.current_task() is not foreground:
            raise BusUnavailable("no")
        return await real(*arguments)

    monkeypatch.setattr(write, "write_checkpoint", fails_in_the_background)
    for n in range(checkpoints.REACH + 3):
        await content.commit({"a": row(f"v{n}")})
        await content.committer.checkpoints.settle()
    newest = await _head(bus)
    assert newest.checkpoint is not None and newest.checkpoint.number > 1
    for manifest in await read.history(bus, GROUP):
        await content_of(bus, manifest)


async def test_a_checkpoint_that_comes_late_does_not_replace_a_newer_one(
    bus: FlakyBus, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, go, tasks = write.write_checkpoint, asyncio.Event(), []
    foreground = asyncio.current_task()

    async def slow_in_the_background(*arguments: Any) -> Any:
        if asyncio.current_task() is not foreground:
            tasks.append(asyncio.current_task())
            await go.wait()
        return await real(*arguments)

    monkeypatch.setattr(write, "write_checkpoint", slow_in_the_background)
    for n in range(checkpoints.EVERY + 5):
        await content.commit({"a": row(f"v{n}")})
    assert len(tasks) == 1, "one at a time"
    await content.commit({f"k{n}": row("x" * 10_000) for n in range(30)})
    go.set()
    await content.committer.checkpoints.settle()
    made = await content.commit({"a": row("after")})

    assert made is not None and made.checkpoint is not None and made.checkpoint.number == made.number - 1
    assert await content_of(bus, made) == content.rows


async def test_deltas_that_are_more_than_the_rows_make_a_checkpoint_due(bus: FlakyBus, content: Content) -> None:
    await content.commit({"a": row("v")})
    await content.committer.checkpoints.settle()
    each, numbers = 200 * 1024, []  # travels inline
    for n in range(checkpoints.ENOUGH_BYTES // each + 3):
        made = await content.commit({"a": row(str(n) * each)})
        assert made is not None and made.checkpoint is not None
        numbers.append(made.checkpoint.number)
        await content.committer.checkpoints.settle()
    assert numbers[:5] == [1] * 5
    assert numbers[-1] > 1
    newest = await _head(bus)
    assert await content_of(bus, newest) == content.rows


async def test_a_version_that_nodes_report_before_its_acknowledgement_is_no_surprise(bus: FlakyBus, content: Content) -> None:
    first = await content.commit({"a": row("v")})
    assert first is not None
    real, said = bus.publish, []

    async def reported_first(subject: str, payload: bytes, **options: Any) -> int:
        sequence = await real(subject, payload, **options)
        manifest = decode_manifest(payload)
        said.append(content.committer.note_node(manifest.id, manifest.digest))
        said.append(content.committer.note_node(manifest.id, "other"))
        return sequence

    with mock.patch.object(bus, "publish", reported_first):
        await content.commit({"a": row("w")})
    assert said == [False, True]


async def test_blobs_nobody_needs_go_and_those_in_use_stay(bus: FlakyBus, content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "EVERY", 16)
    orphan = await bus.put_blob(b"of a compiler that died before its manifest")
    first = content.bundle
    for n in range(VERSIONS_STORED + 90):
        content.bundle = bundle(f"worker_rlimit_nofile {1024 + n % 40};") if n < 60 else first
        await content.commit({"a": row(f"v{n}")})
        await content.committer.checkpoints.settle()
    blobs = await bus.list_blobs()

    assert orphan not in blobs
    stored = await read.stored(bus, GROUP)
    assert write.needed_blobs(stored) <= blobs
    assert len(blobs) < 50, "those of versions long gone were deleted"
    for manifest in await read.history(bus, GROUP):
        await content_of(bus, manifest)


async def test_shards_that_did_not_change_are_the_same_blobs(bus: FlakyBus) -> None:
    rows = {f"key-{n}": row("x" * 200) for n in range(20_000)}
    before = await write.write_checkpoint(bus, 1, rows, "", ring())
    after = await write.write_checkpoint(bus, 2, {**rows, "key-7": row("y")}, "", ring())

    assert len(before.shards) >= 16
    assert len(set(before.shards) - set(after.shards)) == 1


async def test_the_stream_is_never_asked_about_another_cluster_stream(bus: FlakyBus, content: Content) -> None:
    """After CLUSTER was recreated its sequences are small: a head that covers a greater one does not hold anything up."""
    content.covers = 5000
    await content.commit()
    content.committer.another_engine()
    fresh = Content(content.committer, {"a": row("new")})
    fresh.covers = 3
    made = await fresh.commit()

    assert await bus.last_sequence(CLUSTER_STREAM) == 0
    assert made is not None and made.covers == 3
    assert (await bus.history(CONFIG_STREAM, SUBJECT))[-1].sequence == 2


def test_a_committer_needs_no_bus_to_hear() -> None:
    committer = Committer(JetStreamBus("nats://127.0.0.1:1", name="none"), GROUP, ring())
    assert not committer.note_node(VersionId(0, 0), "")
    assert committer.note_head(1)
