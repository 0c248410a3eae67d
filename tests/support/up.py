"""A real `sluice up` on free ports in a temporary directory, and what a user does with it: edit files, wait, ask, send requests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from cryptography import x509

from tests.support.nats import free_port

ROOT = Path(__file__).parents[2]


def free_block(count: int) -> int:
    """The first of `count` consecutive free ports."""
    while True:
        base = free_port()
        if base + count > 65000:
            continue
        sockets = []
        try:
            for port in range(base, base + count):
                s = socket.socket()
                sockets.append(s)
                s.bind(("127.0.0.1", port))
        except OSError:
            continue
        else:
            return base
        finally:
            for s in sockets:
                s.close()


class SluiceUp:
    """One `sluice up`. `start` returns when it is ready."""

    def __init__(
        self,
        directory: Path,
        *,
        nodes: int = 2,
        arguments: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
        kubeconfig: Path | None = None,
        state: Path | None = None,
    ) -> None:
        self._kubeconfig = kubeconfig
        self.state = state or directory / "state"
        self.manifests = directory / "manifests"
        self.manifests.mkdir(parents=True, exist_ok=True)
        self.nodes = nodes
        base = free_block(3 * nodes + 1)
        self.http = [base + i for i in range(nodes)]
        self.https = [base + nodes + i for i in range(nodes)]
        self.health = [base + 2 * nodes + i for i in range(nodes)]
        self.webhook = base + 3 * nodes
        self._arguments = arguments
        self._environment = environment or {}
        self._process: subprocess.Popen[bytes] | None = None
        self.log = directory / "up.log"

    # --- the process

    def launch(self) -> None:
        """Start it, without waiting."""
        command = [
            *(sys.executable, "-m", "services.cli", "up", "--state", str(self.state)),
            *(("--manifests", str(self.manifests)) if self._kubeconfig is None else ("--kubeconfig", str(self._kubeconfig))),
            *("--nodes", str(self.nodes), "--http-port", str(self.http[0]), "--https-port", str(self.https[0])),
            *("--healthz-port", str(self.health[0]), "--webhook-port", str(self.webhook), "--json", *self._arguments),
        ]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **self._environment}
            )

    def start(self, timeout: float = 60) -> None:
        self.launch()
        self.until_ready(timeout)

    def until_ready(self, timeout: float = 60) -> None:
        assert self._process is not None
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise AssertionError(f"sluice up ended with {self._process.returncode}:\n{self.log.read_text()[-3000:]}")
            if self.up().get("ready") and self.up().get("pid") == self._process.pid:
                return
            time.sleep(0.02)
        raise AssertionError(f"not ready within {timeout} s:\n{self.log.read_text()[-3000:]}")

    def up(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.state / "up.json").read_text())
        except (OSError, ValueError):
            return {}
        return found

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = 40) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(timeout)

    def __enter__(self) -> SluiceUp:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            if self._process is not None and self._process.poll() is None:
                self.stop()
        finally:
            for process in self.processes():
                with contextlib.suppress(psutil.Error):  # it may have ended by itself
                    process.kill()

    def processes(self) -> list[psutil.Process]:
        """Everything that runs from this state directory: services, nats-server, nginx masters and their workers."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter(["cmdline"]):
            title = " ".join(process.info["cmdline"] or [])
            if str(self.state) in title or (self._process is not None and process.pid in self._children_on_disk()):
                found[process.pid] = process
                if "nginx: master" in title:
                    found.update({c.pid: c for c in _children(process)})
        return list(found.values())

    def _children_on_disk(self) -> set[int]:
        try:
            return {c["pid"] for c in json.loads((self.state / "children.json").read_text())}
        except (OSError, ValueError):
            return set()

    def child(self, name: str) -> psutil.Process:
        """One supervised process: nats, watcher, compiler, webhook, node-0, ... Waits while it is being restarted."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError, psutil.Error):
                for record in json.loads((self.state / "children.json").read_text()):
                    if record["name"] == name and psutil.Process(record["pid"]).status() != psutil.STATUS_ZOMBIE:
                        return psutil.Process(record["pid"])
            time.sleep(0.02)
        raise AssertionError(f"no process {name}")

    def nginx(self, node: int) -> psutil.Process:
        """The nginx master of a node."""
        return psutil.Process(int((self.state / "nodes" / f"node-{node}" / "run" / "nginx.pid").read_text()))

    # --- what a user does

    def write(self, name: str, text: str) -> None:
        """As an editor does: a new file renamed over the old one."""
        path = self.manifests / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(text)
        temporary.rename(path)

    def run(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """One `sluice` command against this state directory."""
        command = [sys.executable, "-m", "services.cli", *arguments, "--state", str(self.state)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)

    def json(self, *arguments: str) -> Any:
        """What a command prints with --json."""
        return json.loads(self.run(*arguments, "--json").stdout)

    def until(self, true: Callable[[], bool], timeout: float = 30) -> None:
        deadline = time.monotonic() + timeout
        while not true():
            assert time.monotonic() < deadline, "it does not come true"
            time.sleep(0.05)

    def wait(self, *arguments: str) -> None:
        done = self.run("wait", *arguments)
        assert done.returncode == 0, done.stderr

    def status(self) -> dict[str, Any]:
        done = self.run("status", "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def reloads(self) -> list[int]:
        """Reloads of each node so far, whatever the cause."""
        return [sum(n.get("reloads", {}).values()) for n in self.status()["nodes"]]


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def get(
    port: int, host: str, path: str = "/", headers: dict[str, str] | None = None, *, tls: bool = False
) -> tuple[int, dict[str, str], bytes]:
    """One request on a connection of its own: (status, headers in lower case, body)."""
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
        if tls:
            connection = stack.enter_context(_client_context().wrap_socket(connection, server_hostname=host))
        extra = "".join(f"{k}: {v}\r\n" for k, v in (headers or {}).items())
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{extra}\r\n".encode())
        data = b""
        while chunk := connection.recv(65536):
            data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    found = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
    return int(lines[0].split()[1]), found, body


def _client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def peer_certificate(port: int, host: str) -> x509.Certificate:
    """The certificate shown for an SNI name."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        _client_context().wrap_socket(plain, server_hostname=host) as tls,
    ):
        return x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")


def peer_names(port: int, host: str) -> set[str]:
    """Its DNS names."""
    shown = peer_certificate(port, host)
    return set(shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName))
