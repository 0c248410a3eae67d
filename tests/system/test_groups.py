"""Two groups of nodes on one bus and one watcher, each with its own compilers and IngressClass."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import msgspec
import pytest

from services.shared.bus.jetstream import JetStreamBus
from services.shared.bus.port import BusError
from services.shared.contracts.problem import Verdict
from services.shared.contracts.report import decode_node_report
from services.shared.contracts.subjects import NODES_BUCKET, VERDICTS_BUCKET, verdict_key
from services.shared.versions import read
from services.webhook.decide import Decider
from services.webhook.local import check_alone
from services.webhook.review import Review
from tests.support.backends import backends
from tests.support.faults import Service, services
from tests.support.nats import NatsServer, free_port
from tests.support.objects import ingress, many, service
from tests.support.sealing import key_directory
from tests.support.up import get

pytestmark = [pytest.mark.nats, pytest.mark.nginx]

GROUPS = {"default": ("nginx", "k8s.io/ingress-nginx"), "internal": ("inside", "example.com/inside")}


def _class(name: str, controller: str) -> dict[str, object]:
    return {"apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "metadata": {"name": name}, "spec": {"controller": controller}}


def _of(class_name: str, name: str, host: str, **annotations: str) -> dict[str, object]:
    made = ingress(name, {host: {"/": "web"}}, annotations=annotations)
    made["spec"]["ingressClassName"] = class_name
    return made


async def test_each_group_serves_its_own_class_and_hears_nothing_of_the_other(tmp_path: Path) -> None:
    manifests, http = tmp_path / "manifests", {group: free_port() for group in GROUPS}
    manifests.mkdir()
    seal = ("--seal-keys", str(key_directory(tmp_path / "seal")))
    with backends("web") as ports:
        classes = [_class(*names) for names in GROUPS.values()]
        (manifests / "base.yaml").write_text(many(*classes, *service("web", [ports["web"]])))
        for group, (name, _) in GROUPS.items():
            (manifests / f"{group}.yaml").write_text(many(_of(name, group, f"{group}.example.com")))
        async with NatsServer(tmp_path / "nats") as server, JetStreamBus(server.url, name="test") as bus:
            await bus.ensure()
            url = ("--nats-url", server.url)
            started = [Service(tmp_path / "watcher.log", "watcher", "--manifests", str(manifests), *seal, *url)]
            for group, (name, controller) in GROUPS.items():
                flags = ("--set-flag", f"ingress-class={name}", "--set-flag", f"controller-class={controller}")
                started.append(Service(tmp_path / f"compiler-{group}.log", "compiler", "--group", group, *flags, *seal, *url))
                others = ("--http-port", str(http[group]), "--https-port", str(free_port()), "--health-port", str(free_port()))
                place = ("--node", f"node-{group}", "--group", group, "--directory", str(tmp_path / group))
                started.append(Service(tmp_path / f"applier-{group}.log", "applier", *place, *others, *url))
            async with contextlib.AsyncExitStack() as stack:
                for one in started:
                    await stack.enter_async_context(services(one))
                try:
                    await _live(bus)
                except TimeoutError:
                    raise AssertionError("\n".join(f"{s.log.name}:\n{s.log.read_text()[-2000:]}" for s in started)) from None
                served = {(g, h): get(http[g], f"{h}.example.com")[0] for g in GROUPS for h in GROUPS}
                assert served == {(g, h): 200 if g == h else 404 for g in GROUPS for h in GROUPS}

                before = await _numbers(bus)
                (manifests / "internal.yaml").write_text(many(_of("inside", "internal", "other.example.com")))
                async with asyncio.timeout(30):
                    while get(http["internal"], "other.example.com")[0] != 200:
                        await asyncio.sleep(0.05)
                after = await _numbers(bus)
                assert after["internal"] > before["internal"]
                assert after["default"] == before["default"]

                (manifests / "bad.yaml").write_text(many(_of("inside", "bad", "bad.example.com", **{"limit-rps": "many"})))
                async with asyncio.timeout(30):
                    while verdict_key("internal", "Ingress", "default", "bad") not in (found := await bus.entries(VERDICTS_BUCKET)):
                        await asyncio.sleep(0.05)
                assert not msgspec.json.decode(found[verdict_key("internal", "Ingress", "default", "bad")], type=Verdict).accepted
                assert verdict_key("default", "Ingress", "default", "bad") not in found

                decider = Decider(bus, check_alone, groups=tuple(GROUPS), deadline_seconds=10)
                for class_name, host, allowed in (("inside", "new", True), ("inside", "other", False), ("nginx", "other", True)):
                    review = Review(
                        uid="x", operation="CREATE", namespace="default", name="new", object=_of(class_name, "new", f"{host}.example.com")
                    )
                    decision = await decider.decide(review)
                    assert decision.by == "compiler"
                    assert decision.answer.allowed is allowed, (class_name, host, decision)


async def _live(bus: JetStreamBus) -> None:
    """Until every node has its group's head, and both hosts are in one."""
    async with asyncio.timeout(90):
        while True:
            with contextlib.suppress(BusError):
                reports = [decode_node_report(v) for v in (await bus.entries(NODES_BUCKET)).values()]
                heads = {g: await read.head(bus, g) for g in GROUPS}
                if len(reports) == len(GROUPS) and all(
                    (found := heads[r.group]) is not None and found[0].number == r.number and found[0].rows > 3 and r.ready for r in reports
                ):
                    return
            await asyncio.sleep(0.05)


async def _numbers(bus: JetStreamBus) -> dict[str, int]:
    heads = {group: await read.head(bus, group) for group in GROUPS}
    return {group: found[0].number for group, found in heads.items() if found is not None}
