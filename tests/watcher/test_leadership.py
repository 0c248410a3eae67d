"""Who leads: never two at once, whatever fails and however long; and the stream has what the cluster holds after each change of leader."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from services.shared.contracts.objects import Key
from services.shared.flags import Flags
from services.shared.kube.client import Api, Unreachable
from services.shared.kube.lease import Leader, LeaseOptions
from tests.support.fake_kube import FakeKube
from tests.support.ways import answers
from tests.watcher.conftest import Cell, an_ingress

SECONDS = 1.0
LEASE = Key("Lease", "default", "leader")


class Line:
    """One candidate's connection to the API server, which can be cut (errors) or hang."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.cut = False
        self.hangs = False

    async def request(self, method: str, path: str, **more: Any) -> bytes:
        if self.hangs:
            await asyncio.Event().wait()
        if self.cut:
            raise Unreachable("cut")
        return await self._api.request(method, path, **more)


class Candidate:
    def __init__(self, api: Api, name: str) -> None:
        self.line = Line(api)
        options = LeaseOptions(namespace="default", name="leader", holder=name, seconds=SECONDS)
        self.leader = Leader(self.line, options)  # type: ignore[arg-type]  # the one method that it uses
        self.told: list[str] = []
        self.ready = asyncio.Event()
        """Its `won` comes to its end only when this is set."""
        self.ready.set()
        self.task = asyncio.create_task(self.leader.run(self.won, self.lost))

    async def won(self) -> None:
        self.told.append("won")
        await self.ready.wait()

    async def lost(self) -> None:
        self.told.append("lost")

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def leads(self) -> None:
        """And knows it."""
        async with asyncio.timeout(30):
            while not self.leader.leading or self.told[-1:] != ["won"]:
                await asyncio.sleep(0.005)

    async def leads_not(self) -> None:
        async with asyncio.timeout(30):
            while self.leader.leading:
                await asyncio.sleep(0.005)


class Election:
    """An API server, candidates, and a witness who looks all the time whether two lead."""

    def __init__(self, kube: FakeKube, api: Api) -> None:
        self.kube = kube
        self._api = api
        self._candidates: list[Candidate] = []
        self.both = False

    def candidate(self, name: str) -> Candidate:
        made = Candidate(self._api, name)
        self._candidates.append(made)
        return made

    async def witness(self) -> None:
        while True:
            self.both |= sum(c.leader.leading for c in self._candidates) > 1
            await asyncio.sleep(0.002)

    async def stop(self) -> None:
        for candidate in self._candidates:
            await candidate.stop()


@pytest.fixture
async def election(tmp_path: Path) -> AsyncIterator[Election]:
    async with FakeKube() as kube:
        api = await Api.connect(kube.kubeconfig(tmp_path))
        made = Election(kube, api)
        witness = asyncio.create_task(made.witness())
        try:
            yield made
        finally:
            witness.cancel()
            await made.stop()
            await api.close()
        assert not made.both


async def test_one_leads_and_a_released_lease_is_taken_at_once(election: Election) -> None:
    first = election.candidate("first")
    await first.leads()
    second = election.candidate("second")
    await asyncio.sleep(2 * SECONDS)
    assert (first.leader.leading, second.leader.leading) == (True, False)
    await first.stop()
    await first.leader.release()
    assert not first.leader.leading
    await second.leads()
    assert second.told == ["won"]
    assert election.kube.objects[LEASE]["spec"]["leaseTransitions"] == 2


@pytest.mark.parametrize("how", ["cut", "hangs"])
async def test_a_holder_that_cannot_renew_stops_before_another_begins(election: Election, how: str) -> None:
    first = election.candidate("first")
    await first.leads()
    second = election.candidate("second")
    await asyncio.sleep(SECONDS / 2)
    for holder, other in ((first, second), (second, first)):
        setattr(holder.line, how, True)
        await holder.leads_not()
        await other.leads()
        assert holder.told[-1] == "lost"
        setattr(holder.line, how, False)
        await asyncio.sleep(SECONDS)
        assert (holder.leader.leading, other.leader.leading) == (False, True)
    assert first.told == ["won", "lost", "won"]


async def test_one_failed_renewal_changes_nothing(election: Election) -> None:
    first = election.candidate("first")
    await first.leads()
    election.kube.lease_ways.extend([answers(500, "InternalError"), answers(429, "TooManyRequests")])
    await asyncio.sleep(2 * SECONDS)
    assert first.told == ["won"]


async def test_who_was_stopped_leads_no_more_before_anybody_tells(election: Election) -> None:
    """SIGSTOP: nothing in the process ran, but time did."""
    first = election.candidate("first")
    await first.leads()
    await first.stop()
    await first.leads_not()
    assert first.told == ["won"]


async def test_what_the_leader_begins_does_not_hold_up_its_renewals(election: Election) -> None:
    first = election.candidate("first")
    first.ready.clear()
    await first.leads()
    second = election.candidate("second")
    await asyncio.sleep(2 * SECONDS)
    assert first.leader.leading
    first.line.cut = True
    await second.leads()
    assert first.told == ["won", "lost"]


@pytest.mark.parametrize("renewed", ["1970-01-01T00:00:00.000000Z", "2999-01-01T00:00:00.000000Z", "yesterday"])
async def test_no_foreign_clock_is_believed_but_the_holders_own_duration_is(election: Election, renewed: str) -> None:
    spec = {"holderIdentity": "other", "leaseDurationSeconds": 2, "renewTime": renewed}
    election.kube.objects[LEASE] = {"metadata": {"name": "leader", "namespace": "default", "resourceVersion": "7"}, "spec": spec}
    began = asyncio.get_running_loop().time()
    await election.candidate("first").leads()
    assert asyncio.get_running_loop().time() - began >= 2


async def test_who_writes_second_does_not_lead(election: Election) -> None:
    """Between our read and our write another took it: the API server's comparison decides."""
    spec = {"holderIdentity": "", "leaseDurationSeconds": 1}
    election.kube.objects[LEASE] = {"metadata": {"name": "leader", "namespace": "default", "resourceVersion": "7"}, "spec": spec}

    async def reads(_: FakeKube, __: web.Request) -> None:
        return None

    async def another_writes(kube: FakeKube, _: web.Request) -> None:
        taken = json.loads(json.dumps(kube.objects[LEASE]))
        taken["metadata"]["resourceVersion"] = "8"
        taken["spec"]["holderIdentity"] = "other"
        kube.objects[LEASE] = taken

    election.kube.lease_ways.extend([reads, another_writes])
    first = election.candidate("first")
    async with asyncio.timeout(30):
        while election.kube.lease_ways:
            await asyncio.sleep(0.001)
    await asyncio.sleep(SECONDS / 2)
    assert not first.leader.leading
    await first.leads()  # the other never renews


# --- two whole watchers


@pytest.mark.nats
async def test_a_takeover_publishes_what_differs_and_nothing_else(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    async def not_released(_: Leader) -> None: ...

    flags = Flags(election_ttl=3.0)
    for name in "ab":
        cell.kube.put(an_ingress(name, "1"))
    async with contextlib.AsyncExitStack() as second, cell.watcher("first", flags) as first:
        await cell.published_is_what_there_is()
        _ = await second.enter_async_context(cell.watcher("second", flags))
        monkeypatch.setattr(Leader, "release", not_released)
        first.cancel()  # as by kill -9
        await asyncio.gather(first, return_exceptions=True)
        before = len(cell.deltas)
        cell.kube.put(an_ingress("a", "2"))
        cell.kube.delete(Key("Ingress", "default", "b"))
        await cell.published_is_what_there_is()
        assert cell.kube.objects[Key("Lease", "default", "ingress-controller-leader")]["spec"]["holderIdentity"] == "second"
        assert sorted(cell.deltas[before:]) == [
            ("delete", Key("Ingress", "default", "b")),
            ("upsert", Key("Ingress", "default", "a")),
        ]


@pytest.mark.nats
async def test_a_leader_that_ends_leaves_no_gap(cell: Cell) -> None:
    """It releases the Lease: the other need not wait for its end."""
    flags = Flags(election_ttl=60.0)
    cell.kube.put(an_ingress("a", "1"))
    async with contextlib.AsyncExitStack() as stack:
        async with cell.watcher("first", flags):
            await cell.published_is_what_there_is()
            _ = await stack.enter_async_context(cell.watcher("second", flags))
            cell.kube.put(an_ingress("a", "2"))
            await cell.published_is_what_there_is()
        cell.kube.put(an_ingress("a", "3"))
        await cell.published_is_what_there_is()
