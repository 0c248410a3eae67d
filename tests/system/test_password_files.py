"""Passwords change without a reload, in one small version, and hold up nobody."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.support.backends import backends
from tests.support.objects import ingress, many, secret, service
from tests.support.up import SluiceUp, get

pytestmark = [pytest.mark.nats, pytest.mark.nginx]


def _guarded(name: str, password: str) -> list[dict[str, Any]]:
    """An Ingress with a password, and its Secret."""
    line = "demo:{SHA}" + base64.b64encode(hashlib.sha1(password.encode()).digest()).decode()
    asking = {"auth-type": "basic", "auth-secret": name}
    return [secret(name, {"auth": line}), ingress(name, {f"{name}.example.com": {"/": "web"}}, annotations=asking)]


def _answers(port: int, host: str, password: str) -> int:
    return get(port, host, headers={"Authorization": "Basic " + base64.b64encode(f"demo:{password}".encode()).decode()})[0]


def test_each_new_password_counts_at_once_and_so_does_what_came_with_it(tmp_path: Path) -> None:
    with backends("web") as ports, SluiceUp(tmp_path, nodes=2) as up:
        up.write("all.yaml", many(*service("web", [ports["web"]]), *_guarded("first", "old")))
        up.wait()
        for n in range(3):
            others = ingress("innocent", {f"innocent-{n}.example.com": {"/": "web"}})
            up.write("first.yaml", many(*_guarded(f"other-{n}", "their"), others))
            up.write("all.yaml", many(*service("web", [ports["web"]]), *_guarded("first", f"new-{n}")))
            up.wait()
            for port in up.http:
                assert _answers(port, "first.example.com", f"new-{n}") == 200
                assert _answers(port, "first.example.com", "old") == 401
                assert _answers(port, f"other-{n}.example.com", "their") == 200
                assert get(port, f"innocent-{n}.example.com")[0] == 200
