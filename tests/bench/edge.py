"""One nginx with Sluice's configuration, made from compiled objects, for the data-plane benchmarks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from services.applier.nodeconf import NodeSettings, prepare_node, required_tables_bytes, write_generation
from services.compiler.engine import Engine
from services.shared.flags import Flags
from tests.bench.objects import delta
from tests.bench.static import Running, nginx
from tests.support.nats import free_port


def compiled(objects: Iterator[dict[str, Any]], config: dict[str, str] | None = None) -> Engine:
    engine = Engine(Flags())
    if config:
        meta = {"name": "ingress-nginx-controller", "namespace": "ingress-nginx"}
        engine.apply(delta({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": config}))
    for obj in objects:
        engine.apply(delta(obj))
    engine.compile()
    return engine


def write_node(directory: Path, engine: Engine, port: int, *, workers: int = 1) -> NodeSettings:
    """A node's directory that nginx alone can start from."""
    size = required_tables_bytes(len(engine.rows), sum(len(k) + len(v) for k, v in engine.rows.items()))
    settings = NodeSettings(
        directory=directory,
        http_port=port,
        https_port=free_port(),
        address="127.0.0.1",
        worker_processes=workers,
        tables_bytes=size,
        user="root",
    )
    prepare_node(settings)
    generation = directory / "versions" / "1"
    write_generation(generation, settings, engine.bundle, generation=1, version="1.1")
    lines = b"".join(k.encode() + b"\t" + v + b"\n" for k, v in engine.rows.items())
    (generation / "tables.tsv").write_bytes(msgspec.json.encode({"version": "1.1", "digest": ""}) + b"\n" + lines)
    (directory / "current").unlink(missing_ok=True)
    (directory / "current").symlink_to("versions/1")
    return settings


@contextlib.contextmanager
def edge(directory: Path, engine: Engine, port: int, *, workers: int = 1) -> Iterator[Running]:
    write_node(directory, engine, port, workers=workers)
    with nginx(directory, None, port, conf_path="current/nginx.conf") as running:
        yield running
