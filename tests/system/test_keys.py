"""Private keys and passwords on the bus of a whole product: sealed, sealed anew, and out of reach of a node that was revoked."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.cli.state import StateDirectory
from services.shared.bus.jetstream import JetStreamBus
from services.shared.contracts import subjects
from services.shared.natsauth.authority import Authority
from tests.support.backends import backends
from tests.support.objects import ingress, many, service, tls_secret
from tests.support.up import SluiceUp, get, peer_names

pytestmark = [pytest.mark.nats, pytest.mark.nginx]

PASSWORD = "demo:{SHA}iUVdBmVqVLkQQ6hqQCSkLhbvp9Q="


def _secret(name: str, data: dict[str, bytes]) -> dict[str, Any]:
    encoded = {k: base64.b64encode(v).decode() for k, v in data.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "default"}, "data": encoded}


@pytest.fixture
def up(tmp_path: Path) -> Iterator[SluiceUp]:
    with backends("web") as ports:
        made = SluiceUp(tmp_path, nodes=2)
        users = _secret("users", {"auth": PASSWORD.encode()})
        guarded = ingress("guarded", {"guarded.example.com": {"/": "web"}}, annotations={"auth-type": "basic", "auth-secret": "users"})
        tls = ingress("web", {"a.example.com": {"/": "web"}}, tls={"tls": ["a.example.com"]}, annotations={"ssl-redirect": "false"})
        made.write("all.yaml", many(*service("web", [ports["web"]]), tls_secret("tls", "a.example.com"), users, guarded, tls))
        with made:
            yield made


def _needles(up: SluiceUp) -> list[bytes]:
    """The private key and the password, as they may show: in parts, in base64, in base64 of base64, with JSON's escapes."""
    text = (up.manifests / "all.yaml").read_text()
    key = base64.b64decode(re.findall(r'"tls.key": "([^"]+)"', text)[0])
    body = b"".join(key.split(b"\n")[1:-2])
    found = []
    for secret in (body, PASSWORD.encode(), base64.b64decode(body), key):
        found += [secret[8:40]]
        for shift in range(3):
            found.append(base64.b64encode(secret[shift : shift + 36])[4:-8])
            found.append(base64.b64encode(base64.b64encode(secret)[shift : shift + 36])[4:-8])
    return found


async def _everything(up: SluiceUp) -> bytes:
    """Every message of every stream, as the most trusted of its readers gets it."""
    state = StateDirectory(up.state)
    out = []
    async with JetStreamBus(state.bus(up.up()["nats"], "command"), name="test") as bus:
        for spec in subjects.STREAMS:
            out += [m.payload for m in await bus.history(spec.name, spec.subjects[0])]
    return b"\n".join(out)


def test_nothing_secret_rests_in_clear(up: SluiceUp) -> None:
    needles = _needles(up)
    assert any(n in (up.manifests / "all.yaml").read_bytes() for n in needles), "the search itself works"
    files = [f for folder in ("nats/store", "logs") for f in (up.state / folder).rglob("*") if f.is_file()]
    assert files
    for content in (*(f.read_bytes() for f in files), asyncio.run(_everything(up))):
        assert not [n for n in needles if n in content]
    assert (up.state / "seal" / "keys.json").stat().st_mode & 0o077 == 0


def test_rotation_seals_everything_anew_and_changes_nothing(up: SluiceUp) -> None:
    before = up.json("status")
    old = up.json("keys", "list")
    up.run("keys", "rotate", "--after", "0.5")
    up.until(lambda: up.json("keys", "list")[-1]["seals"])
    up.until(lambda: up.json("status")["version"] != before["version"])
    after = up.json("status")
    assert after["digest"] == before["digest"]
    assert after["version"].split(".")[0] == before["version"].split(".")[0], "no new epoch"
    assert up.json("keys", "list")[0]["id"] == old[0]["id"]

    up.write(
        "more.yaml",
        many(tls_secret("more", "b.example.com"), ingress("more", {"b.example.com": {"/": "web"}}, tls={"more": ["b.example.com"]})),
    )
    up.wait()
    for port in up.https:
        assert peer_names(port, "b.example.com") == {"b.example.com"}


def test_a_revoked_node_gets_nothing_any_more_and_serves_what_it_has(up: SluiceUp) -> None:
    result = up.json("node", "revoke", "node-1")
    assert (result["revoked"], result["credentials"]) == ("node-1", 1)
    up.write("more.yaml", many(ingress("more", {"more.example.com": {"/": "web"}})))
    up.wait()
    assert get(up.http[0], "more.example.com")[0] == 200
    assert get(up.http[1], "more.example.com")[0] == 404
    assert get(up.http[1], "a.example.com")[0] == 200
    assert up.json("status")["revoked"] == ["node-1"]
    assert Authority.at(up.state / "nats").node("node-1", "default") == ""

    up.run("node", "admit", "node-1")
    up.until(lambda: get(up.http[1], "more.example.com")[0] == 200)
    up.wait()
