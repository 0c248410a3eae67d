"""Runs the pods of rendered workloads on a real API server: a kubelet, a network and a DNS small enough to read.

A pod is a process in a network namespace of its own, joined to the others by a bridge. Its volumes are directories; their paths are put
into its command line and configuration in place of the mount paths. What is not here: images, probes, resources, users.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from services.shared.kube.client import Api
from tests.support.kube import KubeServer

Object = dict[str, Any]
ACCOUNT = Path("/run/secrets/kubernetes.io/serviceaccount")
_count = itertools.count(1)


def sh(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


class Network:
    """A bridge that this machine and all pods are on. Needs root."""

    def __init__(self) -> None:
        self.number = os.getpid() % 200 + 20
        self.bridge = f"slbr{self.number}"
        self.address = f"10.213.{self.number}.1"
        """This machine's."""
        self._hosts = itertools.count(2)

    def __enter__(self) -> Network:
        sh("ip", "link", "add", self.bridge, "type", "bridge")
        sh("ip", "address", "add", f"{self.address}/24", "dev", self.bridge)
        sh("ip", "link", "set", self.bridge, "up")
        return self

    def __exit__(self, *exc: object) -> None:
        sh("ip", "link", "delete", self.bridge, check=False)

    def join(self) -> tuple[str, str]:
        """(namespace, address) of one more."""
        host = next(self._hosts)
        name, link, address = f"sl-{self.number}-{host}", f"slv{self.number}-{host}", f"10.213.{self.number}.{host}"
        sh("ip", "netns", "add", name)
        sh("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        sh("ip", "link", "set", link, "master", self.bridge, "up")
        for command in ((*("address", "add", f"{address}/24"), "dev", "eth0"), ("link", "set", "eth0", "up"), ("link", "set", "lo", "up")):
            sh("ip", "-n", name, *command)
        return name, address


class Pod:
    """One that runs, or ran."""

    def __init__(self, name: str, namespace: str, address: str, directory: Path, process: subprocess.Popen[bytes], probe: Object) -> None:
        """`probe`: of its readiness."""
        self.name = name
        self.probe = probe
        self.address = address
        self.directory = directory
        self.process = process
        self._namespace = namespace

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    async def ended(self, seconds: float = 60) -> int:
        async with asyncio.timeout(seconds):
            while self.process.poll() is None:
                await asyncio.sleep(0.05)
        return self.process.returncode

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        for pid in sh("ip", "netns", "pids", self._namespace, check=False).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        self.process.wait()
        sh("ip", "netns", "delete", self._namespace, check=False)


class Pods:
    """Starts pods in one Kubernetes namespace, and ends all of them."""

    def __init__(self, kube: KubeServer, api: Api, namespace: str, network: Network, directory: Path) -> None:
        self._kube = kube
        self._api = api
        self._namespace = namespace
        self._network = network
        self._directory = directory
        self._hosts = directory / "hosts"
        self._hosts.write_text("127.0.0.1 localhost\n")
        self._started: list[Pod] = []

    def end(self) -> None:
        for pod in self._started:
            pod.end()

    async def run(
        self, workload: Object, *, name: str = "", node: str = "node-1", names: tuple[str, ...] = (), command: tuple[str, ...] = ()
    ) -> Pod:
        """Start a pod of this Deployment, DaemonSet, StatefulSet or Job. `names`: DNS names of it; `command` instead of its own."""
        spec = workload["spec"]["template"]["spec"]
        container = spec["containers"][0]
        name = name or f"{workload['metadata']['name']}-{next(_count)}"
        netns, address = self._network.join()
        with self._hosts.open("a") as hosts:
            hosts.writelines(f"{address} {n}\n" for n in names)
        uid = await self._create(workload, name, node, spec)
        directory = self._directory / name
        places = await self._volumes(spec, container, directory, name, uid)
        environment = {**self._environment(container, name, node, places), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        argv = command or tuple(_put(word, places, environment) for word in [*container["command"], *container.get("args", [])])
        mounts = f"mount --bind {self._hosts} /etc/hosts"
        if spec.get("automountServiceAccountToken", True):
            ACCOUNT.mkdir(parents=True, exist_ok=True)
            await self._account(directory / "account", name, spec["serviceAccountName"], uid)
            mounts += f" && mount --bind {directory / 'account'} {ACCOUNT}"
            environment |= {"KUBERNETES_SERVICE_HOST": self._kube.address, "KUBERNETES_SERVICE_PORT": str(self._kube.port)}
        with (directory / "log").open("ab") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", netns, "sh", "-c", f'{mounts} && exec setpriv --pdeathsig KILL "$@"', "sh", *argv],
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=directory,
            )  # fmt: skip
        pod = Pod(name, netns, address, directory, process, container.get("readinessProbe", {}))
        self._started.append(pod)
        return pod

    async def _create(self, workload: Object, name: str, node: str, spec: Object) -> str:
        """The object, as the scheduler leaves it; its uid."""
        metadata = {"name": name, "labels": workload["spec"]["template"]["metadata"]["labels"]}
        short = {"nodeName": node, "serviceAccountName": spec["serviceAccountName"], "containers": [{"name": "x", "image": "x"}]}
        path = f"/api/v1/namespaces/{self._namespace}/pods"
        made = msgspec.json.decode(await self._api.request("POST", path, body={"metadata": metadata, "spec": short}))
        uid: str = made["metadata"]["uid"]
        return uid

    async def _volumes(self, spec: Object, container: Object, directory: Path, pod: str, uid: str) -> dict[str, str]:
        """Mount path -> directory."""
        volumes = {v["name"]: v for v in spec.get("volumes", [])}
        places = {m["mountPath"]: str(directory / m["name"]) for m in container.get("volumeMounts", [])}
        for mount in container.get("volumeMounts", []):
            place = directory / mount["name"]
            place.mkdir(parents=True, exist_ok=True)
            volume = volumes.get(mount["name"], {})
            for file, data in (await self._files(volume, spec, pod, uid)).items():
                with contextlib.suppress(UnicodeDecodeError):
                    data = _put(data.decode(), places, {}).encode()
                (place / file).write_bytes(data)
        directory.mkdir(parents=True, exist_ok=True)
        return places

    async def _files(self, volume: Object, spec: Object, pod: str, uid: str) -> dict[str, bytes]:
        path = f"/api/v1/namespaces/{self._namespace}"
        if "secret" in volume:
            found = msgspec.json.decode(await self._api.request("GET", f"{path}/secrets/{volume['secret']['secretName']}"))["data"]
            chosen = {i["key"]: i["path"] for i in volume["secret"].get("items", [])} or {key: key for key in found}
            return {place: base64.b64decode(found[key]) for key, place in chosen.items()}
        if "configMap" in volume:
            found = msgspec.json.decode(await self._api.request("GET", f"{path}/configmaps/{volume['configMap']['name']}"))["data"]
            return {key: text.encode() for key, text in found.items()}
        if "projected" in volume:
            (source,) = volume["projected"]["sources"]
            wanted = source["serviceAccountToken"]
            return {wanted["path"]: await self._token(pod, spec["serviceAccountName"], uid, wanted["audience"])}
        return {}

    async def _token(self, pod: str, account: str, uid: str, audience: str = "https://kubernetes.default.svc") -> bytes:
        spec = {"audiences": [audience], "expirationSeconds": 3600, "boundObjectRef": {"kind": "Pod", "name": pod, "uid": uid}}
        path = f"/api/v1/namespaces/{self._namespace}/serviceaccounts/{account}/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        answer = msgspec.json.decode(await self._api.request("POST", path, body=body))
        return str(answer["status"]["token"]).encode()

    async def _account(self, directory: Path, pod: str, account: str, uid: str) -> None:
        directory.mkdir()
        (directory / "token").write_bytes(await self._token(pod, account, uid))
        (directory / "namespace").write_text(self._namespace)
        shutil.copy(self._kube.ca, directory / "ca.crt")

    def _environment(self, container: Object, name: str, node: str, places: Mapping[str, str]) -> dict[str, str]:
        fields: dict[str, Callable[[], str]] = {
            "metadata.name": lambda: name,
            "metadata.namespace": lambda: self._namespace,
            "spec.nodeName": lambda: node,
        }
        out: dict[str, str] = {}
        for variable in container.get("env", []):
            field = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
            out[variable["name"]] = fields[field]() if field else _put(variable["value"], places, out)
        return out


def _put(text: str, places: Mapping[str, str], variables: Mapping[str, str]) -> str:
    for name, value in variables.items():
        text = text.replace(f"$({name})", value)
    mounts = "|".join(re.escape(mount) for mount in sorted(places, key=len, reverse=True))
    return re.sub(rf"(?<![\w/])({mounts})(?=[/\"]|$)", lambda found: places[found[1]], text) if mounts else text
