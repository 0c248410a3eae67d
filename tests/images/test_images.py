"""Each image starts its command as the user that is not root, and the edge's serves a request."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from tests.images.conftest import TARGETS, Images, run
from tests.support.node import one_node

pytestmark = [pytest.mark.nats, pytest.mark.nginx]

SAYS = {
    "watcher": ("sluice", "watcher", "--help"),
    "compiler": ("sluice", "compiler", "--help"),
    "webhook": ("sluice", "webhook", "--help"),
    "applier": ("sluice", "applier", "--help"),
    "command": ("sluice", "status", "--help"),
    "nats": ("nats-server", "--version"),
}


@pytest.mark.parametrize("target", TARGETS)
def test_it_runs_its_command_and_not_as_root(images: Images, target: str) -> None:
    container = images.container(target)
    assert run(*images.command(container, "id", "-u")).split() == ["101"]
    words = SAYS[target]
    said = run(*images.command(container, *words))
    assert "Usage: sluice" in said if words[0] == "sluice" else "nats-server: v2" in said
    print(f"image of {target}: {images.size(target)}")


def test_what_jobs_run_is_in_the_watchers_image(images: Images) -> None:
    container = images.container("watcher")
    for words in (
        ("keys", "create", "--namespace", "x", "--prefix", "y"),
        ("certgen", "create", "--namespace", "x", "--secret-name", "y", "--host", "z"),
    ):
        said = run(*images.command(container, "sluice", *words), check=False)
        assert "service account of this pod cannot be used" in said, said


async def test_an_edge_image_serves(images: Images, tmp_path: Path) -> None:
    async with one_node(tmp_path) as rig:
        rig.directory.mkdir()
        for parent in (rig.directory, *rig.directory.parents[:3]):
            if parent.is_relative_to(tmp_path.parent.parent):
                parent.chmod(0o755)
        os.chown(rig.directory, 101, 82)
        container = images.container("applier")
        manifest = await rig.commit("image.example.com")
        mount = ("--volume", f"{rig.directory}:{rig.directory}")
        rig.start(program=images.command(container, "sluice", options=mount))
        await rig.live(manifest)
        assert await rig.status("image.example.com") == 200
        users = {process.uids().effective for process in [rig.nginx, *rig.nginx.children()]}
        assert users == {101}
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if "applier" in words and str(rig.directory) in words and "buildah" not in words[0]:
                process.terminate()
        await rig.ended()
