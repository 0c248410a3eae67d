"""How the binaries are found and built, and that a cluster ends with whoever started it, however that ends."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.up import ROOT

pytestmark = pytest.mark.cluster

TOOLS = ("kube-apiserver", "etcd", "kubectl", "helm")

# Stands in for the compiler: says so, and dies in the middle of what `dies` in its directory names.
GO = """#!/bin/bash
here=$(dirname "$0")
[ "$1" = env ] && { echo go1.99.0; exit; }
while [ $# -gt 1 ]; do [ "$1" = -o ] && out=$2; shift; done
echo "$1" >> "$here/built"
echo half > "$out"
[ "$(cat "$here/dies" 2>/dev/null)" != "$1" ] || kill -9 $$
echo whole > "$out"; chmod +x "$out"
"""


def _find(directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the script with a cache and a Go in `directory`."""
    found = {**os.environ, "XDG_CACHE_HOME": str(directory / "cache"), "PATH": f"{directory}:/usr/bin:/bin"} | environment
    return subprocess.run(
        [ROOT / "scripts" / "cluster-tools"], env=found, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


@pytest.fixture
def go(tmp_path: Path) -> Path:
    """The directory of the stand-in."""
    (tmp_path / "go").write_text(GO)
    (tmp_path / "go").chmod(0o755)
    return tmp_path


def test_given_binaries_are_used_and_a_missing_one_is_named(go: Path) -> None:
    assets = go / "assets"
    assets.mkdir()
    for tool in TOOLS[:3]:
        (assets / tool).write_text("")
        (assets / tool).chmod(0o755)
    done = _find(go, KUBEBUILDER_ASSETS=str(assets))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"cluster-tools: missing in KUBEBUILDER_ASSETS={assets}: helm\n"

    (assets / "helm").symlink_to("etcd")
    done = _find(go, KUBEBUILDER_ASSETS=str(assets))
    assert (done.returncode, done.stdout) == (0, f"{assets}\n"), done.stderr
    assert not (go / "built").exists()


def test_a_build_that_dies_leaves_no_half_tool_and_the_next_one_does_the_rest(go: Path) -> None:
    (go / "dies").write_text("k8s.io/kubernetes/cmd/kubectl")
    done = _find(go, KUBEBUILDER_ASSETS="")
    assert done.returncode != 0
    assert done.stdout == ""
    (out,) = (go / "cache/sluice/cluster-tools").glob("*/")
    assert {p.name: p.read_text() for p in out.iterdir()} == {"etcd": "whole\n", "helm": "whole\n"}

    (go / "dies").unlink()
    (go / "built").unlink()
    (out / ".kubectl.part").write_text("of one that was killed")
    done = _find(go, KUBEBUILDER_ASSETS="")
    assert (done.returncode, done.stdout) == (0, f"{out}\n"), done.stderr
    assert {p.name: p.read_text() for p in out.iterdir()} == dict.fromkeys(TOOLS, "whole\n")
    assert (go / "built").read_text().split() == ["k8s.io/kubernetes/cmd/kubectl", "k8s.io/kubernetes/cmd/kube-apiserver"]

    assert _find(go, KUBEBUILDER_ASSETS="").stdout == f"{out}\n"
    assert len((go / "built").read_text().split()) == 2, "once is enough"


@pytest.fixture
def by_hand(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`make cluster`, in a session of its own as at a terminal."""
    command = [sys.executable, "-m", "tests.cluster", str(tmp_path / "cluster")]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_cluster_ends_with_whoever_started_it(by_hand: subprocess.Popen[str], number: signal.Signals, tmp_path: Path) -> None:
    assert by_hand.stdout is not None
    assert select.select([by_hand.stdout], [], [], 120)[0]
    assert by_hand.stdout.readline().startswith(f"export KUBECONFIG={tmp_path}/cluster/")
    children = _children(by_hand, 2)
    os.killpg(by_hand.pid, number)  # as the terminal does at Ctrl-C
    assert by_hand.wait(60) == (-9 if number == signal.SIGKILL else 0), by_hand.stdout.read()
    _until_gone(children)
    assert "Traceback" not in by_hand.stdout.read()


def test_it_ends_while_it_is_still_starting(by_hand: subprocess.Popen[str]) -> None:
    children = _children(by_hand, 1)
    os.killpg(by_hand.pid, signal.SIGINT)
    assert by_hand.stdout is not None
    assert by_hand.wait(60) == 0, by_hand.stdout.read()
    _until_gone(children)
    assert by_hand.stdout.read() == ""


def _children(process: subprocess.Popen[str], count: int) -> list[psutil.Process]:
    """etcd and kube-apiserver, once there are so many of them."""
    deadline = time.monotonic() + 60
    while True:
        found = [c for c in psutil.Process(process.pid).children() if c.name() in ("etcd", "kube-apiserver")]
        if len(found) >= count:
            return found
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _until_gone(processes: list[psutil.Process]) -> None:
    deadline = time.monotonic() + 60
    while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes):
        assert time.monotonic() < deadline, processes
        time.sleep(0.02)
