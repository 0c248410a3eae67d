"""Table rows: what nginx's Lua reads from shared memory. The compiler writes them, the applier carries them, `lua/` decodes them.

A row is a key and a JSON object, encoded by `encode_row` (fields at their default are left out: Lua reads absent as the default).
Rows hold data only: no value here ever becomes nginx text. Times are seconds, sizes bytes.

| key                 | row              | what                                                                      |
|---------------------|------------------|---------------------------------------------------------------------------|
| `s`                 | `SettingsRow`    | global settings that are data                                             |
| `h/<host>`          | `HostRow`        | a host: exact name, `*.parent` (one label), or `_` (everything else)      |
| `a/<name>`          | `AliasRow`       | an alias: exact name, `*.suffix` (any depth) or `prefix.*`                |
| `r`                 | `RegexAliasRow`  | regular-expression aliases, in order                                      |
| `b/<ns>/<svc>:<port>` | `BackendRow`   | an upstream: endpoints, balancing, affinity, canary                       |
| `t/<name>`          | `TLSNameRow`     | SNI name (exact, or `*.parent`, one label) -> certificate; `t/_`: the default one |
| `c/<sha256>`        | `CertificateRow` | certificate chain and key                                                 |
| `f/<sha256>`        | `FileRow`        | a file that nginx itself opens (htpasswd); the applier writes it as `files/<sha256>` before it pushes rows |
| `l/tcp/<port>` `l/udp/<port>` | `StreamRow` | a TCP or UDP service: where its connections go; the applier writes it as `streams/tcp_<port>.json` before it pushes rows |
| `n/<name>`          | `ResolvedRow`    | LOCAL to a node, never in a version: the applier's DNS answers for `external` hosts |
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec
from msgspec import Struct

SETTINGS_KEY: Final = "s"
REGEX_ALIASES_KEY: Final = "r"
CATCH_ALL: Final = "_"


class Row(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The base of all rows."""


class Redirect(Row, frozen=True, kw_only=True):
    """permanent-redirect / temporal-redirect."""

    url: str
    code: int


class Rewrite(Row, frozen=True, kw_only=True):
    """rewrite-target: PCRE `pattern` (case-insensitive, not anchored) on the decoded URI; the whole URI becomes `target`."""

    pattern: str
    """Already bounded with `(*LIMIT_MATCH=...)`."""
    target: str
    """`$1`..`$9` stand for groups."""


class BasicAuth(Row, frozen=True, kw_only=True):
    """The policy has auth_basic with `$sluice_basic_realm` and `$sluice_basic_file`."""

    file: str
    """sha256 of the `f/` row."""
    realm: str = ""


class ExternalAuth(Row, frozen=True, kw_only=True):
    """The policy has `auth_request /.sluice/auth`."""

    url: str
    """Template: `$name` and `${name}` stand for request variables of the list in lua/template.lua."""
    backend: str = ""
    """A backend key where the URL's host names a Service in the cluster; else the host is an address or resolved by the node (`n/`)."""
    method: str = ""
    """Empty: GET, and the subrequest carries neither X-Original-URI nor X-Scheme."""
    response_headers: tuple[str, ...] = ()
    signin: str = ""
    """Template; empty: a 401 stays a 401."""
    signin_redirect_param: str = "rd"
    request_redirect: str = ""
    always_set_cookie: bool = False


class Cors(Row, frozen=True, kw_only=True):
    """The policy has the cors header filter."""

    any_origin: bool = False
    """The header value is literally `*`."""
    origins: tuple[str, ...] = ()
    """PCRE patterns, one an origin, matched case-insensitively on the whole Origin header."""
    methods: str = ""
    headers: str = ""
    expose: str = ""
    credentials: bool = True
    max_age: int = 1728000


class Route(Row, frozen=True, kw_only=True):
    """One location of a host."""

    policy: str
    """Hash: the router jumps to `@p_<policy>`."""
    backend: str = ""
    """Key without the `b/`: `default/web:80`. Empty: the built-in 404."""
    namespace: str = ""
    ingress: str = ""
    service: str = ""
    port: str = ""
    path: str = ""
    """As written in the Ingress: `$location_path`."""
    deny: int = 0
    """Not 0: this route answers with that status and nothing else (503: an annotation's reference cannot be resolved)."""
    redirect: Redirect | None = None
    ssl_redirect: Literal["", "tls", "force"] = ""
    """`tls`: when the request's host has a certificate entry; `force`: always. no-tls-redirect-locations are already taken out."""
    preserve_trailing_slash: bool = False
    port_in_redirect: bool = False
    rewrite: Rewrite | None = None
    forwarded_prefix: str = ""
    """X-Forwarded-Prefix: template with `$1`..`$9`; only with `rewrite`."""
    body_size: int = 1048576
    """client_max_body_size; 0: unlimited. The router compares Content-Length (413)."""
    vhost: str = ""
    """upstream-vhost: template; empty: the request's host."""
    allow: tuple[str, ...] = ()
    """CIDRs; empty: everyone. 403 otherwise."""
    block: tuple[str, ...] = ()
    """CIDRs that get 403, before `allow`."""
    basic: BasicAuth | None = None
    auth: ExternalAuth | None = None
    cors: Cors | None = None
    limit_key: str = ""
    """Prefix of the rate-limit key (one per Ingress); the rate and the limit are in the policy."""
    errors: tuple[int, ...] = ()
    """custom-http-errors of the policy: statuses of the router's own (403, 413, 503) are intercepted as nginx's are."""
    error_backend: str = ""
    """Where they go; empty: the global default backend."""
    standin: str = ""
    """default-backend: answers when `backend` has no endpoint."""
    access_log: bool = True


class HostRow(Row, frozen=True, kw_only=True):
    """All locations of one host, with nginx's precedence already worked out: exact, then longest prefix; or, on a regex host, the
    first of `regex` that matches. Indexes into `routes` count from 0."""

    routes: tuple[Route, ...]
    exact: dict[str, int] = {}
    prefix: dict[str, int] = {}
    """Every key ends with `/`: a lookup tries the URI cut after each of its slashes, longest first."""
    slash: tuple[str, ...] = ()
    """URIs that get 301 to themselves plus `/` (nginx's own redirect for a proxied prefix location `/x/`), checked after `exact`."""
    regex: tuple[tuple[str, int], ...] = ()
    """(PCRE, index), matched case-insensitively on the decoded URI, in order. Not empty: `exact`, `prefix` and `slash` are empty."""
    app_root: str = ""
    """URI `/` gets 302 to scheme://host + this, before everything else."""
    tls: bool = False
    """The host has a certificate entry (its own or the default certificate): `ssl_redirect: tls` acts."""


class AliasRow(Row, frozen=True, kw_only=True):
    host: str


class RegexAliasRow(Row, frozen=True, kw_only=True):
    aliases: tuple[tuple[str, str], ...]
    """(PCRE, host)."""


class Affinity(Row, frozen=True, kw_only=True):
    """Cookie affinity (behaviours: session affinity)."""

    cookie: str = "INGRESSCOOKIE"
    mode: Literal["balanced", "persistent"] = "balanced"
    expires: int | None = None
    max_age: int | None = None
    path: str = ""
    """Empty: the matched Ingress path."""
    domain: str = ""
    samesite: str = ""
    conditional_samesite_none: bool = False
    secure: bool = False
    """False: Secure iff the request is https."""
    change_on_failure: bool = False
    locations: dict[str, tuple[str, ...]] = {}
    """host -> paths: where a cookie may be set."""


class Canary(Row, frozen=True, kw_only=True):
    """The alternative of a primary backend. Order: header, cookie, weight."""

    backend: str
    header: str = ""
    header_value: str = ""
    header_pattern: str = ""
    """PCRE, unanchored, case-sensitive, bounded."""
    cookie: str = ""
    weight: int = 0
    total: int = 100


class BackendRow(Row, frozen=True, kw_only=True):
    """One upstream."""

    name: str
    """As logged: `default-web-80`."""
    endpoints: tuple[tuple[str, int], ...] = ()
    """(address without brackets, port), sorted. Empty, and no `external`: 503."""
    external: str = ""
    """ExternalName: the host to resolve; `external_port` with it."""
    external_port: int = 0
    balance: Literal["round_robin", "ewma", "chash", "chashsubset", "sticky_balanced", "sticky_persistent"] = "round_robin"
    hash_by: str = ""
    """Template of request variables, for chash."""
    subset_size: int = 3
    affinity: Affinity | None = None
    canary: Canary | None = None
    service: str = ""
    """For the canary's labels and the log."""
    any_address: bool = True
    """False: the balancer refuses loopback, link-local and metadata addresses (a cluster source)."""


class TLSNameRow(Row, frozen=True, kw_only=True):
    certificate: str
    """sha256 of the `c/` row."""


class CertificateRow(Row, frozen=True, kw_only=True):
    chain: str
    """PEM, leaf first."""
    key: str
    """PEM, not encrypted."""

    def __repr__(self) -> str:
        return "CertificateRow(<redacted>)"


class FileRow(Row, frozen=True, kw_only=True):
    content: str

    def __repr__(self) -> str:
        return "FileRow(<redacted>)"


class StreamRow(Row, frozen=True, kw_only=True):
    """A port of tcp-services-configmap or udp-services-configmap; the listener itself is text (the `stream` policy)."""

    name: str
    """As logged: `tcp-default-postgres-5432`."""
    endpoints: tuple[tuple[str, int], ...] = ()
    """(address without brackets, port), sorted. Empty, and no `external`: connections are closed."""
    external: str = ""
    """ExternalName: the host to resolve; `external_port` with it."""
    external_port: int = 0
    any_address: bool = True
    """False: the applier leaves out loopback, link-local and metadata addresses (a cluster source)."""


class ResolvedRow(Row, frozen=True, kw_only=True):
    addresses: tuple[str, ...]


class SettingsRow(Row, frozen=True, kw_only=True):
    """Global settings that Lua acts on; the rest of the ConfigMap is in the `http` policy."""

    use_forwarded_headers: bool = False
    http_redirect_code: int = 308
    relative_redirects: bool = False
    default_backend: str = ""
    """Backend key of --default-backend-service; empty: the built-in 404."""
    log_unmatched: bool = False
    """enable-access-log-for-default-backend."""
    errors: tuple[int, ...] = ()
    """custom-http-errors, for what is refused before there is a route."""
    skip_log_urls: tuple[str, ...] = ()
    block_user_agents: tuple[str, ...] = ()
    """PCRE (was `~...`) or, with a leading `=`, literal text."""
    block_referers: tuple[str, ...] = ()
    block_cidrs: tuple[str, ...] = ()
    metrics_per_host: bool = True


encode_row = msgspec.json.Encoder(order="deterministic").encode


# --- the push protocol (applier -> nginx, POST /tables on the node's control socket)


class PushHeader(Struct, frozen=True, kw_only=True):
    """The first line of a push's body, JSON. Then one line a row: `+<key>\\t<json>\\n` upserts, `-<key>\\n` deletes.

    Answers: 200 `{"epoch","number","rows"}` the next request sees the rows; 409 `{"epoch","number"}` the base is not what is loaded
    (send everything); 507 `{"error","free_bytes"}` no memory, nothing changed; 400 `{"error"}` a malformed body, nothing changed.
    """

    base: str
    """`epoch.number` that the rows apply to; empty: replace everything (`+` lines only)."""
    version: str
    """`epoch.number` afterwards. Equal to `base` for local rows (`n/...`)."""
    digest: str = ""
    keep_previous: bool = False
    """Rows replaced by this push stay reachable for workers that lack a new row's policy (the old generation, still draining)."""
    crc32: int = 0
    """Of all bytes after the first line."""
