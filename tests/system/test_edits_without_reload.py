"""200 edits of every kind that needs no new policy: no reload, no lost request, no lost websocket, and the next request sees each."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.backends import backends
from tests.support.clients import Answer, steady
from tests.support.objects import ingress, many, service, tls_secret
from tests.support.up import SluiceUp, get, peer_names

pytestmark = [pytest.mark.nats, pytest.mark.nginx]

EDITS = 200


def _edit(up: SluiceUp, n: int, ports: dict[str, int]) -> tuple[str, str, str]:
    """The n-th edit of a cycle of five kinds; (host, path, what the answer must begin with)."""
    host, kind = f"edit-{n // 5}.example.com", n % 5
    which = "blue" if kind in (0, 1) else "green"
    path = "/added" if kind >= 1 else "/"
    annotations = {"upstream-vhost": f"v{n}.internal"} if kind >= 3 else {}
    rules = {host: {"/": which, **({"/added": which} if kind >= 1 else {})}}
    tls = {"edit-tls": [host]} if kind >= 4 else None
    up.write("edit.yaml", many(ingress("edit", rules, annotations=annotations | {"ssl-redirect": "false"}, tls=tls)))
    if kind >= 4:
        up.write("tls.yaml", many(tls_secret("edit-tls", host, serial=n)))
    if kind == 2:  # the endpoints of green change, too
        up.write("green.yaml", many(*service("green", [ports["green"]] if n % 2 else [ports["green"], ports["green2"]])))
    return host, path, which


async def test_200_edits_cost_no_reload_and_no_request(tmp_path: Path) -> None:
    with backends("blue", "green", "green2", "steady") as ports, SluiceUp(tmp_path, nodes=3) as up:
        up.write("services.yaml", many(*service("blue", [ports["blue"]]), *service("steady", [ports["steady"]])))
        up.write("green.yaml", many(*service("green", [ports["green"]])))
        up.write("steady.yaml", many(ingress("steady", {"steady.example.com": {"/": "steady"}})))
        await asyncio.to_thread(up.wait)
        before = await asyncio.to_thread(up.reloads)

        def right(answer: Answer) -> bool:
            return answer.status == 200 and answer.body.startswith(b"steady ")

        async with steady(up.http, "steady.example.com", right, per_second=200, websocket_host="steady.example.com") as tally:
            for n in range(EDITS):
                await asyncio.to_thread(_edit_and_look, up, n, ports)
        assert tally.failures == []
        assert tally.requests > 1000
        assert tally.messages > 100
        assert await asyncio.to_thread(up.reloads) == before

        up.write("steady.yaml", many(ingress("steady", {"steady.example.com": {"/": "steady"}}, annotations={"proxy-buffer-size": "16k"})))
        await asyncio.to_thread(up.wait)
        assert await asyncio.to_thread(up.reloads) == [n + 1 for n in before], "a new policy costs one reload a node"


def _edit_and_look(up: SluiceUp, n: int, ports: dict[str, int]) -> None:
    host, path, which = _edit(up, n, ports)
    up.wait()
    for http, https in zip(up.http, up.https, strict=True):
        status, _, body = get(http, host, path)
        assert (status, body.decode().startswith(which)) == (200, True), f"edit {n} on port {http}: {status} {body!r}"
        if n % 5 == 4:
            assert peer_names(https, host) == {host}, f"edit {n}: the certificate on port {https}"
