"""Manifests -> the real compiler -> one real nginx."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from services.applier.control import Control, PushResult, lines_of, push_body
from services.applier.gate import check_bundle
from services.applier.nodeconf import NodeSettings, prepare_node, write_generation
from services.applier.rows import files_of
from services.applier.streams import StreamFiles
from services.compiler.engine import Engine
from services.shared.contracts.tables import PushHeader
from services.shared.flags import Flags
from tests.support.compiling import CLASS, upsert
from tests.support.nats import free_port
from tests.support.up import get


class Edge:
    """One nginx with two workers, serving compiled manifests."""

    def __init__(self, directory: Path, flags: Flags | None = None, address: str = "127.0.0.1") -> None:
        self.settings = NodeSettings(
            directory=directory, http_port=free_port(), https_port=free_port(), address=address, worker_processes=2, user="root"
        )
        self._streams = StreamFiles(directory / "streams")
        self.engine = Engine(flags or Flags())
        self.engine.apply(upsert(CLASS))
        self._version = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._policies: set[str] = set()

    def start(self, objects: Iterable[Mapping[str, Any]]) -> None:
        self._compile(objects)
        prepare_node(self.settings)
        self._write(1)
        self._process = subprocess.Popen(
            ["/usr/sbin/nginx", "-p", str(self.settings.directory), "-c", "current/nginx.conf", "-g", "daemon off;"],
            stderr=subprocess.DEVNULL,
        )
        until(self._answers, "nginx answers")

    def _compile(self, objects: Iterable[Mapping[str, Any]]) -> tuple[dict[str, bytes], tuple[str, ...]]:
        for n, obj in enumerate(objects):
            self.engine.apply(upsert(obj, created=f"2026-01-01T00:00:{n % 60:02}Z"))
        output = self.engine.compile()
        self._version += 1
        return output.upsert, output.delete

    def _write(self, generation: int) -> None:
        assert check_bundle(self.engine.bundle) == [], "an applier would refuse this"
        directory = self.settings.directory / "versions" / str(generation)
        write_generation(directory, self.settings, self.engine.bundle, generation=generation, version=f"1.{self._version}")
        self._files()
        body = b"".join(k.encode() + b"\t" + v + b"\n" for k, v in self.engine.rows.items())
        (directory / "tables.tsv").write_bytes(msgspec.json.encode({"version": f"1.{self._version}", "digest": ""}) + b"\n" + body)
        link = self.settings.directory / "current"
        link.unlink(missing_ok=True)
        link.symlink_to(f"versions/{generation}")
        self._policies = {p.hash for p in self.engine.bundle.policies}

    def _files(self) -> None:
        for digest, content in files_of(self.engine.rows).items():
            (self.settings.directory / "files" / digest).write_text(content)
        self._streams.write(self.engine.rows, {})
        self._streams.keep(self.engine.rows)

    def update(self, *objects: Mapping[str, Any]) -> None:
        """Push what these objects change; it must need no new policy."""
        before = f"1.{self._version}"
        changed, gone = self._compile(objects)
        assert {p.hash for p in self.engine.bundle.policies} <= self._policies, "this change needs a reload"
        self._files()
        header = PushHeader(base=before, version=f"1.{self._version}")
        result = asyncio.run(Control(self.settings.control_socket).push(push_body(header, lines_of(changed, gone))))
        assert result.outcome == "live", result

    def push(self, body: bytes) -> PushResult:
        """Anything at all, to the control socket."""
        return asyncio.run(Control(self.settings.control_socket).push(body))

    def get(
        self, host: str, path: str = "/", headers: dict[str, str] | None = None, *, tls: bool = False
    ) -> tuple[int, dict[str, str], bytes]:
        return get(self.settings.https_port if tls else self.settings.http_port, host, path, headers, tls=tls)

    def seen(self, host: str, path: str = "/", headers: dict[str, str] | None = None, *, tls: bool = False) -> dict[str, Any]:
        """What the backend received."""
        status, _, body = self.get(host, path, headers, tls=tls)
        assert status == 200, (status, body)
        found: dict[str, Any] = json.loads(body)
        return found

    def curl(self, *arguments: str, host: str = "", path: str = "/", tls: bool = False) -> subprocess.CompletedProcess[str]:
        port = self.settings.https_port if tls else self.settings.http_port
        url = f"{'https' if tls else 'http'}://{host or '127.0.0.1'}:{port}{path}"
        resolve = ["--resolve", f"{host}:{port}:127.0.0.1"] if host else []
        return subprocess.run(["curl", "-sk", "-m", "20", *resolve, *arguments, url], capture_output=True, text=True, check=False)

    def error_log(self) -> str:
        return (self.settings.directory / "logs" / "error.log").read_text()

    def access_log(self) -> list[str]:
        return (self.settings.directory / "logs" / "access.log").read_text().splitlines()

    def errors(self, expected: Iterable[str] = ()) -> list[str]:
        """Lines of the error log of level `error` and above, and what Lua warns of, but for those that an `expected` expression finds."""
        bad = re.compile(r"\[(error|crit|alert|emerg)\]|\[warn\].*\[lua\]")
        allowed = [re.compile(e) for e in expected]
        return [line for line in self.error_log().splitlines() if bad.search(line) and not any(a.search(line) for a in allowed)]

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.error_log()[-2000:]
        return asyncio.run(Control(self.settings.control_socket).generation()) is not None


def until(true: Callable[[], bool], what: str, seconds: float = 30) -> None:
    """Returns as soon as `true()`; an error that names `what` after so many seconds."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"never came true: {what}"
        time.sleep(0.01)


@contextlib.contextmanager
def running(
    directory: Path,
    objects: Iterable[Mapping[str, Any]],
    *,
    flags: Flags | None = None,
    expected: Iterable[str] = (),
    address: str = "127.0.0.1",
) -> Iterator[Edge]:
    """An Edge that serves `objects`. At the end `errors` must find nothing but what the regular expressions `expected` describe.
    `address`: where it listens; empty: everywhere."""
    made = Edge(directory, flags, address)
    made.start(objects)
    try:
        yield made
    finally:
        made.stop()
    if unexpected := made.errors(expected):
        raise AssertionError("in the error log:\n" + "\n".join(unexpected[:20]))
