"""The wanted state -> the stream, over a stream that loses, refuses and forgets."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.shared.bus.port import BusUnavailable, Message, TooLarge
from services.shared.contracts import subjects
from services.shared.contracts.delta import Delta, SyncMark, decode_delta, decode_sync_mark, object_digest, set_digest
from services.shared.contracts.objects import KINDS, AnyObject, ConfigMap, Ingress, Key, Metadata, Secret, Service, key_of
from services.shared.contracts.problem import Reason
from services.watcher.changes import ObjectChanges
from services.watcher.publish import Publisher, StreamWentBack
from tests.support.sealing import ring


class Stream:
    """The part of a bus that a publisher uses, as one compacted stream."""

    def __init__(self) -> None:
        self.messages: dict[str, Message] = {}
        self.sequence = 0
        self.published = 0
        self.max_payload = 1 << 30
        self.fail_after: int | None = None
        """Store so many more messages, then lose the connection."""
        self.hold_history: asyncio.Event | None = None
        """What a reading found is delivered only then."""

    async def history(self, stream: str, subject: str, *, after: int = 0, limit: int = 0) -> list[Message]:
        found = sorted(self.messages.values(), key=lambda m: m.sequence)
        if self.hold_history is not None:
            await self.hold_history.wait()
        return found

    async def publish_many(self, messages: list[tuple[str, bytes, Mapping[str, str] | None]]) -> int:
        if any(len(payload) > self.max_payload for _, payload, _ in messages):
            raise TooLarge("payload")
        for subject, payload, headers in messages:
            if self.fail_after is not None:
                if self.fail_after == 0:
                    raise BusUnavailable("gone")
                self.fail_after -= 1
            self.sequence += 1
            self.published += 1
            self.messages[subject] = Message(subject=subject, payload=payload, sequence=self.sequence, headers=headers or {})
        return self.sequence

    def wipe(self) -> None:
        self.messages.clear()
        self.sequence = 0

    # --- what a reader makes of it

    def deltas(self) -> list[Delta]:
        found = sorted((m for s, m in self.messages.items() if s != subjects.SYNC_SUBJECT), key=lambda m: m.sequence)
        return [decode_delta(m.payload) for m in found]

    def world(self) -> dict[Key, AnyObject]:
        return {d.key: d.object for d in self.deltas() if d.object is not None}

    def mark(self) -> SyncMark:
        return decode_sync_mark(self.messages[subjects.SYNC_SUBJECT].payload)

    def assert_marked(self) -> None:
        """The newest message is a mark that agrees with everything before it."""
        assert self.messages[subjects.SYNC_SUBJECT].sequence == self.sequence
        world = self.world()
        for kind in KINDS:
            digests = [object_digest(obj) for key, obj in world.items() if key.kind == kind]
            assert (self.mark().kinds[kind].count, self.mark().kinds[kind].digest) == (len(digests), set_digest(digests))


def svc(name: str, external: str = "") -> Service:
    return Service(metadata=Metadata(name=name, namespace="default", uid=external))


def put(*objects: AnyObject) -> ObjectChanges:
    return {key_of(obj): obj for obj in objects}


async def publish(publisher: Publisher, changes: ObjectChanges) -> None:
    publisher.want(changes, observed_at=1.0)
    await publisher.flush()


async def started(stream: Stream, changes: ObjectChanges) -> Publisher:
    """A publisher as it starts: it reads, then publishes a complete list."""
    publisher = Publisher(stream, ring())
    await publisher.read()
    await publish(publisher, changes)
    return publisher


async def test_a_first_list_in_the_order_of_reference_then_the_mark() -> None:
    stream = Stream()
    await started(stream, put(Ingress(metadata=Metadata(name="i", namespace="default")), svc("b"), svc("a")))

    assert [str(d.key) for d in stream.deltas()] == ["Service default/a", "Service default/b", "Ingress default/i"]
    assert {d.epoch for d in stream.deltas()} == {1}
    stream.assert_marked()


async def test_only_differences_are_published() -> None:
    stream = Stream()
    publisher = await started(stream, put(svc("a"), svc("b")))
    before = stream.published
    await publish(publisher, put(svc("a")))
    assert stream.published == before

    await publish(publisher, put(svc("a"), svc("b", "new")) | {Key("Service", "default", "never"): None})
    assert stream.published == before + 2
    stream.assert_marked()


async def test_a_restart_publishes_what_differs_and_tombstones_under_a_greater_epoch() -> None:
    stream = Stream()
    await started(stream, put(svc("a"), svc("b"), svc("c")))
    before = stream.published

    second = await started(stream, put(svc("a"), svc("b", "new")))

    assert stream.published == before + 3
    assert set(stream.world()) == {key_of(svc("a")), key_of(svc("b"))}
    assert second.epoch == 2 and stream.mark().epoch == 2
    stream.assert_marked()

    third = await started(stream, put(svc("a"), svc("b", "new")))
    assert third.epoch == 3 and stream.mark().epoch == 3
    stream.assert_marked()


async def test_nothing_is_deleted_before_the_first_list() -> None:
    stream = Stream()
    await started(stream, put(svc("a")))

    await Publisher(stream, ring()).read()

    assert set(stream.world()) == {key_of(svc("a"))}


async def test_deletions_come_after_and_the_other_way_round() -> None:
    stream = Stream()
    gone = (svc("web"), Ingress(metadata=Metadata(name="i", namespace="default")))
    publisher = await started(stream, put(*gone))
    await publish(publisher, {key_of(obj): None for obj in gone} | put(svc("new")))

    assert [(d.op, d.key.name) for d in stream.deltas()] == [("upsert", "new"), ("delete", "i"), ("delete", "web")]


async def test_while_the_bus_is_away_only_the_newest_state_is_kept() -> None:
    stream = Stream()
    publisher = await started(stream, put(svc("a")))
    before = stream.published
    stream.fail_after = 0
    for version in range(100):
        publisher.want(put(svc("a", str(version)), svc("b", str(version))), observed_at=1.0)
        with pytest.raises(BusUnavailable):
            await publisher.flush()
    publisher.want({key_of(svc("b")): None}, observed_at=1.0)

    stream.fail_after = None
    await publisher.flush()

    # `b` may have been stored before the connection went: it gets a tombstone.
    assert stream.published == before + 3
    assert stream.world() == put(svc("a", "99"))
    stream.assert_marked()


@pytest.mark.parametrize("stored", range(6))
async def test_whatever_part_of_a_pipeline_was_stored_the_end_is_right(stored: int) -> None:
    stream = Stream()
    publisher = await started(stream, put(svc("a"), svc("b"), svc("c")))
    stream.fail_after = stored
    publisher.want(put(svc("a", "1"), svc("d"), svc("e")) | {key_of(svc("b")): None}, observed_at=1.0)
    if stored < 5:
        with pytest.raises(BusUnavailable):
            await publisher.flush()
        # What was on its way is taken back.
        publisher.want(put(svc("a"), svc("b")) | {key_of(svc("d")): None}, observed_at=1.0)
    stream.fail_after = None
    await publisher.flush()

    assert set(stream.world()) == {key_of(svc(n)) for n in (["a", "c", "d", "e"] if stored == 5 else ["a", "b", "c", "e"])}
    stream.assert_marked()


async def test_a_lost_stream_is_noticed_by_its_sequence_and_filled_again() -> None:
    stream = Stream()
    publisher = await started(stream, put(svc("a"), svc("b")))
    stream.wipe()
    with pytest.raises(StreamWentBack):
        await publish(publisher, put(svc("c")))

    await publisher.read()
    await publisher.flush()

    assert set(stream.world()) == {key_of(svc(n)) for n in "abc"}
    assert publisher.epoch == 1
    stream.assert_marked()


async def test_foreign_content_is_put_right_and_its_epoch_overtaken() -> None:
    stream = Stream()
    publisher = await started(stream, put(svc("a")))
    other = Publisher(stream, ring())
    await other.read()
    other.want(put(svc("a", "other"), svc("z")), observed_at=1.0)
    await other.flush()

    await publisher.read()
    await publisher.flush()

    assert stream.world() == put(svc("a"))
    assert publisher.epoch == 3
    stream.assert_marked()


async def test_what_is_published_while_the_stream_is_verified_counts() -> None:
    stream = Stream()
    publisher = await started(stream, put(svc("a"), svc("b"), svc("c")))
    await Publisher(stream, ring()).read()
    foreign = Publisher(stream, ring())
    await foreign.read()
    foreign.want(put(svc("a", "foreign"), svc("b"), svc("c")), observed_at=1.0)
    await foreign.flush()
    lock, read = asyncio.Lock(), asyncio.Event()
    stream.hold_history = read
    verifying = asyncio.ensure_future(publisher.verify(lock))
    await asyncio.sleep(0)
    publisher.sequence = stream.sequence
    await publish(publisher, put(svc("b", "new")) | {key_of(svc("c")): None})
    read.set()
    await verifying
    await publisher.flush()

    assert stream.world() == put(svc("a"), svc("b", "new"))
    stream.assert_marked()


async def test_junk_in_the_stream_is_replaced() -> None:
    stream = Stream()
    junk = subjects.cluster_subject("Service", "default", "junk")
    await stream.publish_many([(junk, b"\xff{", None), (subjects.SYNC_SUBJECT, b"[", None), ("cluster.v1.what", b"{}", None)])

    await started(stream, put(svc("a")))

    assert decode_delta(stream.messages[junk].payload).op == "delete"
    assert stream.messages[subjects.SYNC_SUBJECT].sequence == stream.sequence


async def test_an_object_too_large_is_refused_with_a_problem_and_the_rest_goes_on() -> None:
    stream = Stream()
    publisher = Publisher(stream, ring(), max_delta_bytes=2_000)
    await publisher.read()
    big = ConfigMap(metadata=Metadata(name="big", namespace="default"), data={"a": "x" * 3_000})
    small = msgspec.structs.replace(big, data={"a": "x"})
    await publish(publisher, put(small, svc("a")))
    await publish(publisher, put(big, svc("b")))

    (problem,) = publisher.problems
    assert (problem.reason, problem.object) == (Reason.TOO_LARGE, "ConfigMap default/big")
    assert stream.world() == put(small, svc("a"), svc("b"))
    stream.assert_marked()

    await publish(publisher, put(small))
    assert publisher.problems == ()


async def test_the_largest_objects_that_an_api_server_takes_fit() -> None:
    stream = Stream()
    stream.max_payload = 8 << 20
    secret = Secret(metadata=Metadata(name="s", namespace="default"), type="Opaque", data={"auth": b"x" * (3 << 19)})
    large = ConfigMap(metadata=Metadata(name="c", namespace="default"), data={"a": "x" * (3 << 19)})
    publisher = await started(stream, put(secret, large))
    assert publisher.problems == () and len(stream.deltas()) == 2


async def test_a_server_that_takes_less_than_thought_refuses_one_object_not_all() -> None:
    stream = Stream()
    stream.max_payload = 2_000
    sizes = (10, 1_500, 3_000, 2_500)
    objects = [ConfigMap(metadata=Metadata(name=f"c{size}", namespace="default"), data={"a": "x" * size}) for size in sizes]

    publisher = await started(stream, put(*objects))

    assert {key.name for key in stream.world()} == {"c10", "c1500"}
    assert [problem.object for problem in publisher.problems] == ["ConfigMap default/c2500", "ConfigMap default/c3000"]
    stream.assert_marked()


async def test_a_mark_is_repeated_when_asked_for() -> None:
    stream = Stream()
    publisher = await started(stream, put(svc("a")))
    before = stream.published
    await publisher.flush(mark=True)

    assert stream.published == before + 1
    stream.assert_marked()


async def test_large_lists_go_in_several_pipelines_with_one_mark() -> None:
    stream = Stream()
    await started(stream, put(*(svc(f"s{n}") for n in range(1_100))))

    assert stream.published == 1_101
    stream.assert_marked()


NAMES = st.sampled_from("abcd")
STEPS = st.lists(st.tuples(NAMES, st.sampled_from(["", "1", "2", None]), st.none() | st.integers(0, 3)), max_size=12)


@given(STEPS)
async def test_after_any_history_of_changes_and_failures_the_stream_holds_the_wanted_state(
    steps: list[tuple[str, str | None, int | None]],
) -> None:
    stream = Stream()
    publisher = await started(stream, {})
    wanted: dict[Key, AnyObject] = {}
    for (name, version, failure), _ in zip(steps, itertools.count(), strict=False):
        key = key_of(svc(name))
        wanted.pop(key, None)
        if version is not None:
            wanted[key] = svc(name, version)
        publisher.want({key: wanted.get(key)}, observed_at=1.0)
        stream.fail_after = failure
        try:
            await publisher.flush()
        except BusUnavailable:
            continue
        assert stream.world() == wanted
        stream.assert_marked()
    stream.fail_after = None
    await publisher.flush()
    assert stream.world() == wanted
    stream.assert_marked()


@given(st.lists(st.tuples(NAMES, st.sampled_from(["", "1", None])), max_size=8), st.lists(st.integers(0, 6), max_size=5))
async def test_a_crash_at_any_publish_is_made_good_by_the_next_start(after: list[tuple[str, str | None]], crashes: list[int]) -> None:
    stream = Stream()
    before = put(svc("a"), svc("b"), svc("z"))
    await started(stream, before)
    wanted = {key_of(svc(name)): svc(name, version) for name, version in dict(after).items() if version is not None}
    for stored in crashes:
        stream.fail_after = stored
        with contextlib.suppress(BusUnavailable):
            await started(stream, dict(wanted))
        # Half of the way, but never beyond it: nothing is there that was neither before nor is wanted.
        assert all(obj in (before.get(key), wanted.get(key)) for key, obj in stream.world().items())
    stream.fail_after = None
    publisher = await started(stream, dict(wanted))

    assert stream.world() == wanted
    assert publisher.epoch == stream.mark().epoch
    stream.assert_marked()
