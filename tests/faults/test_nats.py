"""Three NATS servers, of which some or all are killed, hang, lose or falsify what they stored, or cannot store any more: nodes serve all
the time, no node ever goes back, and afterwards all that was changed is live. One plane for all tests, each of which leaves it whole."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.shared.bus.jetstream import JetStreamBus
from services.shared.bus.port import BusError
from services.shared.contracts import subjects
from services.shared.contracts.version import VersionId
from services.shared.versions import read
from tests.support.backends import backends
from tests.support.clients import Answer, steady
from tests.support.compiling import CLASS
from tests.support.faults import disk_of, strace, until
from tests.support.nats_cluster import GROUP, NatsCluster
from tests.support.objects import ingress, many, service
from tests.support.plane import Observer, Plane, digest_of_objects
from tests.support.reviews import answer, review
from tests.support.reviews import ingress as reviewed

pytestmark = [pytest.mark.nats, pytest.mark.nginx]

HOST = "web.example.com"
HOSTILE = reviewed() | {"spec": {"ingressClassName": "nginx", "rules": [{"host": "x;\n}", "http": {"paths": []}}]}}


class Cell:
    """The plane and the directory that is its truth."""

    def __init__(self, directory: Path, cluster: NatsCluster, port: int) -> None:
        self.cluster = cluster
        self.members = cluster.members
        self._manifests = directory / "manifests"
        self._manifests.mkdir()
        self.plane = Plane(directory, cluster, source=("--manifests", str(self._manifests)))
        self._objects: dict[str, list[dict[str, Any]]] = {}
        self._edits = 0
        self.write("class", CLASS)
        self.write("web", *service("web", [port]), ingress("web", {HOST: {"/": "web"}}))

    def write(self, name: str, *objects: dict[str, Any]) -> None:
        """One file, as an editor saves it."""
        self._objects[name] = list(objects)
        fresh = self._manifests / f".{name}.tmp"
        fresh.write_text(many(*objects))
        fresh.rename(self._manifests / f"{name}.yaml")

    def edit(self) -> str:
        """Change something; a host that is served only afterwards."""
        self._edits += 1
        host = f"edit-{self._edits}.example.com"
        self.write("edit", ingress("edit", {host: {"/": "web"}}))
        return host

    @property
    def digest(self) -> str:
        return digest_of_objects(obj for objects in self._objects.values() for obj in objects)

    async def converged(self) -> VersionId:
        """Wait until all nodes serve what is in the directory, under one version."""
        while True:
            found = await self.plane.serve(self.digest)
            if len(set(found)) == 1:
                return found[0]
            await asyncio.sleep(0.1)

    async def change(self) -> VersionId:
        """An edit, live on all nodes."""
        self.edit()
        return await self.converged()

    async def stored(self) -> dict[VersionId, str]:
        """The versions in the stream, and what they are."""
        async with asyncio.timeout(60), self.cluster.bus() as bus:
            while True:
                with contextlib.suppress(BusError):
                    return {m.id: m.digest for m in await read.stored(bus, GROUP)}
                await asyncio.sleep(0.1)


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cell]:
    directory = tmp_path_factory.mktemp("nats")
    with disk_of("192m") as disk, backends("web") as ports:
        cluster = NatsCluster(directory / "nats", stores=(None, None, disk))
        made = None
        with asyncio.Runner() as runner:
            try:
                runner.run(cluster.__aenter__())
                made = Cell(directory, cluster, ports["web"])
                context = made.plane.running()
                runner.run(context.__aenter__())
                try:
                    yield made
                finally:
                    runner.run(context.__aexit__(None, None, None))
            finally:
                runner.run(cluster.__aexit__())


@pytest.fixture
async def whole(cell: Cell) -> AsyncIterator[Cell]:
    """All servers run and all nodes serve what they should; traffic passes while the test runs, and no node goes back."""
    await cell.change()

    def right(found: Answer) -> bool:
        return found.status == 200 and found.body.startswith(b"web ")

    ports = [node.http for node in cell.plane.nodes]
    async with Observer(cell.plane.nodes) as observer:
        async with steady(ports, HOST, right, per_second=50, connections=2) as tally:
            try:
                yield cell
            finally:
                for member in cell.members:
                    if member.running:
                        member.cont()
                await cell.cluster.start()
            await until(lambda: tally.requests > 50)
        await cell.change()
    observer.check()
    assert tally.failures == []


# --- servers that do not answer


async def test_one_server_is_killed(whole: Cell) -> None:
    before = await whole.converged()
    (await whole.cluster.leader(subjects.CONFIG_STREAM)).kill()
    after = await whole.change()
    assert (after.epoch, after.number) == (before.epoch, before.number + 1)


async def test_one_server_hangs(whole: Cell) -> None:
    before = await whole.converged()
    member = await whole.cluster.leader(subjects.CLUSTER_STREAM)
    member.stop()
    await whole.change()
    member.cont()  # it believes that it leads
    after = await whole.change()
    assert (after.epoch, after.number) == (before.epoch, before.number + 2)


async def test_two_of_three_are_down(whole: Cell) -> None:
    """Nothing can be changed, everything is served, also by a node that restarts, and the webhook answers."""
    before = await whole.converged()
    for member in whole.members[1:]:
        member.kill()
    host = whole.edit()
    node = whole.plane.nodes[1]
    node.service.send(signal.SIGKILL)
    await node.service.ended()
    node.service.start()
    good = await asyncio.to_thread(answer, whole.plane.webhook_port, review())
    bad = await asyncio.to_thread(answer, whole.plane.webhook_port, review(HOSTILE))
    assert (good["allowed"], bad["allowed"]) == (True, False)
    for node in whole.plane.nodes:
        live = await node.live()
        assert live is not None
        assert live[0] == before
        assert await node.status(host) == 404

    await whole.cluster.start()
    await whole.converged()
    for node in whole.plane.nodes:
        assert await node.status(host) == 200


async def test_all_are_down_and_come_back(whole: Cell) -> None:
    """Those that wait do not come all at once: whoever has failed for long waits up to 6 s between attempts."""
    crowd = 40
    came: list[float] = []
    loop = asyncio.get_running_loop()
    before = await whole.converged()
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(JetStreamBus(whole.cluster.address(), name=f"client-{n}")) for n in range(crowd)]
        for client in clients:
            client._connection._reconnected = lambda: came.append(loop.time())
        whole.cluster.kill()
        whole.edit()
        await asyncio.sleep(12)
        assert came == []
        await whole.cluster.start()
        await until(lambda: len(came) >= crowd, 60)
    assert max(came) - min(came) > 2.5
    assert max(sum(t <= u < t + 1 for u in came) for t in came) < crowd * 0.7
    after = await whole.converged()
    assert (after.epoch, after.number) == (before.epoch, before.number + 1)


# --- what was stored is lost, old, or false


@pytest.mark.parametrize("compiler", ["lives", "dies"])
async def test_all_are_down_and_what_they_stored_is_gone(whole: Cell, compiler: str) -> None:
    """If the compiler dies, only nodes know which versions there were."""
    before, stored = await whole.converged(), await whole.stored()
    whole.cluster.kill()
    for member in whole.members:
        member.wipe()
    if compiler == "dies":
        process = whole.plane.compilers[0]
        process.send(signal.SIGKILL)
        await process.ended()
        process.start()
    whole.edit()
    await whole.cluster.start()
    after = await whole.converged()
    assert after.epoch > before.epoch
    assert after.number > before.number
    if compiler == "lives":
        await _none_is_another(whole, stored)
    await _a_new_node_gets_it_all(whole, f"after-wipe-{compiler}")


async def test_an_old_copy_is_restored(whole: Cell, tmp_path: Path) -> None:
    """As after a loss of what was acknowledged last: numbers that nodes have seen are not used again."""
    whole.cluster.kill()
    for member in whole.members:
        shutil.copytree(member.store, tmp_path / member.name)
    await whole.cluster.start()
    for _ in range(2):
        await whole.change()
    before = await whole.change()
    stored = await whole.stored()
    whole.cluster.kill()
    for member in whole.members:
        member.wipe()
        shutil.copytree(tmp_path / member.name, member.store, dirs_exist_ok=True)
    whole.edit()
    await whole.cluster.start()
    after = await whole.converged()
    assert after.epoch > before.epoch
    await _none_is_another(whole, stored)
    await _a_new_node_gets_it_all(whole, "after-restore")


async def test_bits_flip_on_one_server(whole: Cell) -> None:
    """It must neither serve them nor spread them, also where it is one of a bare majority."""
    choice = random.Random(11)
    stored = await whole.stored()
    member = whole.members[0]
    member.kill()
    flipped = 0
    for file in sorted(member.store.rglob("*.blk")):
        data = bytearray(file.read_bytes())
        for _ in range(min(8, len(data))):
            data[choice.randrange(len(data))] ^= 1 << choice.randrange(8)
            flipped += 1
        file.write_bytes(data)
    assert flipped > 50
    member.start()
    await whole.change()
    whole.members[1].kill()
    await whole.change()
    await _none_is_another(whole, stored)
    await _a_new_node_gets_it_all(whole, "after-flips")


# --- a disk that is slow, or full


async def test_the_disk_of_one_server_is_slow(whole: Cell) -> None:
    member = await whole.cluster.leader(subjects.CONFIG_STREAM)
    with strace(member.pid, "-e", "trace=fsync,fdatasync,pwrite64", "-e", "inject=fsync,fdatasync,pwrite64:delay_enter=500000"):
        for _ in range(2):
            await whole.change()


async def test_the_disk_of_one_server_is_full(whole: Cell) -> None:
    """It gives JetStream up, the others go on. Restarted, as the chart's liveness probe has it, it catches up as soon as there is room."""
    member = whole.members[2]
    filler = member.store / "filler"
    with contextlib.suppress(OSError), filler.open("wb") as file:
        while True:
            file.write(b"\0" * 65536)
    async with asyncio.timeout(60), whole.cluster.bus() as bus:
        while await member.is_alive():
            with contextlib.suppress(BusError):
                await bus.publish("applied.v1.filler", b"x" * 500_000)
    await whole.change()
    member.kill()
    member.start()
    await whole.change()
    filler.unlink()
    if not await member.is_alive():
        member.kill()
        member.start()
    await member.healthy()
    await whole.change()


# --- what people do


async def test_an_object_that_no_message_can_carry(whole: Cell) -> None:
    """It is refused where it would be published, and stops nothing."""
    large = ingress("large", {"large.example.com": {"/": "web"}}, annotations={"x": "y" * 4_500_000})
    (whole._manifests / "large.yaml").write_text(many(large))
    try:
        await whole.change()
        async with asyncio.timeout(60), whole.cluster.bus() as bus:
            while not any(b"large" in value and b"bytes" in value for value in (await bus.entries(subjects.WATCHERS_BUCKET)).values()):
                await asyncio.sleep(0.1)
    finally:
        (whole._manifests / "large.yaml").unlink()


async def test_an_administrator_deletes_streams(whole: Cell) -> None:
    """What only the bus had (reports, keys, blobs) is there again as well."""
    stored = await whole.stored()
    names = [spec.name for spec in subjects.STREAMS]
    first = [subjects.CLUSTER_STREAM, subjects.CONFIG_STREAM]
    async with whole.cluster.bus() as bus:
        for together in (first[:1], first[1:], [name for name in names if name not in first]):
            for name in together:
                await bus._connection.js.delete_stream(name)
            await whole.change()
    await _none_is_another(whole, stored)
    await _a_new_node_gets_it_all(whole, "after-deletion")


async def _none_is_another(cell: Cell, before: dict[VersionId, str]) -> None:
    """A version that is there still, or again, is what it was."""
    now = await cell.stored()
    assert {id: digest for id, digest in now.items() if id in before} == {id: digest for id, digest in before.items() if id in now}


async def _a_new_node_gets_it_all(cell: Cell, name: str) -> None:
    """From the bus alone."""
    node = cell.plane.node(name)
    node.service.start()
    try:
        await cell.plane.serve(cell.digest, node)
    finally:
        await node.close()
