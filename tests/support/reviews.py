"""AdmissionReviews as the API server sends them."""

from __future__ import annotations

import copy
import json
import ssl
import urllib.request
from typing import Any

INGRESS: dict[str, Any] = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "Ingress",
    "metadata": {"name": "shop", "namespace": "default", "uid": "0f9d6f3e-1c3a-4f57-9a55-6d3a5f6f3a10"},
    "spec": {
        "ingressClassName": "nginx",
        "rules": [
            {
                "host": "shop.example",
                "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "web", "port": {"number": 80}}}}]},
            }
        ],
    },
}


def ingress(**metadata: Any) -> dict[str, Any]:
    """A good Ingress with more metadata."""
    obj = copy.deepcopy(INGRESS)
    obj["metadata"] |= metadata
    return obj


def review(obj: Any = None, *, operation: str = "CREATE", **request: Any) -> dict[str, Any]:
    """A review of `obj` (a good Ingress where none is given); `request` replaces fields of the request."""
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "networking.k8s.io", "version": "v1", "kind": "Ingress"},
            "resource": {"group": "networking.k8s.io", "version": "v1", "resource": "ingresses"},
            "name": "shop",
            "namespace": "default",
            "operation": operation,
            "object": ingress() if obj is None else obj,
        }
        | request,
    }


def answer(port: int, asked: dict[str, Any]) -> dict[str, Any]:
    """What a webhook on this port responds."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    url = f"https://127.0.0.1:{port}/networking/v1/ingresses"
    request = urllib.request.Request(url, json.dumps(asked).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=15, context=context) as response:
        found: dict[str, Any] = json.loads(response.read())["response"]
    return found
