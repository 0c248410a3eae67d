"""Controller flags under ingress-nginx's own names, as far as they exist here. Every service takes them as `--set-flag NAME=VALUE`."""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec
from msgspec import Struct

from services.shared.labels import parse_selector


class Flags(Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    """Defaults are ingress-nginx's, except where it says otherwise."""

    configmap: str = "ingress-nginx/ingress-nginx-controller"
    """`namespace/name` of the controller ConfigMap. ingress-nginx's default is none; this is what its chart passes."""
    ingress_class: str = "nginx"
    controller_class: str = "k8s.io/ingress-nginx"
    watch_ingress_without_class: bool = False
    ingress_class_by_name: bool = False
    watch_namespace: str = ""
    watch_namespace_selector: str = ""
    """Labels of Namespaces: only objects in those that match count. Not together with `watch_namespace`."""
    tcp_services_configmap: str = ""
    """`namespace/name` of the ConfigMap of TCP services: port -> `namespace/service:port[:PROXY[:PROXY]]`."""
    udp_services_configmap: str = ""
    default_backend_service: str = ""
    default_ssl_certificate: str = ""
    enable_metrics: bool = False
    http_port: int = 80
    https_port: int = 443
    healthz_port: int = 10254
    election_id: str = "ingress-controller-leader"
    election_ttl: float = 15.0
    """Seconds. ingress-nginx's default is 30; it is half of that here, so that a takeover takes no longer."""
    disable_leader_election: bool = False
    update_status: bool = True
    update_status_on_shutdown: bool = True
    publish_service: str = ""
    """`namespace/name` of the Service whose addresses go to Ingress status."""
    publish_status_address: str = ""
    """Addresses and host names for Ingress status, separated by commas. Not together with `publish_service`."""
    report_node_internal_ip_address: bool = False
    """Of the Nodes of edge nodes, which count when neither of these two is given, the internal addresses."""
    shutdown_grace_period: int = 0
    """Seconds in which an edge node that ends still takes connections, no longer ready: load balancers notice meanwhile."""
    post_shutdown_grace_period: int = 0
    """Seconds between nginx' end and the applier's. ingress-nginx: 10."""
    status_update_interval: int = 60
    """Seconds between two comparisons of all statuses with what they should be."""


Parsed = str | bool | int | float


class FlagError(ValueError):
    """What is wrong with one `--set-flag`, as a sentence for whoever typed it."""


NOT_THERE_YET: Final = frozenset(
    """
    annotations-prefix apiserver-host bucket-factor certificate-authority deep-inspect default-server-port disable-catch-all
    disable-full-test disable-svc-external-name disable-sync-events dynamic-configuration-retries
    enable-annotation-validation enable-ssl-chain-completion enable-ssl-passthrough enable-topology-aware-routing
    exclude-socket-metrics health-check-path health-check-timeout healthz-host internal-logger-address kubeconfig length-buckets
    max-buckets maxmind-edition-ids maxmind-license-key maxmind-mirror maxmind-retries-count maxmind-retries-timeout metrics-per-host
    metrics-per-undefined-host monitor-max-batch-size profiler-address profiler-port profiling
    report-status-classes size-buckets
    ssl-passthrough-proxy-port status-port stream-port sync-period sync-rate-limit
    time-buckets validating-webhook validating-webhook-certificate
    validating-webhook-key version v vmodule logtostderr alsologtostderr stderrthreshold log_dir log_file
    log_file_max_size log_backtrace_at add_dir_header skip_headers skip_log_headers one_output legacy_stderr_threshold_behavior
    """.split()
)
"""ingress-nginx's other flags: refused with a sentence of their own."""

_SUBDOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*", re.ASCII)
_NAME = r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"


def _text(value: str) -> str:
    if not re.fullmatch(r"[!-~]{1,253}", value, re.ASCII):
        raise FlagError("is a name of printable characters without spaces")
    return value


def _reference(value: str) -> str:
    if value and not re.fullmatch(rf"{_NAME}/{_NAME}", value, re.ASCII):
        raise FlagError("is namespace/name, for example ingress-nginx/ingress-nginx-controller")
    return value


def _namespace(value: str) -> str:
    if value and not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", value, re.ASCII):
        raise FlagError("is one namespace, or empty for all")
    return value


def _selector(value: str) -> str:
    try:
        parse_selector(value)
    except ValueError as error:
        raise FlagError(f"is a label selector, for example team=shop,env notin (test,dev): {error}") from None
    return value


def _boolean(value: str) -> bool:
    """The spellings that Go's flags take."""
    if value in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if value in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise FlagError("is true or false")


def _port(value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", value, re.ASCII) or not 1 <= int(value) <= 65535:
        raise FlagError("is a port from 1 to 65535")
    return int(value)


def _object_name(value: str) -> str:
    if len(value) > 253 or not _SUBDOMAIN.fullmatch(value):
        raise FlagError("is an object's name: lower-case letters, digits, `-` and `.`, for example ingress-controller-leader")
    return value


def _addresses(value: str) -> str:
    parts = [p.strip() for p in value.split(",") if p.strip()]
    bad = [p for p in parts if not _is_address(p)]
    if bad or (value and not parts):
        shown = repr((bad or [value])[0][:80])
        raise FlagError(f"is a list of IP addresses and lower-case host names, for example 203.0.113.7,lb.example.com; {shown} is neither")
    return value


def _is_address(text: str) -> bool:
    """As the API server takes it in a status."""
    try:
        return ipaddress.ip_address(text) is not None and "%" not in text
    except ValueError:
        # Digits alone at the end: a mistyped address.
        return len(text) <= 253 and _SUBDOMAIN.fullmatch(text) is not None and not text.rpartition(".")[2].isdigit()


def _interval(value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", value, re.ASCII):
        raise FlagError("is a number of seconds, for example 60")
    return max(5, int(value))


def _grace(value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,4}", value, re.ASCII):
        raise FlagError("is a number of seconds, for example 10")
    return int(value)


_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def _duration(value: str) -> float:
    """As Go writes them: 15s, 1m30s, 500ms."""
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)", value, re.ASCII)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != value or not 3 <= seconds <= 3600:
        raise FlagError("is a duration from 3s to 1h, for example 15s")
    return seconds


_PARSERS: Final[dict[str, Callable[[str], Parsed]]] = {
    "configmap": _reference,
    "ingress-class": _text,
    "controller-class": _text,
    "watch-ingress-without-class": _boolean,
    "ingress-class-by-name": _boolean,
    "watch-namespace": _namespace,
    "watch-namespace-selector": _selector,
    "tcp-services-configmap": _reference,
    "udp-services-configmap": _reference,
    "default-backend-service": _reference,
    "default-ssl-certificate": _reference,
    "enable-metrics": _boolean,
    "http-port": _port,
    "https-port": _port,
    "healthz-port": _port,
    "election-id": _object_name,
    "election-ttl": _duration,
    "disable-leader-election": _boolean,
    "update-status": _boolean,
    "update-status-on-shutdown": _boolean,
    "publish-service": _reference,
    "publish-status-address": _addresses,
    "report-node-internal-ip-address": _boolean,
    "shutdown-grace-period": _grace,
    "post-shutdown-grace-period": _grace,
    "status-update-interval": _interval,
}
"""One entry for each field of `Flags`."""


EXCLUSIVE: Final = (("watch-namespace", "watch-namespace-selector"), ("publish-service", "publish-status-address"))
"""Flags of which only one may be there, empty ones apart."""


def parse_flags(settings: Iterable[str]) -> Flags:
    """`NAME=VALUE` each, leading dashes allowed, a bare boolean NAME means true; the last of a name counts. Raises FlagError."""
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        name = name.lstrip("-")
        parser = _parser(name)
        if not equals:
            if parser is not _boolean:
                raise FlagError(f"--set-flag {name} needs a value: --set-flag {name}=VALUE")
            text = "true"
        try:
            values[name] = parser(text)
        except FlagError as error:
            raise FlagError(f"--set-flag {name}={text[:80]!r} cannot be: {name} {error}") from None
    for one, other in EXCLUSIVE:
        if values.get(one) and values.get(other):
            raise FlagError(f"--set-flag {one} and --set-flag {other} cannot be given together")
    return msgspec.convert(values, Flags)


def given(settings: Iterable[str]) -> frozenset[str]:
    """The names among `settings`, to tell a flag that was set from one at its default."""
    return frozenset(s.partition("=")[0].lstrip("-") for s in settings)


def overlaid(flags: Flags, settings: Iterable[str]) -> Flags:
    """`flags` with these on top: of two that exclude each other the one that is given here. Raises FlagError."""
    settings = tuple(settings)
    values = {s.partition("=")[0].lstrip("-") for s in settings if s.partition("=")[2]}
    replaced = {b for pair in EXCLUSIVE for a, b in (pair, pair[::-1]) if a in values and b not in values}
    return parse_flags([*(f for f in format_flags(flags) if f.partition("=")[0] not in replaced), *settings])


def format_flags(flags: Flags) -> list[str]:
    """`NAME=VALUE` for everything that is not at its default: `parse_flags(format_flags(flags)) == flags`."""
    default = msgspec.to_builtins(Flags())
    return [f"{name}={_written(value)}" for name, value in msgspec.to_builtins(flags).items() if value != default[name]]


def _written(value: Parsed) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}s" if isinstance(value, float) else str(value)


def _parser(name: str) -> Callable[[str], Parsed]:
    found = _PARSERS.get(name)
    if found is not None:
        return found
    if name in NOT_THERE_YET:
        raise FlagError(f"--set-flag {name}: ingress-nginx has this flag; it is not there yet in Sluice")
    near = difflib.get_close_matches(name, [*_PARSERS, *NOT_THERE_YET], n=1, cutoff=0)
    raise FlagError(f"--set-flag {name[:80]!r} is no flag that ingress-nginx knows; the nearest is {near[0]}")
