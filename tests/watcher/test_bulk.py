"""A directory read with helper processes: the same comes out as without, whatever is in the files and whatever becomes of the helpers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from services.shared.contracts.objects import Key
from services.watcher.sources import bulk, manifests
from services.watcher.sources.bulk import helpers_for
from services.watcher.sources.manifests import ManifestSource
from tests.support.manifests import ingress, secret, service, several

FILES = 60
HELPERS = 2
ENDS_SECONDS = 60
FAR_TOO_MANY = 1_000_000
"""Files that a helper cannot read within `ENDS_SECONDS`."""
READS_OF_A_START = 6_000
"""System calls that read: more than a Python process makes before it comes to its task."""
PRETEND_CORES = "import os; os.sched_getaffinity = lambda _: {0, 1}; "
DEPLOYMENT = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n"

ODD: dict[str, bytes] = {
    "unclosed.yaml": b"metadata: {name: 'x\n",
    "deep.yaml": b"[" * 100_000,
    "laughs.yaml": b"a0: &a0 [x,x,x,x]\n" + b"".join(b"a%d: &a%d [*a%d,*a%d]\n" % (n, n, n - 1, n - 1) for n in range(1, 60)),
    "duplicate.yaml": b"a: 1\na: 2\n",
    "binary.yaml": bytes(range(256)),
    "surrogate.json": b'{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"s","uid":"u","resourceVersion":"1",'
    b'"creationTimestamp":"2026-01-01T00:00:00Z"},"data":{"a":"\\ud800"}}',
    "half-bad.yaml": several(ingress("half"), "apiVersion: v1\nkind: Service\nmetadata: {name: [a]}\n").encode(),
    "twice.yaml": several(ingress("twice"), ingress("twice")).encode(),
    "dialect.yaml": b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: '0777'}\nimmutable: yes\n",
    "list.json": b'{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"n"}}]}',
    "empty.yaml": b"",
    "elsewhere-too.yaml": ingress("app-7", host="other").encode(),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Good files with each kind of odd one among them, and names that are no text."""
    root = tmp_path / "m"
    root.mkdir()
    for n in range(FILES):
        documents = (service(f"app-{n}"), ingress(f"app-{n}", secret=f"app-{n}"), secret(f"app-{n}"), DEPLOYMENT)
        (root / f"app-{n}.yaml").write_text(several(*documents))
    for name, content in ODD.items():
        (root / name).write_bytes(content)
    (root / os.fsdecode(b"caf\xe9.yaml")).write_text(ingress("cafe"))
    return root


@pytest.fixture(autouse=True)
def helped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing else is said, helpers are used for every look at more than one file."""
    use_helpers(monkeypatch, HELPERS)


def use_helpers(monkeypatch: pytest.MonkeyPatch, helpers: int) -> None:
    monkeypatch.setattr(bulk, "helpers_for", lambda files: helpers if files > 1 else 0)


def test_helpers_read_what_is_good(root: Path) -> None:
    paths = [path.name for path in root.iterdir()]

    read = dict(bulk.read_many(root, paths))

    assert read.keys() == set(paths)
    by_helpers = [path for path, found in read.items() if isinstance(found, bulk.Read) and found.content is not None]
    assert len(by_helpers) > len(paths) * HELPERS // (HELPERS + 1) - len(ODD)  # neither died of its odd files
    for path in by_helpers:
        found = read[path]
        assert isinstance(found, bulk.Read) and found.content is not None
        assert not found.content.problems and not found.reading.data


def test_the_outcome_is_the_same_with_and_without(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "QUIET_SECONDS", 3600.0)
    said = []
    with (root / "app-3.yaml").open("a"), (root / "app-4.yaml").open("a"):  # someone is still writing these
        for helpers in (0, HELPERS):
            use_helpers(monkeypatch, helpers)
            source = ManifestSource(root)
            said.append((source.look(), source.problems, source.complete))

    assert said[0] == said[1]
    assert len(said[0][0].objects) > FILES and Key("Ingress", "default", "app-3") not in said[0][0].objects


def test_after_an_edit_of_everything_the_last_good_content_stays_as_it_does_without(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = {helpers: ManifestSource(root) for helpers in (0, HELPERS)}
    said: dict[int, list[object]] = {0: [], HELPERS: []}
    for edit in range(3):
        for helpers, source in sources.items():
            use_helpers(monkeypatch, helpers)
            said[helpers] += [source.look().objects, source.problems]
        for n in range(FILES):
            bad = (n + edit) % 3 == 0
            (root / f"app-{n}.yaml").write_text("kind: [\n" if bad else ingress(f"app-{n}", host=f"h{edit}-{n}"))

    assert said[HELPERS] == said[0]
    assert "stays in effect" in str(said[HELPERS][-1])


@pytest.mark.parametrize("program", ["exit 1", "kill -9 $$", "echo nonsense", "exit 0"])
def test_a_helper_that_fails_changes_nothing(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\n{program}\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))

    objects = ManifestSource(root).look().objects

    assert {Key("Ingress", "default", f"app-{n}") for n in range(FILES)} <= objects.keys()


def test_a_helper_that_cannot_be_started_changes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent")

    assert Key("Ingress", "default", "app-1") in ManifestSource(root).look().objects


def test_no_helper_outlives_a_watcher_that_is_killed(root: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from services.watcher.sources import bulk;"
        f"list(bulk.read_many(Path(sys.argv[1]), ['app-0.yaml'] * {FAR_TOO_MANY}))"
    )
    with subprocess.Popen([sys.executable, "-c", PRETEND_CORES + program, str(root)]) as watcher:
        helpers: list[psutil.Process] = []
        try:
            deadline = time.monotonic() + ENDS_SECONDS
            while not any(h.io_counters().read_count > READS_OF_A_START for h in helpers):
                assert time.monotonic() < deadline and watcher.poll() is None
                helpers = psutil.Process(watcher.pid).children()
                time.sleep(0.05)
        finally:
            watcher.kill()
    _, alive = psutil.wait_procs(helpers, timeout=ENDS_SECONDS)
    for left in alive:
        left.kill()
    assert not alive


def test_a_few_files_are_read_without_helpers() -> None:
    assert helpers_for(1) == helpers_for(1_000) == 0
    assert helpers_for(200_000) <= 3


def test_a_directory_needs_no_kubernetes_client() -> None:
    """It takes a quarter of a second to import."""
    modules = "services.watcher.__main__, services.watcher.sources.directory"
    program = f"import sys, {modules}; sys.exit('kubernetes' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
