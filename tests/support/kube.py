"""A real kube-apiserver with etcd: no scheduler, no controllers, RBAC on. Tests stop it, start it again, and compact its history."""

from __future__ import annotations

import asyncio
import base64
import datetime
import functools
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from services.shared.kube.client import Api, KubeError
from services.webhook.certificate import make_certificate
from tests.support.nats import free_port
from tests.support.up import ROOT

PEM = serialization.Encoding.PEM


@functools.cache
def tools() -> Path:
    """Where the binaries are; built if need be."""
    done = subprocess.run([str(ROOT / "scripts" / "cluster-tools")], stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.strip())


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


class _Authority:
    """Signs client certificates: the API server takes CN for the user and O for the groups."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "clients")])
        self.certificate = self._sign(self._name, self._key.public_key(), ca=True)

    def _sign(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *, ca: bool) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        return made.public_bytes(PEM)

    def client(self, user: str, groups: Sequence[str]) -> tuple[bytes, bytes]:
        """(certificate, key), PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.NameAttribute(NameOID.COMMON_NAME, user)]
        names += [x509.NameAttribute(NameOID.ORGANIZATION_NAME, g) for g in groups]
        return self._sign(x509.Name(names), key.public_key(), ca=False), _private(key)


class KubeServer:
    """Use as an async context manager, which returns when it is ready. `directory` keeps keys, logs and what etcd holds.

    `start`, `kill`, `stop` and `cont` mean the API server; etcd runs all the time.
    """

    def __init__(self, directory: Path, *, address: str = "127.0.0.1", more: Sequence[str] = ()) -> None:
        """`more`: further arguments of kube-apiserver."""
        self.directory = directory
        self.address = address
        self.port, self._etcd_port, self._peer_port = free_port(), free_port(), free_port()
        self.url = f"https://{address}:{self.port}"
        self._more = more
        self.ca = directory / "serving" / "ca.crt"
        """PEM; what `url` is trusted by."""
        self._authority = _Authority()
        self._kubeconfigs: dict[tuple[str, ...], Path] = {}
        self._etcd: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> KubeServer:
        self.directory.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(tools)
        make_certificate(self.directory / "serving", ("localhost", "127.0.0.1", self.address))
        (self.directory / "clients.crt").write_bytes(self._authority.certificate)
        key = ec.generate_private_key(ec.SECP256R1())
        (self.directory / "accounts.key").write_bytes(_private(key))
        public = key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        (self.directory / "accounts.pub").write_bytes(public)
        try:
            self._etcd = self._run("etcd", *self._etcd_arguments())
            await self.start()
        except BaseException:  # then nobody calls __aexit__
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        for process in (self._server, self._etcd):
            if process is not None:
                process.kill()
                process.wait()

    def _run(self, tool: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Dies with the thread that starts it, however that ends; a Ctrl-C at the terminal reaches only us."""
        command = ["setpriv", "--pdeathsig", "KILL", str(tools() / tool), *arguments]
        with (self.directory / f"{tool}.log").open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory, start_new_session=True)

    def _etcd_arguments(self) -> list[str]:
        client, peer = f"http://127.0.0.1:{self._etcd_port}", f"http://127.0.0.1:{self._peer_port}"
        return [
            *("--data-dir", str(self.directory / "etcd"), "--unsafe-no-fsync", "--log-level", "error"),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"),
        ]

    async def start(self) -> None:
        """The API server; returns when it is ready."""
        d = self.directory
        self._server = self._run(
            "kube-apiserver",
            *("--etcd-servers", f"http://127.0.0.1:{self._etcd_port}", "--secure-port", str(self.port), "--bind-address", self.address),
            *("--tls-cert-file", str(d / "serving/tls.crt"), "--tls-private-key-file", str(d / "serving/tls.key")),
            *("--client-ca-file", str(d / "clients.crt"), "--authorization-mode", "RBAC", "--anonymous-auth=false"),
            *("--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", str(d / "accounts.pub")),
            *("--service-account-signing-key-file", str(d / "accounts.key"), "--disable-admission-plugins", "ServiceAccount"),
            *("--service-cluster-ip-range", "10.96.0.0/16", "--allow-privileged=true", "--profiling=false"),
            *("--watch-cache-sizes", "", "--min-request-timeout", "300"),
            *self._more,
        )
        api = await self.api()
        try:
            async with asyncio.timeout(120):
                while not await self._is_ready(api):
                    await asyncio.sleep(0.05)
        finally:
            await api.close()

    async def _is_ready(self, api: Api) -> bool:
        for name, process in (("etcd", self._etcd), ("kube-apiserver", self._server)):
            if process is None or process.poll() is not None:
                raise RuntimeError(f"{name} ended: {(self.directory / f'{name}.log').read_text()[-2000:]}")
        try:
            await api.request("GET", "/readyz", timeout=5)
            await api.request("GET", "/api/v1/namespaces/default", timeout=5)
        except KubeError:
            return False
        return True

    def send(self, number: signal.Signals) -> None:
        assert self._server is not None
        self._server.send_signal(number)

    async def kill(self) -> None:
        self.send(signal.SIGKILL)
        assert self._server is not None
        await asyncio.to_thread(self._server.wait)

    async def restart(self) -> None:
        """As after a crash: etcd keeps the objects, the API server's watch cache is empty."""
        await self.kill()
        await self.start()

    def stop(self) -> None:
        """It hangs: connections stay open, nothing is answered."""
        self.send(signal.SIGSTOP)

    def cont(self) -> None:
        self.send(signal.SIGCONT)

    def kubeconfig(self, user: str = "admin", groups: Sequence[str] = ("system:masters",)) -> Path:
        """Of this user, by a client certificate; the default is the administrator.

        A ServiceAccount's rights are those of the user `system:serviceaccount:<namespace>:<name>`.
        """
        known = self._kubeconfigs.get((user, *groups))
        if known is not None:  # somebody may be reading it
            return known
        certificate, key = self._authority.client(user, groups)
        encoded = {
            "client-certificate-data": base64.b64encode(certificate).decode(),
            "client-key-data": base64.b64encode(key).decode(),
        }
        ca = base64.b64encode(self.ca.read_bytes()).decode()
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {"server": self.url, "certificate-authority-data": ca}}],
            "users": [{"name": "user", "user": encoded}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "user"}}],
            "current-context": "test",
        }
        path = self.directory / f"{'_'.join([user, *groups]).replace(':', '_')}.kubeconfig"
        path.touch(mode=0o600)  # helm complains of one that others can read
        path.write_bytes(msgspec.json.encode(content))
        self._kubeconfigs[(user, *groups)] = path
        return path

    async def api(self, user: str = "admin", groups: Sequence[str] = ("system:masters",)) -> Api:
        return await Api.connect(self.kubeconfig(user, groups))

    async def kubectl(self, *arguments: str, text: str = "", check: bool = True) -> str:
        """Its output, both streams; `text` is its input. As the administrator, unless `--kubeconfig` says who.

        With `check` a failure raises AssertionError.
        """
        process = await self.start_kubectl(*arguments)
        out, _ = await process.communicate(text.encode())
        assert not check or process.returncode == 0, out.decode()
        return out.decode()

    async def start_kubectl(self, *arguments: str) -> asyncio.subprocess.Process:
        """For what does not end by itself, such as `get --watch`: its input and output (both streams) are pipes."""
        return await asyncio.create_subprocess_exec(
            *(str(tools() / "kubectl"), *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig()), "HOME": str(self.directory)},
        )

    async def apply(self, *objects: dict[str, Any]) -> str:
        items = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        return await self.kubectl("apply", "-f", "-", text=msgspec.json.encode(items).decode())

    async def compact(self) -> None:
        """etcd forgets all history. What the API server itself remembers goes with `restart`: then older resourceVersions get 410."""
        url = f"http://127.0.0.1:{self._etcd_port}/v3/kv"
        async with aiohttp.ClientSession() as session:
            async with session.post(f"{url}/range", json={"key": "AA==", "limit": 1}) as answer:
                revision = (await answer.json())["header"]["revision"]
            async with session.post(f"{url}/compaction", json={"revision": revision, "physical": True}) as answer:
                assert answer.status == 200, await answer.text()
