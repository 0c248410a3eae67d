"""An Ingress by itself: what the API server's validation and ingress-nginx's deep inspection refuse.

The manifests source has no API server in front of it, and an object that reaches the webhook is not trusted: both are checked here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from services.shared.contracts.objects import HTTPIngressPath, Ingress, IngressBackend
from services.shared.contracts.problem import Problem, Reason, printable

MAX_RULES: Final = 17_000
MAX_PATHS: Final = 17_000
"""What 1.5 MB of JSON have room for; the manifests source has no API server that counts."""
MAX_PATH_BYTES: Final = 2048

_LABEL: Final = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_NAME: Final = re.compile(rf"{_LABEL}(\.{_LABEL})*", re.ASCII)
_SERVICE: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_PORT_NAME: Final = re.compile(r"[a-z0-9-]{1,63}", re.ASCII)
_STRICT_PATH: Final = re.compile(r"/[A-Za-z0-9._/-]*", re.ASCII)

_SUSPICIOUS: Final = (
    (re.compile(r"\b(alias|root)\s+[^;]*;"), "an nginx directive"),
    (re.compile(r"/etc/(passwd|shadow|group|nginx|ingress-controller)"), "a path of the controller's file system"),
    (re.compile(r"/var/run/secrets"), "a path of the controller's file system"),
    (re.compile(r"_by_lua"), "an nginx Lua directive"),
)


def valid_host(host: str) -> bool:
    """A DNS name (RFC 1123), or `*.` and one."""
    name = host.removeprefix("*.")
    return 0 < len(host) <= 253 and _NAME.fullmatch(name) is not None


def check_ingress(ingress: Ingress, *, strict_paths: bool = True) -> list[Problem]:
    """Everything wrong with an Ingress that no other object is needed to see."""
    return list(_check(ingress, strict_paths))


def _bad(field: str, reason: Reason, message: str, example: str = "") -> Problem:
    return Problem(reason=reason, field=field, message=message, example=example)


def _check(ingress: Ingress, strict: bool) -> Iterator[Problem]:
    spec = ingress.spec
    if not spec.rules and spec.default_backend is None:
        yield _bad("spec", Reason.INVALID_OBJECT, "has neither rules nor a defaultBackend", "spec.defaultBackend.service.name: web")
    if spec.default_backend is not None:
        yield from _backend(spec.default_backend, "spec.defaultBackend")
    if len(spec.rules) > MAX_RULES or sum(len(r.http.paths) for r in spec.rules if r.http) > MAX_PATHS:
        yield _bad("spec.rules", Reason.TOO_LARGE, f"more than {MAX_RULES} rules or {MAX_PATHS} paths; split the Ingress")
        return
    for r, rule in enumerate(spec.rules):
        field = f"spec.rules[{r}]"
        if rule.host and not valid_host(rule.host):
            yield _bad(
                f"{field}.host",
                Reason.INVALID_HOST,
                f'"{printable(rule.host)}" is not a lower-case DNS name or *. and one',
                "shop.example.com",
            )
        for p, path in enumerate(rule.http.paths if rule.http else ()):
            yield from _path(path, f"{field}.http.paths[{p}]", strict)
    for t, tls in enumerate(spec.tls):
        for h, host in enumerate(tls.hosts):
            if not valid_host(host):
                yield _bad(
                    f"spec.tls[{t}].hosts[{h}]",
                    Reason.INVALID_HOST,
                    f'"{printable(host)}" is not a lower-case DNS name or *. and one',
                    "shop.example.com",
                )
        if tls.secret_name and (len(tls.secret_name) > 253 or not _NAME.fullmatch(tls.secret_name)):
            yield _bad(
                f"spec.tls[{t}].secretName", Reason.INVALID_OBJECT, f'"{printable(tls.secret_name)}" is not a Secret\'s name', "shop-tls"
            )


def _path(path: HTTPIngressPath, field: str, strict: bool) -> Iterator[Problem]:
    kind, text = path.path_type, path.path
    if kind not in (None, "Exact", "Prefix", "ImplementationSpecific"):
        yield _bad(
            f"{field}.pathType", Reason.INVALID_PATH, f'"{printable(str(kind))}" is not Exact, Prefix or ImplementationSpecific', "Prefix"
        )
    if not text.isprintable() or len(text.encode()) > MAX_PATH_BYTES:
        yield _bad(f"{field}.path", Reason.INVALID_PATH, f"is not printable text of at most {MAX_PATH_BYTES} bytes", "/shop")
        return
    if text and not text.startswith("/"):
        yield _bad(f"{field}.path", Reason.INVALID_PATH, f'"{printable(text)}" does not begin with /', "/shop")
    elif strict and kind in (None, "Exact", "Prefix") and text and not _STRICT_PATH.fullmatch(text):
        yield _bad(
            f"{field}.path",
            Reason.INVALID_PATH,
            f'"{printable(text)}" has characters that pathType {kind or "Prefix"} does not take: letters, digits, . _ - and / only; '
            "regular expressions need ImplementationSpecific",
            "/shop",
        )
    if kind in ("Exact", "Prefix") and any(part in text for part in ("//", "/./", "/../")):
        yield _bad(
            f"{field}.path", Reason.INVALID_PATH, f'"{printable(text)}" contains //, /./ or /../, which no request path keeps', "/shop"
        )
    for pattern, what in _SUSPICIOUS:
        if pattern.search(text):
            yield _bad(f"{field}.path", Reason.INVALID_PATH, f'"{printable(text)}" looks like {what}', "/shop")
    yield from _backend(path.backend, f"{field}.backend")


def _backend(backend: IngressBackend, field: str) -> Iterator[Problem]:
    service = backend.service
    if service is None:
        if backend.resource is None:
            yield _bad(field, Reason.INVALID_OBJECT, "names neither a service nor a resource", "service: {name: web, port: {number: 80}}")
        return
    if backend.resource is not None:
        yield _bad(field, Reason.INVALID_OBJECT, "names both a service and a resource; one is possible")
    if not _SERVICE.fullmatch(service.name):
        yield _bad(f"{field}.service.name", Reason.INVALID_OBJECT, f'"{printable(service.name)}" is not a Service\'s name', "web")
    port = service.port
    if port.name and port.number:
        yield _bad(f"{field}.service.port", Reason.INVALID_OBJECT, "has a name and a number; one is possible", "number: 80")
    elif port.name and not _PORT_NAME.fullmatch(port.name):
        yield _bad(f"{field}.service.port.name", Reason.INVALID_OBJECT, f'"{printable(port.name)}" is not a port\'s name', "http")
    elif not port.name and not 1 <= port.number <= 65535:
        yield _bad(f"{field}.service.port.number", Reason.INVALID_OBJECT, f"{port.number} is not a port number from 1 to 65535", "80")
