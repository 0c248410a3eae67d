"""The Dockerfile has an image for each service of the chart, with what scripts/setup says that it needs, and nothing runs as root."""

from __future__ import annotations

import re
from typing import Any

import yaml

from tests.chart.helm import CHART, Object, pod_of, workloads
from tests.support.up import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
TARGETS = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.DOTALL | re.MULTILINE))
SERVICES = {"watcher", "compiler", "webhook", "applier", "command", "nats"}


def images(values: Any) -> set[str]:
    """Everything below an `image` key of values.yaml."""
    if not isinstance(values, dict):
        return set()
    own = {values["image"]} if isinstance(values.get("image"), str) else set()
    return own.union(*(images(inner) for inner in values.values()))


def extras_of(target: str) -> set[str]:
    found = re.search(r"COPY --from=(\S+)", TARGETS[target])
    assert found is not None
    extras = re.search(r"sluice-ingress\[([\w,]+)\]", TARGETS[found[1]])
    return set(extras[1].split(",")) if extras else set()


def test_each_image_of_the_chart_has_its_target() -> None:
    found = images(yaml.safe_load((CHART / "values.yaml").read_text()))

    assert {name for name in found if name.startswith("sluice/")} == {f"sluice/{service}" for service in SERVICES}
    assert set(TARGETS) >= SERVICES


def test_nothing_runs_as_root() -> None:
    for service in SERVICES:
        assert re.findall(r"^USER (\S+)$", TARGETS[service], re.MULTILINE) == ["101:82"], service


def test_an_image_has_its_own_extra_and_only_the_watchers_speaks_to_the_api_server() -> None:
    assert {service: extras_of(service) for service in SERVICES} == {
        "watcher": {"watcher"},
        "compiler": {"compiler"},
        "webhook": {"webhook"},
        "applier": {"applier"},
        "command": {"compiler", "webhook"},
        "nats": set(),
    }


def test_the_edge_has_the_packages_that_the_setup_installs() -> None:
    setup = re.search(r"^packages=\(([^)]*)\)", (ROOT / "scripts" / "setup").read_text(), re.MULTILINE)
    installed = re.search(r"install -y -qq --no-install-recommends ([^&]*)&&", TARGETS["applier"])
    assert setup is not None and installed is not None

    assert set(installed[1].split()) - {"libcap2-bin"} == set(setup[1].split()) - {"python3-venv"}


def test_no_package_is_installed_unchecked() -> None:
    for line in re.findall(r"pip\S* (?:install|wheel|download)[^&\n]*", DOCKERFILE):
        assert "--require-hashes" in line or "--no-index" in line or "--no-deps --no-build-isolation" in line, line


def test_the_hook_before_a_pod_ends_is_in_the_image(rendered: list[Object]) -> None:
    commands = [
        c["lifecycle"]["preStop"]["exec"]["command"] for w in workloads(rendered) for c in pod_of(w)["containers"] if "lifecycle" in c
    ]

    assert ["/wait-shutdown"] in commands
    assert "scripts/images/wait-shutdown /wait-shutdown" in TARGETS["applier"]
