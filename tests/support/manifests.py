"""Manifests as text, for tests that write files."""

from __future__ import annotations


def ingress(name: str, *, host: str = "", service: str = "web", namespace: str = "", secret: str = "", annotations: str = "") -> str:
    """One Ingress document; `annotations` as a YAML flow mapping's content."""
    return (
        "apiVersion: networking.k8s.io/v1\nkind: Ingress\n"
        f"metadata: {{name: {name}{f', namespace: {namespace}' if namespace else ''}, annotations: {{{annotations}}}}}\n"
        "spec:\n"
        "  ingressClassName: nginx\n"
        + (f"  tls: [{{hosts: [{host or name}.example], secretName: {secret}}}]\n" if secret else "")
        + f"  rules:\n  - host: {host or f'{name}.example'}\n    http:\n      paths:\n"
        f"      - {{path: /, pathType: Prefix, backend: {{service: {{name: {service}, port: {{number: 80}}}}}}}}\n"
    )


def service(name: str, *, namespace: str = "") -> str:
    """One Service document."""
    where = f", namespace: {namespace}" if namespace else ""
    return f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}{where}}}\nspec: {{ports: [{{port: 80}}]}}\n"


def secret(name: str, *, namespace: str = "", text: str = "x") -> str:
    """One Secret document."""
    where = f", namespace: {namespace}" if namespace else ""
    return f"apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}{where}}}\nstringData: {{auth: {text}}}\n"


def several(*documents: str) -> str:
    """One file with several documents."""
    return "---\n".join(documents)
