"""A new policy on four real nodes: canary first, then a share, then all; one that nginx refuses is tried by the canary alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from services.cli.state import Up
from services.cli.status import Step, _gather, _show
from services.compiler.gatekeeper import Gatekeeper
from services.compiler.rollout import Rollout
from services.shared.bus.jetstream import JetStreamBus
from services.shared.contracts.report import NodeReport
from services.shared.contracts.rollout import Gate, Waiting, decode_gate, encode_gate, position
from services.shared.contracts.subjects import NODES_BUCKET, ROLLOUTS_BUCKET, bucket_subject, config_subject, token
from services.shared.contracts.version import Manifest, Policy, PolicyBundle, VersionId, bundle_digest, encode_manifest
from services.shared.telemetry import lifecycle
from tests.support.backends import backends
from tests.support.clients import steady
from tests.support.compiling import upsert
from tests.support.nats import NatsServer
from tests.support.node import Rig, one_node
from tests.support.objects import config_map, ingress, many, service
from tests.support.up import SluiceUp, get

pytestmark = [pytest.mark.nats, pytest.mark.nginx]

NAMES = [f"node-{i}" for i in range(4)]
CANARY = min(range(4), key=lambda i: position(NAMES[i]))
OTHERS = [i for i in range(4) if i != CANARY]
NEW = {"proxy-buffer-size": "16k"}
BAD = {"configuration-snippet": "no_such_directive on;"}
SOAK_SECONDS = 6
"""Long enough for a slow machine to look at a stage."""


@contextlib.contextmanager
def _up(directory: Path, canaries: str = "", soak_seconds: float = SOAK_SECONDS) -> Iterator[SluiceUp]:
    with backends("web") as ports:
        environment = {"SLUICE_ROLLOUT_SOAK": str(soak_seconds), "SLUICE_CANARY_NODES": canaries}
        up = SluiceUp(directory, nodes=4, environment=environment)
        up.write("services.yaml", many(*service("web", [ports["web"]])))
        up.write("config.yaml", many(config_map({"allow-snippet-annotations": "true", "annotations-risk-level": "Critical"})))
        up.write("web.yaml", many(ingress("web", {"web.example.com": {"/": "web"}})))
        with up:
            up.wait()
            yield up


def _edit(up: SluiceUp) -> None:
    up.write("new.yaml", many(ingress("new", {"new.example.com": {"/": "web"}}, annotations=NEW)))


def _policy_reloads(status: dict[str, Any]) -> list[int]:
    assert [n["node"] for n in status["nodes"]] == NAMES
    return [n["reloads"].get("policy", 0) for n in status["nodes"]]


def _until_canary(up: SluiceUp) -> dict[str, Any]:
    """The status once the first node has loaded the new policy."""
    found: list[dict[str, Any]] = []

    def loaded() -> bool:
        found[:] = [up.status()]
        return any(_policy_reloads(found[0]))

    up.until(loaded)
    return found[0]


def _answers(up: SluiceUp, host: str) -> list[int]:
    return [get(port, host)[0] for port in up.http]


def test_a_good_policy_goes_from_canary_to_share_to_all_with_one_reload_each(tmp_path: Path) -> None:
    with _up(tmp_path, canaries="node-0") as up:
        before = up.reloads()
        _edit(up)
        status = _until_canary(up)
        assert _answers(up, "new.example.com") == [200, 404, 404, 404]
        assert _policy_reloads(status) == [1, 0, 0, 0]
        assert [(s["stage"], s["let_in"]) for s in status["rollout"]] == [("canaries", ["node-0"])]
        assert not status["converged"]

        up.write("web.yaml", many(ingress("web", {"rows.example.com": {"/": "web"}})))  # what needs no new policy does not wait
        up.until(lambda: _answers(up, "rows.example.com") == [200] * 4, timeout=10)
        assert _answers(up, "new.example.com")[3] == 404

        up.wait("--timeout", "60")
        status = up.status()
        assert _answers(up, "new.example.com") == [200] * 4
        assert up.reloads() == [n + 1 for n in before]
        assert status["converged"]
        assert not status.get("rollout")
        canary, second, share, fourth = ((up.state / "nodes" / name / "current").lstat().st_mtime for name in NAMES)  # when it switched
        assert position("node-2") < 25 <= min(position("node-1"), position("node-3"))
        assert share - canary >= SOAK_SECONDS
        assert min(second, fourth) - share >= SOAK_SECONDS


def test_a_policy_that_nginx_refuses_is_tried_by_one_node_only_and_holds_up_nothing(tmp_path: Path) -> None:
    with _up(tmp_path, soak_seconds=2) as up:
        up.write("bad.yaml", many(ingress("bad", {"bad.example.com": {"/": "web"}}, annotations=BAD)))
        assert up.run("wait", "--for", "default/bad").returncode == 1
        up.write("web.yaml", many(ingress("web", {"rows.example.com": {"/": "web"}})))
        up.wait("--for", "default/web")
        assert _answers(up, "rows.example.com") == [200] * 4

        _edit(up)
        up.wait("--for", "default/new")
        assert _answers(up, "new.example.com") == [200] * 4
        tried = [(up.state / "logs" / f"{name}.log").read_text().count("nginx refuses a policy") for name in NAMES]
        assert tried == [int(i == CANARY) for i in range(4)]
        up.write(
            "config.yaml", many(config_map({"allow-snippet-annotations": "true", "annotations-risk-level": "Critical", "keep-alive": "33"}))
        )
        up.wait()
        assert up.status()["converged"], "wait returns when a global policy has reached all nodes"
        bad = next(v for v in up.status()["verdicts"] if v["name"] == "bad")
        assert not bad["accepted"]
        assert "no_such_directive" in json.dumps(bad)


def test_a_killed_compiler_and_a_bus_that_is_away_hold_a_rollout_up_and_no_more(tmp_path: Path) -> None:
    with _up(tmp_path) as up:
        _edit(up)
        assert _policy_reloads(_until_canary(up)) == [int(i == CANARY) for i in range(4)]
        up.child("compiler").send_signal(signal.SIGKILL)
        bus = up.child("nats")
        bus.suspend()
        try:
            time.sleep(SOAK_SECONDS)
            assert _answers(up, "web.example.com") == [200] * 4
            assert [_answers(up, "new.example.com")[i] for i in OTHERS] == [404] * 3
        finally:
            bus.resume()
        resumed = time.time()
        up.wait("--timeout", "60")
        assert _answers(up, "new.example.com") == [200] * 4
        assert _policy_reloads(up.status()) == [1] * 4
        switched = [(up.state / "nodes" / NAMES[i] / "current").lstat().st_mtime for i in OTHERS]
        assert min(switched) >= resumed + SOAK_SECONDS, "the compiler that started again waits for it to soak, too"


class Staged:
    """One applier whose gate this test writes. Its versions are staged."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        rig.committer._staged = True

    async def gate(self, manifest: Manifest, *waiting: str) -> None:
        gate = Gate(
            group="default",
            epoch=manifest.epoch,
            number=manifest.number,
            policy_digest=manifest.policy_digest,
            canaries=("another",),
            waiting=dict.fromkeys(waiting, Waiting()),
        )
        await self.rig.bus.put(ROLLOUTS_BUCKET, "default", encode_gate(gate))

    async def restart(self) -> None:
        self.rig.send(signal.SIGTERM)
        await self.rig.ended()
        self.rig.start()

    def new(self, before: PolicyBundle) -> dict[str, str]:
        """Hash -> text of what the newest version brought."""
        return {p.hash: p.text for p in self.rig.engine.bundle.policies if p not in before.policies}


@pytest.fixture
async def staged(tmp_path: Path) -> AsyncIterator[Staged]:
    async with one_node(tmp_path) as rig:
        yield Staged(rig)


async def test_a_node_that_is_not_let_in_keeps_rows_and_what_they_need_also_over_reloads_and_starts(staged: Staged) -> None:
    rig = staged.rig
    first = await rig.commit("one.example.com", {"proxy-read-timeout": "11"})
    rig.start()
    await rig.live(first)  # a node that runs nothing waits for no gate
    before = rig.engine.bundle
    rig.add("second", [1], "two.example.com", {"proxy-read-timeout": "22"})
    second = await rig.commit("one.example.com", {"proxy-read-timeout": "33"})
    new = staged.new(before)
    slow, other = (next(h for h, text in new.items() if wanted in text) for wanted in ("33s", "22s"))
    assert "11s" not in "".join(p.text for p in rig.engine.bundle.policies), "the version lacks what the row before names"
    waiting = await rig.report(lambda r: (r.number, r.deferred_count) == (second.number, 2))
    assert set(waiting.unloaded) == {slow, other}

    await staged.gate(first)  # of another bundle
    await staged.gate(second, slow)
    partly = await rig.report(lambda r: r.deferred_count == 1)
    assert (partly.unloaded, partly.reloads.get("policy", 0)) == ((slow,), 1)
    assert (await rig.status("one.example.com"), await rig.status("two.example.com")) == (200, 502)

    await staged.restart()
    again = await rig.report(lambda r: (r.number, r.deferred_count) == (second.number, 1))
    assert again.unloaded == (slow,)
    assert await rig.status("one.example.com") == 200

    await staged.gate(second)
    done = await rig.live(second)
    assert (done.unloaded, done.refused, done.reloads.get("policy", 0)) == ((), {}, 1)
    assert await rig.status("one.example.com") == 200


async def test_a_global_policy_waits_too_also_over_a_start(staged: Staged) -> None:
    rig = staged.rig
    first = await rig.commit("one.example.com")
    rig.start()
    await rig.live(first)
    before = rig.engine.bundle
    rig.engine.apply(upsert(config_map({"keep-alive": "33"})))
    second = await rig.commit("one.example.com")
    (http,) = staged.new(before)
    await staged.gate(second, http)
    waiting = await rig.live(second)
    assert (waiting.unloaded, waiting.reloads.get("policy", 0)) == ((http,), 0)

    await staged.restart()
    again = await rig.report(lambda r: r.policy_digest == second.policy_digest)
    assert (again.number, again.unloaded, again.reloads.get("policy", 0)) == (second.number, (http,), 0)

    await staged.gate(second)
    done = await rig.report(lambda r: not r.unloaded)
    assert done.reloads["policy"] == 1
    assert "33" in (rig.directory / "current" / "http.conf").read_text()


async def test_a_host_whose_policy_is_replaced_answers_through_the_reload(staged: Staged) -> None:
    rig = staged.rig
    await rig.commit("one.example.com", {"proxy-read-timeout": "10"})
    rig.start()
    await rig.report(lambda r: r.ready)
    async with steady([rig.http], "one.example.com", lambda a: a.status == 200, per_second=300, connections=4) as tally:
        for n in range(3):
            manifest = await rig.commit("one.example.com", {"proxy-read-timeout": f"{20 + n}"})
            await staged.gate(manifest)
            await rig.live(manifest)
    assert tally.requests > 300
    assert [f.text for f in tally.failures if "Error" not in f.text] == []  # a reload closes idle connections


class Gates:
    """Compilers' gatekeepers on a real bus, and nodes that are nothing but their reports."""

    def __init__(self, bus: JetStreamBus) -> None:
        self.bus = bus
        self.head: Manifest | None = None
        self._running: list[asyncio.Task[None]] = []

    def start(self) -> None:
        keeper = Gatekeeper(self.bus, "default", Rollout(soak_seconds=0.2), self._heard)
        self._running.append(asyncio.create_task(lifecycle.until(asyncio.Event(), *keeper.tasks())))

    async def _heard(self, report: NodeReport) -> None:
        """Nobody compiles here."""

    async def stop(self) -> None:
        running, self._running = self._running, []
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def version(self, number: int, *policies: str) -> Manifest:
        bundle = PolicyBundle(policies=tuple(Policy(hash=p, scope="location", text="") for p in policies))
        digest = await self.bus.put_blob(msgspec.json.encode(bundle))
        assert digest == bundle_digest(bundle)
        manifest = Manifest(
            group="default", epoch=1, number=number, digest=digest, policy_digest=digest, tables_digest="", rows=0, row_bytes=0, staged=True
        )
        await self.bus.publish(config_subject("default"), encode_manifest(manifest))
        self.head = manifest
        return manifest

    async def report(self, node: str, *, unloaded: tuple[str, ...] = (), refused: dict[str, str] | None = None) -> None:
        assert self.head is not None
        report = NodeReport(
            node=node, group="default", at=0, ready=True, policy_digest=self.head.policy_digest, unloaded=unloaded, refused=refused or {}
        )
        await self.bus.put(NODES_BUCKET, token(node), msgspec.json.encode(report))

    async def until(self, true: Callable[[Gate], bool]) -> Gate:
        async with asyncio.timeout(30):
            while True:
                for task in self._running:
                    assert not task.done(), task
                found = await self.bus.last(f"KV_{ROLLOUTS_BUCKET}", SUBJECT)
                with contextlib.suppress(msgspec.DecodeError):
                    if found is not None and true(gate := decode_gate(found.payload)):
                        return gate
                await asyncio.sleep(0.01)


SUBJECT = bucket_subject(ROLLOUTS_BUCKET, "default")


@pytest.fixture
async def gates(tmp_path: Path) -> AsyncIterator[Gates]:
    async with NatsServer(tmp_path / "nats") as server, JetStreamBus(server.url, name="test") as bus:
        await bus.ensure()
        made = Gates(bus)
        try:
            yield made
        finally:
            await made.stop()


async def test_two_compilers_write_each_gate_once_and_one_goes_on_alone(gates: Gates) -> None:
    first = await gates.version(1, "a")
    for node in NAMES:
        await gates.report(node)
    gates.start()
    gates.start()
    await gates.until(lambda g: g.policy_digest == first.policy_digest and not g.waiting)
    second = await gates.version(2, "a", "b")
    closed = await gates.until(lambda g: g.policy_digest == second.policy_digest)
    assert (closed.id, closed.canaries, closed.waiting) == (VersionId(1, 2), (NAMES[CANARY],), {"b": Waiting()})
    for i in OTHERS:
        await gates.report(NAMES[i], unloaded=("b",))
    await gates.report(NAMES[CANARY])
    await gates.until(lambda g: not g.waiting)
    assert await gates.bus.last_sequence(f"KV_{ROLLOUTS_BUCKET}") == 3, "nobody writes what is there"

    await gates.stop()
    third = await gates.version(3, "a", "b", "c")
    gates.start()
    await gates.until(lambda g: g.policy_digest == third.policy_digest and "c" in g.waiting)


async def test_a_compiler_that_is_behind_or_finds_garbage(gates: Gates) -> None:
    first = await gates.version(1, "a")
    ahead = Gate(group="default", epoch=1, number=2, policy_digest="f" * 64)  # of a version that this compiler has not heard of
    await gates.bus.put(ROLLOUTS_BUCKET, "default", encode_gate(ahead))
    await gates.report("node-0")
    await gates.report("node-1")
    gates.start()
    await gates.version(1, "a", "b")  # still not newer
    await asyncio.sleep(1)
    assert await gates.until(lambda _: True) == ahead
    second = await gates.version(2, "a", "b")
    await gates.until(lambda g: g.policy_digest == second.policy_digest)
    assert first.policy_digest != second.policy_digest

    await gates.stop()
    await gates.bus.put(ROLLOUTS_BUCKET, "default", b"no gate")
    gates.start()
    await gates.until(lambda g: g.policy_digest == second.policy_digest)


async def test_what_another_compiler_has_let_in_stays_let_in(gates: Gates) -> None:
    await gates.version(1, "a")
    for node in NAMES:
        await gates.report(node)
    gates.start()
    await gates.until(lambda g: not g.waiting)
    await gates.version(2, "a", "b")
    closed = await gates.until(lambda g: "b" in g.waiting)
    await gates.bus.put(ROLLOUTS_BUCKET, "default", encode_gate(replace(closed, waiting={"b": Waiting(percent=25)})))
    await gates.report(NAMES[CANARY], refused={"b": "unknown directive"})
    halted = await gates.until(lambda g: bool(g.waiting["b"].halted))
    assert halted.waiting["b"] == Waiting(percent=25, halted=NAMES[CANARY])


async def test_status_says_what_halts_a_rollout_in_one_line(gates: Gates, capsys: pytest.CaptureFixture[str]) -> None:
    await gates.version(1, "a")
    for node in ("node-0", "node-1"):
        await gates.report(node)
    gates.start()
    await gates.until(lambda g: not g.waiting)
    await gates.version(2, "a", "b")
    await gates.until(lambda g: "b" in g.waiting)
    canary = (await gates.until(lambda _: True)).canaries[0]
    await gates.report(canary, refused={"b": "unknown directive"})
    await gates.until(lambda g: g.waiting["b"].halted == canary)

    status = await _gather(gates.bus, Up(ready=True))
    assert status.rollout == (Step(policy="b", stage="canaries", let_in=(canary,), halted=f"{canary} refuses it: unknown directive"),)
    _show(status)
    line = f"rollout: policy b, stage canaries, let in on 1 of 2 nodes ({canary}); HALTED: {canary} refuses it: unknown directive"
    assert line in capsys.readouterr().out.splitlines()
