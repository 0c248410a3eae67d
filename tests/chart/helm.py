"""`helm` on the chart: render it with values, read what comes out."""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.support.kube import tools
from tests.support.up import ROOT

CHART = ROOT / "charts" / "sluice"
HERE = Path(__file__).parent
KUBERNETES = "1.35.0"

Values = Mapping[str, Any]
Object = dict[str, Any]


class Refused(Exception):
    """helm did not render; the message is its stderr."""


@functools.cache
def helm() -> str:
    """$SLUICE_HELM, else the one that is built with the cluster tools."""
    return os.environ.get("SLUICE_HELM") or str(tools() / "helm")


def run(*arguments: str) -> str:
    """stdout. Raises Refused."""
    with tempfile.TemporaryDirectory() as home:
        environment = {"PATH": os.environ["PATH"], "HOME": home}
        done = subprocess.run([helm(), *arguments], capture_output=True, text=True, env=environment, check=False, timeout=120)
    if done.returncode != 0:
        raise Refused(done.stderr + done.stdout)
    return done.stdout


def render_text(
    values: Values | None = None, *files: Path, release: str = "edge", namespace: str = "ingress", kubernetes: str = KUBERNETES
) -> str:
    """The manifests as text: `files` first, then `values`. Raises Refused."""
    given = [argument for file in files for argument in ("--values", str(file))]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(dict(values or {}), file)
        file.flush()
        place = ("--namespace", namespace, "--kube-version", kubernetes)
        return run("template", release, str(CHART), *place, *given, "--values", file.name)


def objects(text: str) -> list[Object]:
    return [o for o in yaml.safe_load_all(text) if o]


def render(values: Values | None = None, *files: Path, **more: str) -> list[Object]:
    """The objects. Raises Refused."""
    return objects(render_text(values, *files, **more))


def one(rendered: list[Object], kind: str, name: str) -> Object:
    """The object of this kind and name."""
    found = [o for o in rendered if (o["kind"], o["metadata"]["name"]) == (kind, name)]
    assert len(found) == 1, f"{len(found)} of {kind} {name}"
    return found[0]


def pod_of(obj: Object) -> Object:
    """The pod template's spec of a workload."""
    spec: Object = obj["spec"]["template"]["spec"]
    return spec


def workloads(rendered: list[Object]) -> list[Object]:
    return [o for o in rendered if o["kind"] in ("Deployment", "DaemonSet", "StatefulSet", "Job")]


def service_of(obj: Object) -> str:
    """Its component, whatever the group of nodes."""
    name, _, group = component(obj).partition("-")
    return name if name in ("compiler", "controller") else f"{name}-{group}".removesuffix("-")


def component(obj: Object) -> str:
    name: str = obj["metadata"]["labels"]["app.kubernetes.io/component"]
    return name
