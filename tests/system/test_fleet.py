"""The simulated fleet of the benchmarks: real appliers on a real server reach every version, with the rows that were committed."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.shared.contracts.version import Manifest
from tests.bench.fleet_rig import Fleet, one_server, releases

pytestmark = pytest.mark.nats

NODES = [f"edge-{n}" for n in range(20)]


async def _all_have(fleet: Fleet, manifest: Manifest) -> None:
    times = await fleet.reached(manifest.number)
    assert len(times) == len(NODES)
    assert min(times) >= manifest.committed_at


async def test_twenty_nodes_reach_the_head_with_its_rows(tmp_path: Path) -> None:
    async with one_server(tmp_path, NODES) as server, releases(server, 30, len(NODES)) as release:
        await release.first()
        async with Fleet(server, tmp_path / "nodes", NODES, keep_rows=True) as fleet:
            for step in range(4):
                await _all_have(fleet, await release.change(step))
            head = await release.policy(4)
            await _all_have(fleet, head)

            states = await fleet.states()

    assert {s.node for s in states} == set(NODES)
    assert {(s.version, s.digest, s.rows_digest) for s in states} == {(str(head.id), head.digest, head.tables_digest)}
