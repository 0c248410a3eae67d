"""An Ingress that kills the compiler: what was committed stands, everybody else moves on, and it is tried again when it changes."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.shared.bus.jetstream import JetStreamBus
from services.shared.contracts.subjects import VERDICTS_BUCKET
from services.shared.versions import read
from tests.support.backends import backends
from tests.support.cluster import Cluster
from tests.support.compiling import small_world
from tests.support.faults import Service, services
from tests.support.nats import NatsServer
from tests.support.objects import ingress, many, service
from tests.support.reviews import answer, review
from tests.support.sealing import key_directory
from tests.support.up import SluiceUp, get
from tests.support.versions import GROUP, content_of

pytestmark = [pytest.mark.nats, pytest.mark.nginx]

POISON = "poison.example.com"
BACK = ["web.example.com", "shop.example.com"]


def _deaths(up: SluiceUp) -> int:
    """Of the compiler, so far."""
    events = [json.loads(line) for line in up.log.read_text().splitlines() if line.startswith("{")]
    return len([e for e in events if e["event"] in ("exited", "crash-loop") and e["process"] == "compiler"])


def _live(up: SluiceUp, host: str, status: int = 200) -> None:
    """Wait for it on all nodes: `sluice wait` has nobody to ask while the compiler is down."""
    up.until(lambda: {get(port, host)[0] for port in up.http} == {status}, 60)


def _verdict(up: SluiceUp, name: str) -> dict[str, Any] | None:
    return next((v for v in up.status()["verdicts"] if v["name"] == name), None)


def _poisoned() -> dict[str, Any]:
    return ingress("shop", {"shop.example.com": {"/": "web"}, POISON: {"/": "web"}})


@pytest.mark.parametrize("stage", ["read", "lower"])
def test_it_keeps_its_form_before_others_move_on_and_a_change_is_tried(tmp_path: Path, stage: str) -> None:
    with backends("web") as ports, SluiceUp(tmp_path, nodes=1, environment={"SLUICE_FAILPOINT": f"{stage} {POISON}"}) as up:
        up.write("web.yaml", many(*service("web", [ports["web"]]), ingress("web", {"web.example.com": {"/": "web"}})))
        up.write("shop.yaml", many(ingress("shop", {"shop.example.com": {"/": "web"}})))
        up.wait()
        up.write("shop.yaml", many(_poisoned()))
        up.until(lambda: _deaths(up) == 2, 60)
        up.write("new.yaml", many(ingress("new", {"new.example.com": {"/": "web"}})))
        _live(up, "new.example.com")
        assert [get(up.http[0], host)[0] for host in (*BACK, POISON)] == [200, 200, 404]
        up.until(lambda: _verdict(up, "shop") is not None)
        verdict = _verdict(up, "shop")
        assert verdict is not None and not verdict.get("accepted", False)
        assert "the compiler died 2 times while compiling this; the form before stays" in verdict["problems"][0]["message"]
        assert "the compiler died 2 times" in " ".join(up.run("status").stdout.replace("│", " ").split())

        up.child("compiler").kill()  # it is left alone in the next life as well
        up.until(lambda: _deaths(up) == 3, 60)
        up.write("more.yaml", many(ingress("more", {"more.example.com": {"/": "web"}})))
        _live(up, "more.example.com")
        assert [get(up.http[0], host)[0] for host in (*BACK, POISON)] == [200, 200, 404]

        up.write("shop.yaml", many(ingress("shop", {"shop.example.com": {"/": "web"}, "mended.example.com": {"/": "web"}})))
        up.wait("--for", "default/shop")
        assert get(up.http[0], "mended.example.com")[0] == 200
        assert _verdict(up, "shop") is None
        assert _deaths(up) == 3


def test_one_without_a_form_before_is_left_out(tmp_path: Path) -> None:
    with backends("web") as ports, SluiceUp(tmp_path, nodes=1, environment={"SLUICE_FAILPOINT": f"read {POISON}"}) as up:
        up.write("web.yaml", many(*service("web", [ports["web"]]), ingress("web", {"web.example.com": {"/": "web"}})))
        up.wait()
        up.write("bad.yaml", many(ingress("bad", {POISON: {"/": "web"}})))
        up.until(lambda: _deaths(up) == 2, 60)
        up.write("new.yaml", many(ingress("new", {"new.example.com": {"/": "web"}})))
        _live(up, "new.example.com")
        assert [get(up.http[0], host)[0] for host in ("web.example.com", POISON)] == [200, 404]
        (up.manifests / "bad.yaml").unlink()
        up.wait()
        assert _verdict(up, "bad") is None
        assert _deaths(up) == 2


class Rig:
    """A bus, a cluster on it, and a compiler that somebody starts again when it dies."""

    def __init__(self, directory: Path, server: NatsServer, bus: JetStreamBus) -> None:
        self._directory = directory
        self._server = server
        self.bus = bus
        self.cluster = Cluster(bus)
        key_directory(directory / "seal")

    def compiler(self, notes: str, failpoint: str = "") -> Service:
        files = ("--seal-keys", str(self._directory / "seal"), "--crash-notes", str(self._directory / notes))
        environment = {"SLUICE_FAILPOINT": failpoint}
        return Service(self._directory / "compiler.log", "compiler", *files, "--nats-url", self._server.url, environment=environment)

    async def hosts(self) -> set[str]:
        """Of the newest version."""
        found = await read.head(self.bus, GROUP)
        return {key[2:] for key in await content_of(self.bus, found[0]) if key.startswith("h/")} if found else set()

    async def has(self, *hosts: str) -> None:
        async with asyncio.timeout(30):
            while not set(hosts) <= await self.hosts():
                await asyncio.sleep(0.02)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with NatsServer(tmp_path / "nats") as server, JetStreamBus(server.url, name="test") as bus:
        await bus.ensure()
        made = Rig(tmp_path, server, bus)
        await made.cluster.publish(*small_world(4))
        yield made


async def test_what_was_compiled_before_is_never_left_out(rig: Rig) -> None:
    """A new release that dies of an old object, or too little memory for all of them: the version stands, and nobody pays."""
    await rig.cluster.put(ingress("shop", {"shop.example.com": {"/": "web-0"}}))
    await rig.cluster.mark()
    async with services(rig.compiler("old")):
        await rig.has("shop.example.com")
    before = await rig.hosts()
    await rig.cluster.put(ingress("other", {"other.example.com": {"/": "web-0"}}))
    await rig.cluster.mark()
    bad = rig.compiler("new", "read shop.example.com")
    for _ in range(6):
        async with services(bad):
            assert await bad.ended() == -signal.SIGKILL
    assert await rig.hosts() == before
    async with services(rig.compiler("new")):
        await rig.has("other.example.com", "shop.example.com")


async def test_what_no_compiler_could_compile_is_left_out_by_one_without_notes_as_well(rig: Rig) -> None:
    await rig.cluster.put(ingress("bad", {POISON: {"/": "web-0"}}))
    await rig.cluster.mark()
    for notes in ("first", "second"):
        compiler = rig.compiler(notes, f"read {POISON}")
        for _ in range(2):
            async with services(compiler):
                assert await compiler.ended() == -signal.SIGKILL
        async with services(compiler):
            await rig.cluster.put(ingress(notes, {f"{notes}.example.com": {"/": "web-0"}}))
            await rig.cluster.mark()
            await rig.has(f"{notes}.example.com")
            async with asyncio.timeout(30):
                while not any(key.endswith(".bad") for key in await rig.bus.entries(VERDICTS_BUCKET)):
                    await asyncio.sleep(0.02)
    assert POISON not in await rig.hosts()


def test_a_review_that_kills_the_compiler_does_so_twice(tmp_path: Path) -> None:
    """Whatever the object is called; and what is asked meanwhile is answered."""
    with backends("web") as ports, SluiceUp(tmp_path, nodes=1, environment={"SLUICE_FAILPOINT": f"admit {POISON}"}) as up:
        up.write("web.yaml", many(*service("web", [ports["web"]]), ingress("web", {"web.example.com": {"/": "web"}})))
        up.wait()
        for n in range(2):
            allowed = answer(up.webhook, _review(f"bad-{n}", POISON))
            assert allowed["allowed"], "the webhook's own checks find nothing"
            assert "skipped" in allowed["warnings"][0]
            up.until(lambda n=n: _deaths(up) == n + 1, 60)  # type: ignore[misc]
            up.wait()
        refused = answer(up.webhook, _review("bad-3", POISON))
        assert not refused["allowed"]
        assert "the compiler died 2 times" in refused["status"]["message"]
        assert answer(up.webhook, _review("good", "good.example.com"))["allowed"]
        assert _deaths(up) == 2


def _review(name: str, host: str) -> dict[str, Any]:
    return review(ingress(name, {host: {"/": "web"}}), name=name)


def test_one_that_would_not_fit_any_node_is_refused_in_little_memory(tmp_path: Path) -> None:
    """600 kB whose every route would carry long lists: 320 MB of rows."""
    lists = {
        "whitelist-source-range": ",".join(f"10.{n // 250}.{n % 250}.0/24" for n in range(2000)),
        "enable-cors": "true",
        "cors-allow-origin": ",".join(f"https://o{n}.example.com" for n in range(1000)),
    }
    bomb = ingress("bomb", {"bomb.example.com": {f"/p{n}": "web" for n in range(5000)}}, annotations=lists)
    with backends("web") as ports, SluiceUp(tmp_path, nodes=1) as up:
        up.write("web.yaml", many(*service("web", [ports["web"]]), ingress("web", {"web.example.com": {"/": "web"}})))
        up.wait()
        compiler = up.child("compiler")
        room = compiler.memory_info().vms + (200 << 20)
        resource.prlimit(compiler.pid, resource.RLIMIT_AS, (room, room))
        up.write("bomb.yaml", many(bomb))
        up.write("new.yaml", many(ingress("new", {"new.example.com": {"/": "web"}})))
        up.until(lambda: _verdict(up, "bomb") is not None)
        _live(up, "new.example.com")
        verdict = _verdict(up, "bomb")
        assert verdict is not None and verdict["problems"][0]["reason"] == "TooLarge"
        assert _deaths(up) == 0
        assert get(up.http[0], "web.example.com")[0] == 200
