"""How an edge pod comes to a NATS credential of its own: it shows a token, a watcher asks the API server whose that is, and signs."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.applier import enrol
from services.applier.enrol import Enrolment, bus_address
from services.applier.options import ApplierOptions, EnrolOptions
from services.shared.bus.address import BusAddress
from services.shared.bus.jetstream import JetStreamBus, NodeBus
from services.shared.bus.port import BusError
from services.shared.contracts import subjects
from services.shared.contracts.enrolment import AUDIENCE, Enrol, decode_enrolled
from services.shared.contracts.identity import Revocation
from services.shared.contracts.subjects import ASK_WATCHER_ENROL, REVOKED_BUCKET, applied_subject, token
from services.shared.kube.client import Api, ApiError
from services.shared.natsauth import jwt, registrar
from services.shared.natsauth.authority import Authority
from services.watcher import registrar as registrar_room
from services.watcher.options import RegistrarOptions
from services.watcher.registrar import Registrar
from tests.support.kube import KubeServer
from tests.support.nats import NatsServer

pytestmark = [pytest.mark.nats, pytest.mark.cluster]

NODE, GROUP = "node.one", "blue"
RULES = [{"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}]
"""What docs/kubernetes.md asks for."""


class Cell:
    """A bus, a cluster with one edge pod on `NODE`, and a registrar."""

    def __init__(self, api: Api, namespace: str, server: NatsServer, authority: Authority, directory: Path) -> None:
        self.api = api
        self.namespace = namespace
        self.url = server.url
        self.authority = authority
        self.directory = directory

    def address(self, text: str, name: str) -> BusAddress:
        file = self.directory / f"{name}.creds"
        file.write_text(text)
        return BusAddress(url=self.url, credentials=file)

    def newcomer(self) -> BusAddress:
        return self.address(self.authority.newcomer(), "edge")

    async def pod(self, name: str, node: str, account: str = "edge") -> None:
        path = f"/api/v1/namespaces/{self.namespace}"
        with contextlib.suppress(ApiError):  # it is there
            await self.api.request("POST", f"{path}/serviceaccounts", body={"metadata": {"name": account}})
        spec = {"serviceAccountName": account, "nodeName": node, "containers": [{"name": "x", "image": "x"}]}
        await self.api.request("POST", f"{path}/pods", body={"metadata": {"name": name}, "spec": spec})

    async def token(self, pod: str, account: str = "edge", audience: str = AUDIENCE) -> str:
        """As the kubelet gets it for a projected volume."""
        path = f"/api/v1/namespaces/{self.namespace}"
        uid = msgspec.json.decode(await self.api.request("GET", f"{path}/pods/{pod}"))["metadata"]["uid"]
        spec = {"audiences": [audience], "expirationSeconds": 3600, "boundObjectRef": {"kind": "Pod", "name": pod, "uid": uid}}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        answer = await self.api.request("POST", f"{path}/serviceaccounts/{account}/token", body=body)
        found: str = msgspec.json.decode(answer)["status"]["token"]
        return found

    def options(self, text: str, *, node: str = NODE, group: str = GROUP) -> ApplierOptions:
        directory = self.directory / "node"
        directory.mkdir(exist_ok=True)
        (self.directory / "token").write_text(text)
        return ApplierOptions(
            node=node, group=group, directory=directory, http_port=1, https_port=2, healthz_port=3,
            bus=self.newcomer(), enrol=EnrolOptions(token=self.directory / "token"),
        )  # fmt: skip

    async def ask(self, **changes: Any) -> str:
        """Why not; empty: there is a credential."""
        fields = {"node": NODE, "group": GROUP, "public": jwt.public_of(jwt.new_seed(jwt.USER)), **changes}
        async with JetStreamBus(self.newcomer(), name="newcomer") as bus:
            answer = decode_enrolled(await bus.request(ASK_WATCHER_ENROL, msgspec.json.encode(Enrol(**fields)), timeout=10))
        assert bool(answer.jwt) != bool(answer.refused)
        return answer.refused


@contextlib.asynccontextmanager
async def cell_of(kube: KubeServer, api: Api, namespace: str, directory: Path, rules: list[dict[str, Any]]) -> AsyncIterator[Cell]:
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    user = f"system:serviceaccount:{namespace}:watcher"
    await api.request("POST", f"{rbac}/clusterroles", body={"metadata": {"name": namespace}, "rules": rules})
    body = {
        "metadata": {"name": namespace},
        "subjects": [{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": "ClusterRole", "name": namespace, "apiGroup": "rbac.authorization.k8s.io"},
    }
    await api.request("POST", f"{rbac}/clusterrolebindings", body=body)
    authority = Authority.of(None, "test")
    more = authority.server_configuration(directory / "accounts")
    as_watcher = await Api.connect(kube.kubeconfig(user, ()))
    async with NatsServer(directory / "nats", more=more) as server:
        cell = Cell(api, namespace, server, authority, directory)
        await cell.pod("edge-1", NODE)
        (directory / "registrar.json").write_bytes(registrar.encode_key(authority.registrar))
        accounts = {f"{namespace}/edge": GROUP}
        async with JetStreamBus(cell.address(authority.service("watcher"), "watcher"), name="watcher") as bus:
            await bus.ensure()
            await Registrar(bus, as_watcher, RegistrarOptions(key=directory / "registrar.json", accounts=accounts)).serve()
            yield cell
    await as_watcher.close()
    for path in ("clusterrolebindings", "clusterroles"):
        await api.request("DELETE", f"{rbac}/{path}/{namespace}")


@pytest.fixture
async def cell(kube: KubeServer, api: Api, namespace: str, tmp_path: Path) -> AsyncIterator[Cell]:
    async with cell_of(kube, api, namespace, tmp_path, RULES) as made:
        yield made


async def test_a_pod_becomes_the_node_it_runs_on_and_no_other(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when its credential has ended, again and again."""
    monkeypatch.setattr(registrar_room, "CREDENTIAL_SECONDS", 4.0)
    options = cell.options(await cell.token("edge-1"))
    file = options.directory / enrol.FILE
    async with asyncio.timeout(60):
        bus = NodeBus(bus_address(options), name="node")
        assert options.enrol is not None
        enrolling = asyncio.create_task(Enrolment(options, options.enrol).run(lambda: bus.connected))
        async with bus:
            assert file.stat().st_mode & 0o077 == 0
            key = jwt.seed_of(file.read_text())
            seen: set[int] = set()
            while len(seen) < 4:
                with contextlib.suppress(BusError):
                    await bus.publish(applied_subject(NODE), b"applied")
                    seen.add(jwt.claims_of(file.read_text()).exp)
                await asyncio.sleep(0.1)
            assert jwt.seed_of(file.read_text()) == key
            with pytest.raises(BusError):
                await bus.publish(applied_subject("node.two"), b"applied")
        enrolling.cancel()
    reader = cell.address(cell.authority.service("watcher"), "reader")
    async with JetStreamBus(reader, name="reader") as other:
        assert {m.subject for m in await other.history(subjects.APPLIED_STREAM, "applied.v1.*")} == {applied_subject(NODE)}


async def test_what_is_refused(cell: Cell) -> None:
    token_of_pod = await cell.token("edge-1")
    await cell.pod("other", NODE, account="other")

    assert await cell.ask(token=token_of_pod) == ""
    assert await cell.ask(token=token_of_pod, node="edge-1") == "", (
        "of a Deployment two pods may run on one Node: they are named after pods"
    )
    assert "not for 'node.two'" in await cell.ask(token=token_of_pod, node="node.two")
    assert "group blue, not 'red'" in await cell.ask(token=token_of_pod, group="red")
    assert "are no edge nodes" in await cell.ask(token=await cell.token("other", "other"))
    assert "does not take the token" in await cell.ask(token=await cell.token("edge-1", audience="https://kubernetes.default.svc"))
    assert "does not take the token" in await cell.ask(token=token_of_pod[:-8] + "AAAAAAAA")
    assert "no token" in await cell.ask(token="")
    assert "no public user key" in await cell.ask(token=token_of_pod, public="UAAA")
    assert "no question" in await cell.ask(token="x" * 20_000)


async def test_the_credential_of_newcomers_is_good_for_nothing_else(cell: Cell) -> None:
    async with NodeBus(cell.newcomer(), name="newcomer") as bus:
        with pytest.raises(BusError):
            await bus.publish(applied_subject(NODE), b"x")
        with pytest.raises(BusError):
            await bus.last(subjects.CONFIG_STREAM, subjects.config_subject(GROUP))
        with pytest.raises(BusError):
            await bus.request(subjects.ASK_WATCHER_BARRIER, b"{}", timeout=1)


async def test_a_node_that_is_revoked_gets_none(cell: Cell) -> None:
    mine = await cell.token("edge-1")
    async with JetStreamBus(cell.address(cell.authority.service("command"), "command"), name="command") as bus:
        await bus.put(REVOKED_BUCKET, token(NODE), msgspec.json.encode(Revocation(node=NODE, at=1.0)))
        assert "is revoked" in await cell.ask(token=mine)
        await bus.delete(REVOKED_BUCKET, token(NODE))
        assert await cell.ask(token=mine) == ""


async def test_a_pod_that_is_gone_gets_none(cell: Cell) -> None:
    mine = await cell.token("edge-1")
    await cell.api.request("DELETE", f"/api/v1/namespaces/{cell.namespace}/pods/edge-1?gracePeriodSeconds=0")
    async with asyncio.timeout(30):
        while "does not take the token" not in await cell.ask(token=mine):
            await asyncio.sleep(0.5)


async def test_without_the_right_to_review_tokens_nobody_is_admitted(kube: KubeServer, api: Api, namespace: str, tmp_path: Path) -> None:
    async with cell_of(kube, api, namespace, tmp_path, []) as cell:
        assert "did not say whose token" in await cell.ask(token=await cell.token("edge-1"))


async def test_the_registrars_key_signs_nothing_but_nodes(cell: Cell) -> None:
    """Whoever steals it becomes a node, never a compiler: servers give its users a node's permissions whatever they claim."""
    seed = jwt.new_seed(jwt.USER)
    forged = jwt.user_jwt(cell.authority.registrar.seed, jwt.public_of(seed), "compiler", publish=[">"], subscribe=[">"], answers=False)
    address = cell.address(jwt.credentials(forged, seed), f"forged-{os.getpid()}")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3), NodeBus(address, name="forged"):
            pass
