"""Manifests -> the real compiler -> one real nginx, with small backends that answer what they received."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from services.applier.control import Control, PushResult, lines_of, push_body
from services.applier.nodeconf import NodeSettings, prepare_node, write_generation
from services.applier.rows import files_of
from services.compiler.engine import Engine
from services.shared.contracts.tables import PushHeader
from services.shared.flags import Flags
from tests.support.compiling import CLASS, upsert
from tests.support.nats import free_port
from tests.support.up import get


class Edge:
    """One nginx with two workers, serving compiled manifests."""

    def __init__(self, directory: Path, flags: Flags | None = None) -> None:
        self.settings = NodeSettings(
            directory=directory, http_port=free_port(), https_port=free_port(), address="127.0.0.1", worker_processes=2, user="root"
        )
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
        self._until(lambda: asyncio.run(Control(self.settings.control_socket).generation()) is not None)

    def _compile(self, objects: Iterable[Mapping[str, Any]]) -> tuple[dict[str, bytes], tuple[str, ...]]:
        for n, obj in enumerate(objects):
            self.engine.apply(upsert(obj, created=f"2026-01-01T00:00:{n % 60:02}Z"))
        output = self.engine.compile()
        self._version += 1
        return output.upsert, output.delete

    def _write(self, generation: int) -> None:
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

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)

    def _until(self, true: Any) -> None:
        deadline = time.monotonic() + 20
        while not true():
            assert self._process is not None
            assert self._process.poll() is None, self.error_log()[-2000:]
            assert time.monotonic() < deadline, "nginx does not answer"


def _echo(name: str) -> Any:
    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        status = int(request.query.get("status", "200"))
        extra = {k.removeprefix("h-"): v for k, v in request.query.items() if k.startswith("h-")}
        if name == "auth":
            allowed = request.headers.get("X-Token") == "good"
            headers = {"X-User": "alice", "Set-Cookie": "auth=1", "WWW-Authenticate": "Token"} if allowed else {"WWW-Authenticate": "Token"}
            status = 200 if allowed else int(request.headers.get("X-Fail", "401"))
            request.app["log"].append(_received(name, request, body))
            return web.Response(status=status, headers=headers)
        if "size" in request.query:
            return web.Response(body=b"x" * int(request.query["size"]))
        if "sleep" in request.query:
            await asyncio.sleep(float(request.query["sleep"]))
        if "halves" in request.query:
            return await _halves(request)
        return web.json_response(_received(name, request, body), status=status, headers=extra)

    return answer


def _received(name: str, request: web.Request, body: bytes) -> dict[str, Any]:
    headers = {k.lower(): v for k, v in request.headers.items()}
    peer = request.transport.get_extra_info("peername")[1] if request.transport is not None else 0
    return {"name": name, "method": request.method, "path": request.raw_path, "headers": headers, "bytes": len(body), "from": peer}


async def _halves(request: web.Request) -> web.StreamResponse:
    """Half an answer now, the other half some seconds later."""
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"first")
    await asyncio.sleep(float(request.query["halves"]))
    await response.write(b"second")
    return response


@contextlib.contextmanager
def echoes(*names: str, tls: ssl.SSLContext | None = None) -> Iterator[tuple[dict[str, int], list[dict[str, Any]]]]:
    """(name -> port, what `auth` was asked). With `tls` they all speak HTTPS."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runners: list[web.AppRunner] = []
    log: list[dict[str, Any]] = []

    async def start() -> dict[str, int]:
        ports = {}
        for name in names:
            app = web.Application(client_max_size=1024**3)
            app._state["log"] = log  # an untyped key would warn
            app.router.add_route("*", "/{tail:.*}", _echo(name))
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
            runners.append(runner)
            ports[name] = runner.addresses[0][1]
        return ports

    async def end() -> None:
        for runner in runners:
            await runner.cleanup()

    try:
        yield asyncio.run_coroutine_threadsafe(start(), loop).result(10), log
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def secret(name: str, data: Mapping[str, str], namespace: str = "default") -> dict[str, Any]:
    encoded = {k: base64.b64encode(v.encode()).decode() for k, v in data.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace}, "data": encoded}
