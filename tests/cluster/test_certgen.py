"""certgen on a real API server, with the rights that the chart's Jobs have and no others."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from services.shared.kube.client import Api
from tests.support.kube import KubeServer
from tests.support.up import ROOT

pytestmark = pytest.mark.cluster

RBAC = "/apis/rbac.authorization.k8s.io/v1"
ADMISSION = "/apis/admissionregistration.k8s.io/v1"
SECRETS = {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "create"]}
WEBHOOKS = {
    "apiGroups": ["admissionregistration.k8s.io"],
    "resources": ["validatingwebhookconfigurations"],
    "verbs": ["get", "update"],
}


def _configuration(name: str) -> dict[str, Any]:
    service = {"name": "admission", "namespace": "edge", "path": "/networking/v1/ingresses"}
    rule = {"apiGroups": ["nowhere.example.com"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["nothings"]}
    webhooks = [
        {
            "name": f"{n}.example.com",
            "rules": [rule],
            "failurePolicy": "Ignore",
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
            "clientConfig": {"service": service},
        }
        for n in ("a", "b")
    ]
    return {"metadata": {"name": name, "labels": {"app": "edge"}}, "webhooks": webhooks}


@pytest.fixture
async def job(kube: KubeServer, namespace: str, api: Api) -> AsyncIterator[str]:
    """The name of a user with these rights; that of its namespace and of its webhook configurations, too."""
    subject = [{"kind": "User", "name": f"certgen-{namespace}", "apiGroup": "rbac.authorization.k8s.io"}]
    local = f"{RBAC}/namespaces/{namespace}"
    for prefix, kind, rule in ((local, "Role", SECRETS), (RBAC, "ClusterRole", WEBHOOKS | {"resourceNames": [namespace]})):
        plural = f"{kind.lower()}s"
        await api.request("POST", f"{prefix}/{plural}", body={"metadata": {"name": namespace}, "rules": [rule]})
        role = {"kind": kind, "name": namespace, "apiGroup": "rbac.authorization.k8s.io"}
        body = {"metadata": {"name": namespace}, "subjects": subject, "roleRef": role}
        await api.request("POST", f"{prefix}/{plural.replace('roles', 'rolebindings')}", body=body)
    for plural in ("validatingwebhookconfigurations", "mutatingwebhookconfigurations"):
        await api.request("POST", f"{ADMISSION}/{plural}", body=_configuration(namespace))
    yield namespace
    for path in (
        *(f"{RBAC}/clusterrolebindings", f"{RBAC}/clusterroles"),
        *(f"{ADMISSION}/validatingwebhookconfigurations", f"{ADMISSION}/mutatingwebhookconfigurations"),
    ):
        with contextlib.suppress(Exception):
            await api.request("DELETE", f"{path}/{namespace}")


async def certgen(kube: KubeServer, user: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    kubeconfig = kube.kubeconfig(f"certgen-{user}", ())
    command = [sys.executable, "-m", "services.cli", "certgen", *arguments, "--kubeconfig", str(kubeconfig)]
    return await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, text=True, check=False)


async def _get(api: Api, path: str) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(await api.request("GET", path))
    return found


async def test_the_charts_two_jobs_twice(kube: KubeServer, job: str, api: Api) -> None:
    common = ("--namespace", job, "--secret-name", "admission")
    for _ in range(2):
        done = await certgen(kube, job, "create", f"--host=admission,admission.{job}.svc", *common)
        assert done.returncode == 0, done.stderr
        done = await certgen(kube, job, "patch", f"--webhook-name={job}", *common, "--patch-mutating=false", "--patch-failure-policy=Fail")
        assert done.returncode == 0, done.stderr

    secret = await _get(api, f"/api/v1/namespaces/{job}/secrets/admission")
    assert secret["type"] == "Opaque"
    assert set(secret["data"]) == {"ca", "cert", "key"}
    assert base64.b64decode(secret["data"]["key"]).startswith(b"-----BEGIN EC PRIVATE KEY")
    validating = await _get(api, f"{ADMISSION}/validatingwebhookconfigurations/{job}")
    assert {(w["clientConfig"]["caBundle"], w["failurePolicy"]) for w in validating["webhooks"]} == {(secret["data"]["ca"], "Fail")}
    assert {w["clientConfig"]["service"]["name"] for w in validating["webhooks"]} == {"admission"}
    assert validating["metadata"]["labels"] == {"app": "edge"}
    mutating = await _get(api, f"{ADMISSION}/mutatingwebhookconfigurations/{job}")
    assert {w["failurePolicy"] for w in mutating["webhooks"]} == {"Ignore"}
    assert not any("caBundle" in w["clientConfig"] for w in mutating["webhooks"])


async def test_what_the_job_may_not_do_is_said_and_nothing_is_half_done(kube: KubeServer, job: str, api: Api) -> None:
    common = ("--namespace", job, "--secret-name", "admission")
    assert (await certgen(kube, job, "create", "--host=admission", *common)).returncode == 0
    done = await certgen(kube, job, "patch", f"--webhook-name={job}", *common)  # mutating, too
    assert done.returncode == 1
    assert "mutatingwebhookconfigurations" in done.stderr
    done = await certgen(kube, job, "create", "--host=admission", "--namespace=default", "--secret-name=admission")
    assert done.returncode == 1
    assert "Forbidden" in done.stderr


async def test_two_jobs_at_once_make_one_secret(kube: KubeServer, job: str, api: Api) -> None:
    arguments = ("create", "--host=admission", "--namespace", job, "--secret-name", "admission")
    done = await asyncio.gather(*(certgen(kube, job, *arguments) for _ in range(3)))
    assert [d.returncode for d in done] == [0, 0, 0], [d.stderr for d in done]
