"""The images of the Dockerfile, built without a Docker engine: buildah on a base made by debootstrap."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.support.up import ROOT

BASE: Final = "localhost/debian:12-slim"
TARGETS: Final = ("watcher", "compiler", "webhook", "command", "nats", "applier")
OF_THIS_MACHINE: Final = ("etc/ssl/certs/ca-certificates.crt", "etc/pip.conf")
"""How packages are reached from here; an image that is built elsewhere has other ways."""


def run(*command: str, check: bool = True, timeout: float = 900) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout, cwd=ROOT)
    assert not check or done.returncode == 0, f"{' '.join(command[:6])}: {done.stderr[-3000:]}"
    return done.stdout + done.stderr


class Images:
    """A store of images of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._driver = "overlay" if self._works("overlay") else "vfs"

    def _words(self, driver: str) -> tuple[str, ...]:
        return ("buildah", "--storage-driver", driver, "--root", str(self._directory / "store"), "--runroot", str(self._directory / "run"))

    def _works(self, driver: str) -> bool:
        return subprocess.run([*self._words(driver), "info"], capture_output=True, check=False).returncode == 0

    @property
    def words(self) -> tuple[str, ...]:
        return self._words(self._driver)

    def __call__(self, *words: str, check: bool = True) -> str:
        return run(*self.words, *words, check=check)

    def build(self, target: str) -> None:
        # Layers are kept from one target to the next: what they share is made once.
        where = ("--isolation", "chroot", "--layers", "--build-arg", f"BASE={BASE}")
        self("build", "--quiet", *where, "--target", target, "--tag", f"localhost/sluice/{target}", str(ROOT))

    def size(self, target: str) -> str:
        found = re.search(r"(\S+ [kMG]B)", self("images", "--format", "{{.Size}}", f"localhost/sluice/{target}"))
        assert found is not None
        return found[1]

    def container(self, target: str) -> str:
        return self("from", f"localhost/sluice/{target}").strip().splitlines()[-1]

    def command(self, container: str, *words: str, options: Sequence[str] = ()) -> list[str]:
        """Runs as the image's user, on this machine's network."""
        return [*self.words, "run", "--isolation", "chroot", *options, container, "--", *words]


def _base() -> Path:
    """The archive of a minimal Debian 12; made once."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sluice"
    archive = cache / "debian-12.tar"
    if not archive.exists():
        cache.mkdir(parents=True, exist_ok=True)
        root, part = cache / f"debian-12.{os.getpid()}", cache / f"debian-12.{os.getpid()}.tar"
        try:
            run("debootstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", str(root), *_mirror())
            for file in OF_THIS_MACHINE:
                if (Path("/") / file).exists():
                    shutil.copyfile(Path("/") / file, root / file)
            run("tar", "-C", str(root), "--exclude=./var/cache/apt/archives/*.deb", "-cf", str(part), ".")
            part.replace(archive)
        finally:
            shutil.rmtree(root, ignore_errors=True)
            part.unlink(missing_ok=True)
    return archive


def _mirror() -> list[str]:
    """Where this machine's packages come from; empty: debootstrap knows a place itself."""
    for file in (*sorted(Path("/etc/apt").glob("sources.list*/debian.sources")), Path("/etc/apt/sources.list")):
        found = re.search(r"^(?:URIs:|deb(?: \[[^]]*\])?)\s+(\S+)", file.read_text(), re.MULTILINE) if file.exists() else None
        if found is not None:
            return [found[1]]
    return []


@pytest.fixture(scope="session")
def images() -> Iterator[Images]:
    """All of them, built."""
    directory = Path(run("mktemp", "--directory", "/var/tmp/sluice-images.XXXXXX").strip())  # a tmpfs would be filled
    try:
        made = Images(directory)
        base = made("from", "scratch").strip()
        made("add", "--quiet", base, str(_base()), "/")
        made("commit", "--quiet", "--rm", base, BASE)
        for target in TARGETS:
            made.build(target)
        yield made
        made("rm", "--all", check=False)
    finally:
        run("umount", "--quiet", str(directory / "store" / "overlay"), check=False)
        shutil.rmtree(directory, ignore_errors=True)
