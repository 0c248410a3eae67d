"""What a stolen node's word can do to the others: nothing. A refusal of a policy that another node runs is that node's own trouble."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.cli.state import StateDirectory
from services.shared.bus.jetstream import NodeBus
from services.shared.contracts.report import NodeReport
from services.shared.contracts.subjects import NODES_BUCKET, bucket_subject, token
from tests.support.backends import backends
from tests.support.objects import ingress, many, service
from tests.support.up import SluiceUp, get

pytestmark = [pytest.mark.nats, pytest.mark.nginx]


def _app(name: str, port: int, annotations: dict[str, str] | None = None) -> str:
    return many(*service(name, [port]), ingress(name, {f"{name}.example.com": {"/": name}}, annotations=annotations))


async def _lie(up: SluiceUp, node: str, **words: Any) -> None:
    """A report of this node, as whoever holds its credential may write it."""
    async with NodeBus(StateDirectory(up.state).bus(up.up()["nats"], node), name="thief") as bus:
        report = NodeReport(node=words.pop("says", node), group="default", at=time.time(), ready=True, **words)
        await bus.tell(bucket_subject(NODES_BUCKET, token(node)), msgspec.json.encode(report))


def _policies(up: SluiceUp) -> list[str]:
    found: list[str] = json.loads((up.state / "nodes" / "node-0" / "current" / "node.json").read_text())["policies"]
    return found


@pytest.mark.parametrize("says", ["node-1", "node-0"])
def test_refusals_of_policies_that_others_run_close_no_route(tmp_path: Path, says: str) -> None:
    with backends("web") as ports, SluiceUp(tmp_path, nodes=2) as up:
        for name, annotations in (("a", None), ("b", {"proxy-read-timeout": "44"}), ("c", {"limit-rps": "900"})):
            up.write(f"{name}.yaml", _app(name, ports["web"], annotations))
        up.wait()
        version = up.status()["version"]
        for _ in range(5):
            asyncio.run(_lie(up, "node-1", says=says, refused=dict.fromkeys(_policies(up), "forged")))
            time.sleep(0.3)
            assert {get(up.http[0], f"{name}.example.com")[0] for name in "abc"} == {200}
        up.write("d.yaml", _app("d", ports["web"]))
        up.wait()
        assert {get(port, f"{name}.example.com")[0] for name in "abcd" for port in up.http} == {200}
        after = up.status()
        assert after["version"] != version
        assert after["verdicts"] == []
