"""The same manifests give the same version digest: in any order of arrival, spread over files in any way, after any restart."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from tests.support.objects import ingress, many, service, tls_secret
from tests.support.up import SluiceUp

pytestmark = [pytest.mark.nats, pytest.mark.nginx]


def _objects() -> list[dict[str, object]]:
    out: list[dict[str, object]] = [tls_secret("tls", "a.example.com")]
    for n in range(6):
        out += service(f"web-{n}", [9000 + n])
        annotations = [{}, {"rewrite-target": "/$1"}, {"canary": "true", "canary-weight": "5"}, {"limit-rps": "3"}][n % 4]
        out.append(ingress(f"app-{n}", {"abc"[n % 3] + ".example.com": {"/": f"web-{n}"}}, annotations=annotations))
    return out


def test_any_order_and_any_restart(tmp_path: Path) -> None:
    digests = set()
    for seed in range(3):
        objects = _objects()
        random.Random(seed).shuffle(objects)
        up = SluiceUp(tmp_path / str(seed), nodes=1)
        with up:
            for n in range(0, len(objects), 1 + seed):
                up.write(f"dir-{n % 3}/file-{n}.yaml", many(*objects[n : n + 1 + seed]))
            up.wait()
            digests.add(up.status()["digest"])
            if seed:
                continue
            for name in ("watcher", "compiler", "node-0", "nats", "webhook"):
                up.child(name).send_signal(signal.SIGKILL)
                _settled(up)
                status = up.status()
                digests.add(status["digest"])
                assert status["nodes"][0]["digest"] == status["digest"], f"after {name} was killed"
    assert len(digests) == 1


def _settled(up: SluiceUp) -> None:
    deadline = time.monotonic() + 60
    while up.run("wait", "--timeout", "10").returncode != 0:
        assert time.monotonic() < deadline
