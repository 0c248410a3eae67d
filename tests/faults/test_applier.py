"""The applier dies, hangs, is lied to, or finds its disk spoiled: nginx stays on one whole version, and the next applier finishes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from services.compiler.commit import Change, Committer
from services.compiler.engine import Engine
from services.compiler.keys import Keys
from services.shared.bus.jetstream import JetStreamBus
from services.shared.contracts.report import NodeReport, decode_node_report
from services.shared.contracts.subjects import CONFIG_STREAM, NODES_BUCKET, config_subject
from services.shared.contracts.version import Manifest, decode_manifest, encode_manifest
from services.shared.flags import Flags
from tests.support.backends import backends
from tests.support.compiling import CLASS, upsert
from tests.support.nats import NatsServer, free_port
from tests.support.objects import ingress, service
from tests.support.sealing import handing_out
from tests.support.up import ROOT, get

pytestmark = [pytest.mark.nats, pytest.mark.nginx]

NEW_POLICY = {"proxy-read-timeout": "77"}


class Rig:
    """One applier process, a bus, and a compiler's core in this process."""

    def __init__(self, directory: Path, server: NatsServer, bus: JetStreamBus, keys: Keys, port: int) -> None:
        self.directory = directory / "node"
        self.server = server
        self.bus = bus
        self.http, self.https, self.health = free_port(), free_port(), free_port()
        self.engine = Engine(Flags())
        self.committer = Committer(bus, "default", keys.group)
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._log = (directory / "applier.log").open("ab")
        for obj in (CLASS, *service("web", [port])):
            self.engine.apply(upsert(obj))

    async def commit(self, host: str, annotations: dict[str, str] | None = None) -> Manifest:
        """A version that serves this host."""
        self.engine.apply(upsert(ingress("web", {host: {"/": "web"}}, annotations=annotations)))
        out = self.engine.compile()
        change = Change(rows=self.engine.rows, upsert=out.upsert, delete=out.delete, bundle=out.bundle)
        manifest = await self.committer.commit(change)
        assert manifest is not None
        return manifest

    def start(self, failpoint: str = "") -> None:
        command = [
            *(sys.executable, "-m", "services.cli", "applier", "--node", "n", "--directory", str(self.directory)),
            *("--http-port", str(self.http), "--https-port", str(self.https), "--health-port", str(self.health)),
            *("--nats-url", self.server.url),
        ]
        environment = {**os.environ, "SLUICE_FAILPOINT": failpoint}
        self._started = time.time()
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=self._log, stderr=self._log)

    async def ended(self) -> int:
        assert self._process is not None
        return await asyncio.to_thread(self._process.wait, 30)

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def report(self, true: Callable[[NodeReport], bool]) -> NodeReport:
        """The first report of which this is true, of the process that was started last."""
        async with asyncio.timeout(12):
            while True:
                found = (await self.bus.entries(NODES_BUCKET)).get("n")
                report = decode_node_report(found) if found else None
                if report is not None and report.at >= self._started and true(report):
                    return report
                await asyncio.sleep(0.02)

    async def live(self, manifest: Manifest) -> NodeReport:
        return await self.report(
            lambda r: (r.epoch, r.number, r.digest, r.deferred_count) == (manifest.epoch, manifest.number, manifest.digest, 0)
        )

    async def status(self, host: str) -> int:
        return (await asyncio.to_thread(get, self.http, host))[0]

    @property
    def nginx(self) -> psutil.Process:
        return psutil.Process(int((self.directory / "run" / "nginx.pid").read_text()))

    async def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            await self.ended()
        for process in psutil.process_iter(["cmdline"]):
            if str(self.directory) in " ".join(process.info["cmdline"] or []):
                for child in process.children():
                    child.kill()
                process.kill()
        self._log.close()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    with backends("web") as ports:
        async with NatsServer(tmp_path / "nats") as server, JetStreamBus(server.url, name="test") as bus:
            await bus.ensure()
            async with handing_out(bus, tmp_path / "seal") as keys:
                made = Rig(tmp_path, server, bus, keys, ports["web"])
                await made.committer.start()
                try:
                    yield made
                finally:
                    await made.close()


async def _running(rig: Rig) -> Manifest:
    first = await rig.commit("one.example.com")
    rig.start()
    await rig.live(first)
    return first


@pytest.mark.parametrize("point", ["fetched", "verified", "written", "tested", "switched", "reloaded", "confirmed", "committed"])
async def test_killed_at_any_step_nginx_serves_and_the_next_applier_finishes(rig: Rig, point: str) -> None:
    await _running(rig)
    rig.send(signal.SIGKILL)
    await rig.ended()
    second = await rig.commit("two.example.com", NEW_POLICY)

    rig.start(failpoint=point)
    assert await rig.ended() == -signal.SIGKILL
    one, two = await rig.status("one.example.com"), await rig.status("two.example.com")
    assert sorted((one, two)) == [200, 404], "one whole version, the old or the new"

    rig.start()
    await rig.live(second)
    assert (await rig.status("one.example.com"), await rig.status("two.example.com")) == (404, 200)


async def test_a_reload_that_does_not_take_is_noticed_and_undone(rig: Rig) -> None:
    await _running(rig)
    link = rig.directory / "lua"
    shipped = link.readlink()
    broken = rig.directory / "broken"
    broken.mkdir()
    for part in shipped.iterdir():
        (broken / part.name).symlink_to(part)
    (broken / "init.lua").unlink()
    (broken / "init.lua").write_text('error("no")\n')
    link.unlink()
    link.symlink_to(broken)

    second = await rig.commit("two.example.com", NEW_POLICY)
    report = await rig.report(lambda r: "did not take" in r.last_error)
    assert report.deferred_count == 1
    assert (await rig.status("one.example.com"), await rig.status("two.example.com")) == (200, 404)

    link.unlink()
    link.symlink_to(shipped)
    await rig.report(lambda r: r.number == second.number and not r.deferred_count)
    assert await rig.status("two.example.com") == 200


async def test_a_lua_error_in_the_request_path_is_noticed_and_undone(rig: Rig) -> None:
    await _running(rig)
    link = rig.directory / "lua"
    shipped = link.readlink()
    broken = rig.directory / "broken"
    broken.mkdir()
    for part in shipped.iterdir():
        (broken / part.name).symlink_to(part)
    (broken / "router.lua").unlink()
    (broken / "router.lua").write_text("this is not Lua\n")
    link.unlink()
    link.symlink_to(broken)

    await rig.commit("two.example.com", NEW_POLICY)
    await rig.report(lambda r: "does not come through" in r.last_error)
    link.unlink()
    link.symlink_to(shipped)
    await rig.report(lambda r: not r.deferred_count and r.generation > 1)
    assert await rig.status("two.example.com") == 200


@pytest.mark.parametrize("spoil", ["flip", "truncate", "empty"])
async def test_a_spoiled_last_known_good_falls_to_the_one_before(rig: Rig, spoil: str) -> None:
    await _running(rig)
    second = await rig.commit("two.example.com", NEW_POLICY)
    await rig.report(lambda r: r.number == second.number and not r.deferred_count)
    rig.send(signal.SIGTERM)
    await rig.ended()
    tables = rig.directory / "current" / "tables.tsv"
    data = tables.read_bytes()
    middle = len(data) // 2
    tables.write_bytes({"flip": data[:middle] + b"\x00" + data[middle + 1 :], "truncate": data[:middle], "empty": b""}[spoil])
    rig.server.kill()

    rig.start()
    async with asyncio.timeout(12):
        while await _or_nothing(rig, "one.example.com") != 200:
            await asyncio.sleep(0.05)

    await rig.server.start()
    report = await rig.live(second)
    assert "is not used" in report.last_error
    assert await rig.status("two.example.com") == 200


async def _or_nothing(rig: Rig, host: str) -> int:
    try:
        return await rig.status(host)
    except OSError:
        return 0


async def test_starts_and_serves_without_the_bus(rig: Rig) -> None:
    await _running(rig)
    rig.send(signal.SIGTERM)
    await rig.ended()
    rig.server.kill()
    rig.start()
    async with asyncio.timeout(12):
        while await _or_nothing(rig, "one.example.com") != 200:
            await asyncio.sleep(0.05)
    assert (await asyncio.to_thread(get, rig.health, "x", "/healthz"))[0] == 200
    assert (await asyncio.to_thread(get, rig.health, "x", "/readyz"))[0] == 503


async def test_older_foreign_and_forged_versions_are_refused(rig: Rig) -> None:
    first = await _running(rig)
    second = await rig.commit("two.example.com")
    await rig.live(second)

    async def publish(**changes: Any) -> None:
        await rig.bus.publish(config_subject("default"), encode_manifest(msgspec.structs.replace(second, **changes)))

    await publish(number=first.number, digest=first.digest, policy_digest=first.policy_digest, tables_digest=first.tables_digest)
    await publish(group="other", number=second.number + 1)
    await rig.report(lambda r: "is for group other" in r.last_error)
    await publish(number=second.number + 2, tables_digest="0" * 64, delta=None)
    report = await rig.report(lambda r: r.last_error != "" and "group" not in r.last_error)
    assert (report.number, report.digest) == (second.number, second.digest)
    assert (await rig.status("one.example.com"), await rig.status("two.example.com")) == (404, 200)
    newest = await rig.bus.last(CONFIG_STREAM, config_subject("default"))
    assert newest is not None
    assert decode_manifest(newest.payload).number == second.number + 2


async def test_a_second_applier_on_the_same_node_ends_with_a_sentence(rig: Rig, tmp_path: Path) -> None:
    await _running(rig)
    first = rig._process
    rig.start()
    assert await rig.ended() == 1
    rig._process = first
    assert "another applier runs on" in (tmp_path / "applier.log").read_text()


async def test_nginx_killed_comes_back_with_its_rows(rig: Rig) -> None:
    first = await _running(rig)
    await rig.commit("two.example.com")
    third = await rig.commit("three.example.com")
    await rig.live(third)
    master = rig.nginx
    for process in (*master.children(), master):
        process.kill()
    async with asyncio.timeout(12):
        while await _or_nothing(rig, "three.example.com") != 200:
            await asyncio.sleep(0.05)
    assert await rig.status("one.example.com") == 404
    assert third.number > first.number
