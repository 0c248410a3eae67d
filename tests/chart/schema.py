"""values.schema.json, from values.yaml and the values that have no default: `python -m tests.chart.schema` writes it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from typing import Any

import yaml

from tests.chart.helm import CHART, HERE

FILE = CHART / "values.schema.json"
FREE = {"type": ["object", "null"]}
ONE_OF: dict[str, list[Any]] = {
    "controller.kind": ["Deployment", "DaemonSet"],
    "controller.admissionWebhooks.failurePolicy": ["Fail", "Ignore"],
    "nats.replicas": [1, 3],
    "telemetry.logLevel": ["debug", "info", "warning", "error"],
}
EXACTLY: dict[str, dict[str, Any]] = {"controller.rollout.soakSeconds": {"type": "number", "minimum": 0}}
ANY = frozenset({"controller.hostname", "controller.scope.namespaceSelector"})
"""The original's default is of another type than what is useful."""
OPEN = frozenset({"global", "controller.nodeSelector", "defaultBackend.nodeSelector"})
"""Objects with defaults that take further keys; and those of the names below, wherever they are."""
OPEN_NAMES = ("livenessProbe", "readinessProbe", "lifecycle", "resources", "nodeSelector", "seccompProfile", "securityContext", "labels")

OWN = ("watcher", "compiler", "webhook", "keys", "command", "nats")


def original() -> dict[str, str]:
    """ingress-nginx's values: dotted key -> default as YAML; empty: it has none."""
    with (HERE / "ingress-nginx-values.csv").open() as file:
        return {row["key"]: row["default"] for row in csv.DictReader(file)}


def parts(key: str) -> list[str]:
    """A dotted key as its steps; one name has dots itself."""
    head, found, _ = key.partition(".kubernetes.io/os")
    return [*head.split("."), "kubernetes.io/os"] if found else key.split(".")


def _schema(path: str, value: Any) -> dict[str, Any]:
    if path in ONE_OF:
        return {"enum": ONE_OF[path]}
    if path in EXACTLY:
        return EXACTLY[path]
    if path in ANY:
        return {}
    if isinstance(value, dict):
        if not value:
            return FREE
        further = path in OPEN or path.rpartition(".")[2] in OPEN_NAMES
        properties = {name: _schema(f"{path}.{name}" if path else name, inner) for name, inner in sorted(value.items())}
        return {"type": "object", "properties": properties, "additionalProperties": further}
    if isinstance(value, list):
        return {"type": ["array", "null"]}
    if isinstance(value, bool):
        return {"type": "boolean"}
    if isinstance(value, int):
        return {"type": ["integer", "string", "null"]}
    return {"type": ["string", "number", "null"]}


def _without_default() -> Iterator[str]:
    return (key for key, default in original().items() if not default)


def _add(properties: dict[str, Any], steps: list[str]) -> None:
    """Any type: the API server checks what becomes of it."""
    step, *rest = steps
    if not rest:
        properties.setdefault(step, {})
        return
    inner = properties.setdefault(step, {"type": "object", "properties": {}, "additionalProperties": False})
    if "properties" in inner:
        _add(inner["properties"], rest)


def build() -> str:
    """The text of the file."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = _schema("", values)
    for key in _without_default():
        _add(schema["properties"], parts(key))
    for service in OWN:
        _add(schema["properties"], [service, "image", "registry"])
        _add(schema["properties"], [service, "image", "repository"])
    schema["properties"]["groups"] = {"type": ["object", "null"], "additionalProperties": {"$ref": "#/properties/controller"}}
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Values of the Sluice chart"}
    properties = [f"{json.dumps(name)}: {json.dumps(inner)}" for name, inner in sorted(schema.pop("properties").items())]
    rest = json.dumps(head | schema)
    return rest[:-1] + ', "properties": {\n' + ",\n".join(properties) + "\n}}\n"


if __name__ == "__main__":
    FILE.write_text(build())
