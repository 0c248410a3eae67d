"""Controller flags under ingress-nginx's own names, as far as they exist here. Every service takes them as `--set-flag NAME=VALUE`."""

from __future__ import annotations

from msgspec import Struct


class Flags(Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    """Defaults are ingress-nginx's, except where it says otherwise."""

    configmap: str = "ingress-nginx/ingress-nginx-controller"
    """`namespace/name` of the controller ConfigMap. ingress-nginx's default is none; this is what its chart passes."""
    ingress_class: str = "nginx"
    controller_class: str = "k8s.io/ingress-nginx"
    watch_ingress_without_class: bool = False
    ingress_class_by_name: bool = False
    watch_namespace: str = ""
    default_backend_service: str = ""
    default_ssl_certificate: str = ""
    enable_metrics: bool = False
    http_port: int = 80
    https_port: int = 443
    healthz_port: int = 10254
