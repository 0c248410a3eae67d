"""The compiler's middle: what a location's policy is made of, as values. `policies` turns it into text, `tables` the rest into rows."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class LocationPolicy(Struct, frozen=True, kw_only=True):
    """Everything of one location that nginx can only take as text. Equal values are one policy.

    Nothing in here names a host, a path, an upstream or a certificate. Defaults are ingress-nginx's; annotations and the ConfigMap
    replace them. A new field is one field here and one line in the template.
    """

    protocol: Literal["HTTP", "HTTPS", "GRPC", "GRPCS"] = "HTTP"
    connect_timeout: int = 5
    """Seconds."""
    send_timeout: int = 60
    read_timeout: int = 60
    body_size: str = "1m"
    """nginx size; `0`: unlimited."""
    buffering: bool = False
    buffer_size: str = "4k"
    buffers_number: int = 4
    busy_buffers_size: str = ""
    """Empty: computed so that nginx accepts it."""
    request_buffering: bool = True
    http_version: Literal["1.0", "1.1"] = "1.1"
    max_temp_file_size: str = "1024m"
    next_upstream: tuple[str, ...] = ("error", "timeout")
    next_upstream_tries: int = 3
    next_upstream_timeout: int = 0
    basic_auth: bool = False
    external_auth: bool = False
    signin: bool = False
    """A 401 of the auth check becomes a redirect."""
    cors: bool = False
    forwarded_prefix: bool = False
    """Send X-Forwarded-Prefix."""
    limit_rps: int = 0
    """0: off. The zone is shared by all policies with this rate; the key comes from the row."""
    limit_rpm: int = 0
    limit_burst_multiplier: int = 5
    limit_connections: int = 0
    error_codes: tuple[int, ...] = ()
    """custom-http-errors: intercepted, sorted."""
    intercept_upstream_errors: bool = True
    snippet: str = ""
    """configuration-snippet, only where the administrator allows snippets. The one raw text there is."""


Protocol = Literal["tcp", "udp"]


class Stream(Struct, frozen=True, order=True):
    """One TCP or UDP service: a listener and where it leads."""

    protocol: Protocol
    port: int
    """Of the listener."""
    namespace: str
    service: str
    service_port: str
    """Number or name of a Service's port, as written."""
    decode: bool = False
    """PROXY protocol is expected from clients."""
    encode: bool = False
    """PROXY protocol, version 1, is sent to endpoints."""

    @property
    def key(self) -> str:
        """Of its row."""
        return f"l/{self.protocol}/{self.port}"

    @property
    def place(self) -> tuple[str, str]:
        """Of its Service."""
        return self.namespace, self.service

    @property
    def name(self) -> str:
        """As logged."""
        return f"{self.protocol}-{self.namespace}-{self.service}-{self.service_port}"
