"""Where the addresses come from, and what happens when that cannot be asked."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from services.shared.bus.port import BusUnavailable
from services.shared.contracts.report import NodeReport
from services.shared.contracts.subjects import token
from services.shared.flags import Flags
from services.shared.kube.client import ApiError, Unreachable
from services.watcher.status import published as module
from services.watcher.status.published import Addresses
from tests.support.fake_api import FakeApi


class Reports:
    """The bucket `nodes`."""

    def __init__(self) -> None:
        self.of: dict[str, bytes] = {}
        self.away = False

    def put(self, node: str, *, ready: bool = True, claims: str = "", group: str = "default") -> None:
        self.of[token(node)] = msgspec.json.encode(NodeReport(node=claims or node, group=group, at=0.0, ready=ready))

    async def entries(self, bucket: str) -> dict[str, bytes]:
        assert bucket == "nodes"
        if self.away:
            raise BusUnavailable("away")
        return self.of


def addresses(api: FakeApi, reports: Reports, **flags: Any) -> Addresses:
    return Addresses(api, reports, Flags(**flags), "edge", "default".__eq__)  # type: ignore[arg-type]  # what it uses of them


def node(api: FakeApi, name: str, *found: tuple[str, str]) -> None:
    api.put(f"/api/v1/nodes/{name}", {"status": {"addresses": [{"type": t, "address": a} for t, a in found]}})


async def test_nodes_of_another_group_do_not_count() -> None:
    api, reports = FakeApi(), Reports()
    for n, group in ((1, "default"), (2, "internal")):
        node(api, f"n{n}", ("ExternalIP", f"203.0.113.{n}"))
        reports.put(f"n{n}", group=group)
    for n, group in ((1, "default"), (2, "internal")):
        found = Addresses(api, reports, Flags(), "edge", group.__eq__)  # type: ignore[arg-type]  # what it uses of them
        await found.look()
        assert found.now == ({"ip": f"203.0.113.{n}"},)


async def test_nodes_that_edge_nodes_or_their_pods_are_named_after() -> None:
    api, reports = FakeApi(), Reports()
    node(api, "n1", ("ExternalIP", "203.0.113.1"))
    node(api, "n2.example.com", ("InternalIP", "10.0.0.2"), ("ExternalIP", "203.0.113.2"))
    node(api, "n3", ("ExternalIP", "203.0.113.3"))
    api.put("/api/v1/namespaces/edge/pods/edge-x7", {"spec": {"nodeName": "n2.example.com"}})
    api.put("/api/v1/namespaces/edge/pods/edge-pending", {"spec": {}})
    for name in ("n1", "edge-x7", "edge-pending", "elsewhere"):
        reports.put(name)
    reports.put("n3", ready=False)
    reports.of["not_a_token"] = reports.of["n1"]
    found = addresses(api, reports)
    await found.look()
    assert found.now == ({"ip": "203.0.113.1"}, {"ip": "203.0.113.2"})

    inside = addresses(api, reports, report_node_internal_ip_address=True)
    await inside.look()
    assert inside.now == ({"ip": "10.0.0.2"},)


async def test_no_node_speaks_for_another_and_no_name_leaves_its_place_in_the_path() -> None:
    api, reports = FakeApi(), Reports()
    node(api, "n1", ("ExternalIP", "203.0.113.1"))
    reports.put("stranger", claims="n1")
    reports.put("../nodes/n1")
    found = addresses(api, reports)
    await found.look()
    assert found.now is None
    assert {path for _, path, _ in api.requests} == {"/api/v1/nodes/stranger", "/api/v1/namespaces/edge/pods/stranger"}


async def test_a_node_that_is_gone_takes_its_address_along_and_the_last_ones_stay() -> None:
    api, reports = FakeApi(), Reports()
    for n in (1, 2):
        node(api, f"n{n}", ("ExternalIP", f"203.0.113.{n}"))
        reports.put(f"n{n}")
    found = addresses(api, reports)
    await found.look()
    del reports.of["n1"]
    await found.look()
    assert found.now == ({"ip": "203.0.113.2"},)
    reports.of.clear()
    await found.look()
    assert found.now == ({"ip": "203.0.113.2"},)

    asked = len(api.requests)
    reports.put("n2")
    await found.look()
    await found.look()
    assert len(api.requests) == asked + 1, "a Node is not asked for each time"


async def test_a_node_that_has_another_address_is_noticed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NODE_SECONDS", 0.0)
    api, reports = FakeApi(), Reports()
    reports.put("n1")
    found = addresses(api, reports)
    for address in ("203.0.113.1", "203.0.113.2"):
        node(api, "n1", ("ExternalIP", address))
        await found.look()
        assert found.now == ({"ip": address},)


@pytest.mark.parametrize("error", [Unreachable("away"), ApiError(403, "Forbidden", "no"), ApiError(404, "NotFound", "gone")])
async def test_a_service_that_cannot_be_read_changes_nothing(error: Exception) -> None:
    api = FakeApi()
    api.put("/api/v1/namespaces/edge/services/lb", {"spec": {"type": "ClusterIP", "clusterIP": "10.0.0.1"}})
    found = addresses(api, Reports(), publish_service="edge/lb")
    await found.look()
    api.fail = lambda method, path: error
    await found.look()
    assert found.now == ({"ip": "10.0.0.1"},)


async def test_a_bus_that_is_away_changes_nothing() -> None:
    api, reports = FakeApi(), Reports()
    node(api, "n1", ("ExternalIP", "203.0.113.1"))
    reports.put("n1")
    found = addresses(api, reports)
    await found.look()
    reports.away = True
    await found.look()
    assert found.now == ({"ip": "203.0.113.1"},)


async def test_the_flag_goes_before_the_service() -> None:
    found = addresses(FakeApi(), Reports(), publish_service="edge/lb", publish_status_address="203.0.113.7")
    await found.look()
    assert found.now == ({"ip": "203.0.113.7"},)
