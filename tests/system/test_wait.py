"""`sluice wait`, asked of watchers and compilers that die, are deposed, or hold something that cannot be published."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from services.cli.barrier import Barrier
from services.cli.wait import Waited, until_live
from services.shared.bus.jetstream import JetStreamBus
from services.shared.bus.port import Request
from services.shared.contracts import subjects
from services.shared.contracts.problem import Problem, Reason
from services.shared.contracts.question import BarrierAnswer, CoverAnswer
from services.shared.contracts.report import NodeReport
from tests.support.nats import NatsServer

pytestmark = pytest.mark.nats

COVER = subjects.of_group(subjects.ASK_COMPILER_COVER, "default")
LARGE = Problem(reason=Reason.TOO_LARGE, field="metadata.name", message="is too large", object="Ingress team/large")
UNREADABLE = Problem(reason=Reason.UNREADABLE_FILE, field="a.yaml:1", message="not YAML")


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[JetStreamBus]:
    """With a node that has version 1.7."""
    async with NatsServer(tmp_path / "nats") as server, JetStreamBus(server.url, name="test") as bus:
        await bus.ensure()
        report = NodeReport(node="n", group="default", at=time.time(), epoch=1, number=7, digest="d", ready=True)
        await bus.put(subjects.NODES_BUCKET, "n", msgspec.json.encode(report))
        yield bus


async def covers(_: Request) -> bytes:
    """A compiler's answer."""
    return msgspec.json.encode(CoverAnswer(epoch=1, number=7, digest="d"))


async def serve(bus: JetStreamBus, source: BarrierAnswer) -> None:
    """A watcher with this answer, and a compiler."""

    async def answer(_: Request) -> bytes:
        return msgspec.json.encode(source)

    await bus.serve(subjects.ASK_WATCHER_BARRIER, answer)
    await bus.serve(COVER, covers)


async def waited(bus: JetStreamBus, ingress: str = "", seconds: float = 15.0) -> Waited:
    began = time.monotonic()
    return await until_live(Barrier(bus, group="default", expected=(), deadline=began + seconds), ingress, began)


async def test_who_dies_with_a_question_in_hand_is_not_waited_for(bus: JetStreamBus) -> None:
    asked = asyncio.Event()

    async def dies(_: Request) -> bytes:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    stop = await bus.serve(subjects.ASK_WATCHER_BARRIER, dies)
    waiting = asyncio.create_task(waited(bus))
    await asked.wait()
    await stop()
    await serve(bus, BarrierAnswer(sequence=3))
    assert (await waiting).live


async def test_an_answer_that_takes_longer_than_a_question_is_asked_again_counts(bus: JetStreamBus) -> None:
    """Each look begins after its question: a source that takes long would never answer the latest one in time."""
    asked = 0

    async def slow(_: Request) -> bytes:
        nonlocal asked
        asked += 1
        first = asked == 1
        await asyncio.sleep(3 if first else 60)
        return msgspec.json.encode(BarrierAnswer(sequence=3))

    await bus.serve(subjects.ASK_WATCHER_BARRIER, slow)
    await bus.serve(COVER, covers)
    assert (await waited(bus)).live


async def test_a_watcher_that_was_deposed_meanwhile_is_asked_no_more(bus: JetStreamBus) -> None:
    asked = 0

    async def deposed(_: Request) -> bytes:
        nonlocal asked
        asked += 1
        behind = Problem(reason=Reason.SOURCE_UNREACHABLE, field="source", message="another watcher leads now; ask again")
        return msgspec.json.encode(BarrierAnswer(sequence=3, again=asked < 3, problems=(behind,) if asked < 3 else ()))

    await bus.serve(subjects.ASK_WATCHER_BARRIER, deposed)
    await bus.serve(COVER, covers)
    assert (await waited(bus)).live


async def test_an_object_that_cannot_be_published_is_named_and_keeps_nobody_waiting(bus: JetStreamBus) -> None:
    await serve(bus, BarrierAnswer(sequence=3, problems=(LARGE,)))

    everything = await waited(bus)
    assert everything.live and everything.problems == (LARGE,)
    assert (await waited(bus, "default/shop")).live

    own = await waited(bus, "team/large")
    assert not own.live and own.step == "ingress" and "is too large" in own.reason


async def test_a_file_that_cannot_be_read_may_hold_anything(bus: JetStreamBus) -> None:
    await serve(bus, BarrierAnswer(sequence=3, problems=(UNREADABLE, LARGE)))
    answer = await waited(bus)
    assert not answer.live and answer.step == "watcher" and "a.yaml:1" in answer.reason
