"""certgen and the webhook on a real API server: `kubectl apply` of a bad Ingress is refused in our words, warnings are shown."""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509

from services.shared.kube.client import Api
from tests.support.addresses import backend_address
from tests.support.kube import KubeServer
from tests.support.objects import ingress
from tests.support.up import ROOT, SluiceUp

pytestmark = [pytest.mark.nats, pytest.mark.nginx, pytest.mark.cluster]

CONFIGURATIONS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"


def certgen(kube: KubeServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "services.cli", "certgen", "--kubeconfig", str(kube.kubeconfig()), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ)


def _configuration(name: str, url: str, namespace: str) -> dict[str, Any]:
    """As the chart's, but by URL: there is no pod network here."""
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": [
            {
                "name": "validate.nginx.ingress.kubernetes.io",
                "matchPolicy": "Equivalent",
                "rules": [
                    {
                        "apiGroups": ["networking.k8s.io"],
                        "apiVersions": ["v1"],
                        "operations": ["CREATE", "UPDATE"],
                        "resources": ["ingresses"],
                    }
                ],
                "failurePolicy": "Ignore",
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "clientConfig": {"url": url},
            }
        ],
    }


async def _secret(api: Api, namespace: str) -> dict[str, bytes]:
    found = msgspec.json.decode(await api.request("GET", f"/api/v1/namespaces/{namespace}/secrets/admission"))
    return {k: base64.b64decode(v) for k, v in found["data"].items()}


async def test_certgen_then_kubectl_apply(kube: KubeServer, namespace: str, api: Api, tmp_path: Path) -> None:
    place = ("--namespace", namespace, "--secret-name", "admission")
    address = backend_address()
    done = await asyncio.to_thread(certgen, kube, "create", *place, "--host", f"admission,admission.{namespace}.svc,{address}")
    assert done.returncode == 0, done.stderr
    made = await _secret(api, namespace)
    assert set(made) == {"ca", "cert", "key"}
    assert made["key"].startswith(b"-----BEGIN EC PRIVATE KEY")
    names = x509.load_pem_x509_certificate(made["cert"]).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {"admission", f"admission.{namespace}.svc"}
    assert (await asyncio.to_thread(certgen, kube, "create", *place, "--host", "other")).returncode == 0
    assert await _secret(api, namespace) == made, "what is there stays"

    up = SluiceUp(tmp_path, nodes=1, kubeconfig=kube.kubeconfig(), arguments=("--set-flag", f"watch-namespace={namespace}"))
    url = f"https://{address}:{up.webhook}/networking/v1/ingresses"
    await api.request("POST", CONFIGURATIONS, body=_configuration(namespace, url, namespace))
    patch = ("patch", *place, "--webhook-name", namespace, "--patch-mutating=false", "--patch-failure-policy=Fail")
    for _ in range(2):
        done = await asyncio.to_thread(certgen, kube, *patch)
        assert done.returncode == 0, done.stderr
    found = msgspec.json.decode(await api.request("GET", f"{CONFIGURATIONS}/{namespace}"))["webhooks"][0]
    assert (base64.b64decode(found["clientConfig"]["caBundle"]), found["failurePolicy"]) == (made["ca"], "Fail")

    await asyncio.to_thread(up.__enter__)
    try:
        # The webhook takes up the cluster's certificate while it runs.
        for name, key in (("tls.crt", "cert"), ("tls.key", "key")):
            (up.state / "webhook" / name).write_bytes(made[key])
        good = ingress("good", {"good.example.com": {"/": "web"}}, namespace=namespace)
        text = msgspec.json.encode(good).decode()
        async with asyncio.timeout(60):
            while "created" not in await kube.kubectl("apply", "-f", "-", text=text, check=False):
                await asyncio.sleep(0.2)
        await asyncio.to_thread(up.wait)

        bad = ingress("bad", {"bad.example.com": {"/": "web"}}, annotations={"limit-rps": "many"}, namespace=namespace)
        refused = await kube.kubectl("apply", "-f", "-", text=msgspec.json.encode(bad).decode(), check=False)
        assert "limit-rps" in refused
        assert "denied the request" in refused
        clash = ingress("clash", {"good.example.com": {"/": "web"}}, namespace=namespace)
        refused = await kube.kubectl("apply", "-f", "-", text=msgspec.json.encode(clash).decode(), check=False)
        assert f"{namespace}/good" in refused
        odd = ingress("odd", {"odd.example.com": {"/": "web"}}, annotations={"proxy-body-siz": "8m"}, namespace=namespace)
        warned = await kube.kubectl("apply", "-f", "-", text=msgspec.json.encode(odd).decode())
        assert "Warning" in warned
        assert "proxy-body-size" in warned

        made_at_once = [ingress(f"many{n}", {f"many{n}.example.com": {"/": "web"}}, namespace=namespace) for n in range(150)]
        path = f"/apis/networking.k8s.io/v1/namespaces/{namespace}/ingresses"
        await asyncio.gather(*(api.request("POST", path, body=i) for i in made_at_once))
    finally:
        await asyncio.to_thread(up.__exit__)
        await api.request("DELETE", f"{CONFIGURATIONS}/{namespace}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("patch", "--patch-validating=false", "--patch-mutating=false"), "nothing to patch"),
        (("patch", "--patch-failure-policy=Maybe"), "Ignore or Fail"),
        (("patch",), "certgen create"),
    ],
)
async def test_what_cannot_be_done_is_said(kube: KubeServer, namespace: str, arguments: tuple[str, ...], said: str) -> None:
    command, *rest = arguments
    done = await asyncio.to_thread(certgen, kube, command, "--namespace", namespace, "--secret-name", "nothing", *rest)
    assert done.returncode == 1
    assert said in done.stderr
