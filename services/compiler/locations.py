"""One location of a host: what of it is policy (text) and what is data (a route)."""

from __future__ import annotations

import hashlib
import re
from typing import Literal, Protocol
from urllib.parse import urlsplit

from msgspec import Struct
from msgspec.structs import asdict, replace

from services.compiler.annotations.registry import PREFIX
from services.compiler.annotations.settings import IngressSettings
from services.compiler.ingresses import BackendRef, ReadIngress
from services.compiler.ir import LocationPolicy
from services.compiler.locationpolicy import AuthService, auth_service, location_policy, pick
from services.compiler.policies import policy_of
from services.compiler.settings import GlobalSettings
from services.shared.contracts.objects import Secret
from services.shared.contracts.problem import Problem, Reason
from services.shared.contracts.tables import BasicAuth, Cors, ExternalAuth, Redirect, Rewrite, Route
from services.shared.nginxtext.arguments import size_bytes
from services.shared.nginxtext.regex import bounded

FIRST_PORT = "*"
"""The port of a reference to "the first port of the Service"."""

_IN_CLUSTER = re.compile(r"([a-z0-9-]{1,63})\.([a-z0-9-]{1,63})\.svc(\.[a-z0-9.-]+)?", re.ASCII)


class Surroundings(Protocol):
    """What a location needs to know beyond its Ingress."""

    settings: GlobalSettings
    default_backend: BackendRef | None

    def secret(self, namespace: str, name: str) -> Secret | None: ...


class Location(Struct, frozen=True, kw_only=True):
    """One location, lowered."""

    path: str
    path_type: str
    ingress: ReadIngress | None
    """None: the catch-all's own default location."""
    field: str
    automatic: bool
    """The host's default location, which a rule for `/` replaces."""
    route: Route
    policy: LocationPolicy
    regex: bool = False
    files: tuple[tuple[str, str], ...] = ()
    """(sha256, content) of files that the route names."""
    backends: tuple[BackendRef, ...] = ()
    """Everything the route may send to."""
    problems: tuple[Problem, ...] = ()


def cors_of(s: IngressSettings) -> Cors | None:
    """The cors part of a route; None: off, or no origin that can match."""
    if not s.enable_cors:
        return None
    any_origin = "*" in s.cors_allow_origin
    patterns = [_origin_pattern(o) for o in s.cors_allow_origin if o == "null" or "://" in o]
    if not any_origin and not patterns:
        return None
    return Cors(
        any_origin=any_origin,
        origins=() if any_origin else tuple(patterns),
        methods=s.cors_allow_methods,
        headers=s.cors_allow_headers,
        expose=s.cors_expose_headers,
        credentials=s.cors_allow_credentials,
        max_age=s.cors_max_age,
    )


def _origin_pattern(origin: str) -> str:
    """`*.` is one label. Anchored at both ends: a suffix match would let `https://evil-https://app.example.com` in."""
    return "^" + re.escape(origin).replace(r"://\*\.", r"://[A-Za-z0-9-]+\.") + "$"


def _external_auth(service: AuthService) -> tuple[ExternalAuth, tuple[BackendRef, ...]]:
    target = urlsplit(service.url)
    found = _IN_CLUSTER.fullmatch(target.hostname or "") if "$" not in target.netloc else None
    refs: tuple[BackendRef, ...] = ()
    if found:
        refs = (BackendRef(found[2], found[1], str(target.port or (443 if target.scheme == "https" else 80))),)
    auth = ExternalAuth(backend=refs[0].key if refs else "", **asdict(service))
    return auth, refs


def users_of(secret: Secret, kind: str) -> str | None:
    """The htpasswd text of a Secret; None: it has none."""
    try:
        if kind == "auth-map":
            users = sorted((u, h.decode("ascii").strip()) for u, h in secret.data.items())
            if not users or any(c in u + h for u, h in users for c in ":\n\r\0" if c in u or c in "\n\r\0"):
                return None
            return "".join(f"{u}:{h}\n" for u, h in users)
        text = secret.data["auth"].decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return None
    return text if text.endswith("\n") else text + "\n"


def _denied(field: str, message: str) -> Problem:
    return Problem(reason=Reason.REFERENCE_NOT_FOUND, field=field, message=f"{message}; its routes answer 503", example="users")


def _basic_auth(ingress: ReadIngress, around: Surroundings) -> tuple[BasicAuth, str] | Problem:
    s = ingress.settings
    namespace, _, name = s.auth_secret.rpartition("/")
    field = f"metadata.annotations[{PREFIX}auth-secret]"
    secret = around.secret(namespace or ingress.namespace, name)
    if secret is None:
        return _denied(field, f"names the Secret {namespace or ingress.namespace}/{name}, which does not exist")
    content = users_of(secret, s.auth_secret_type)
    if content is None:
        wanted = "a key auth with htpasswd lines" if s.auth_secret_type == "auth-file" else "users as keys and hashes as values"
        return _denied(field, f"names a Secret without {wanted}")
    digest = hashlib.sha256(content.encode()).hexdigest()
    return BasicAuth(file=digest, realm=s.auth_realm), content


def _redirect(s: IngressSettings) -> Redirect | None:
    if s.temporal_redirect and not s.temporal_redirect.startswith("http"):
        return None  # as ingress-nginx: none of them counts
    if s.temporal_redirect:
        return Redirect(url=s.temporal_redirect, code=s.temporal_redirect_code)
    if s.permanent_redirect:
        return Redirect(url=s.permanent_redirect, code=s.permanent_redirect_code)
    return None


def make_location(
    ingress: ReadIngress,
    path: str,
    path_type: str,
    backend: BackendRef | None,
    field: str,
    around: Surroundings,
    *,
    automatic: bool = False,
) -> Location:
    """Lower one path of an Ingress. `backend` None: the global default backend."""
    s, g = ingress.settings, around.settings
    policy, service = location_policy(s, g), auth_service(s, g)
    rewritten = ingress.rewrites(path)
    problems: list[Problem] = []
    files: list[tuple[str, str]] = []
    deny = 503 if ingress.denied or g.closed else 0
    open_path = any(path.startswith(p) for p in g.no_auth_locations)
    if open_path:
        policy = replace(policy, basic_auth=False, external_auth=False, signin=False)
    basic = auth = None
    refs: list[BackendRef] = []
    if policy.basic_auth and not deny:
        found = _basic_auth(ingress, around)
        if isinstance(found, Problem):
            problems.append(found)
            deny = 503
        else:
            basic = found[0]
            files.append((basic.file, found[1]))
    if policy.external_auth and service is not None:
        auth, auth_refs = _external_auth(service)
        refs += auth_refs
    default = around.default_backend
    target = backend or default
    if backend is None:
        policy = replace(policy, protocol="HTTP")  # ingress-nginx: the global default backend is plain HTTP
    cors = cors_of(s)
    policy = replace(policy, cors=cors is not None, forwarded_prefix=rewritten and bool(s.x_forwarded_prefix))
    standin = BackendRef(ingress.namespace, s.default_backend, FIRST_PORT) if s.default_backend else None
    refs += [r for r in (target, standin) if r is not None]
    allow = s.allowlist_source_range or s.whitelist_source_range or g.whitelist_source_range
    route = Route(
        policy=policy_of(policy, g).hash,
        backend=target.key if target else "",
        namespace=ingress.namespace,
        ingress=ingress.name,
        service=target.service if target else "",
        port=target.port if target else "",
        path=path,
        deny=deny,
        redirect=_redirect(s),
        ssl_redirect=_ssl_redirect(s, g, path),
        preserve_trailing_slash=pick(s.preserve_trailing_slash, g.preserve_trailing_slash),
        port_in_redirect=pick(s.use_port_in_redirects, g.use_port_in_redirects),
        rewrite=Rewrite(pattern=bounded(path), target=s.rewrite_target) if rewritten else None,
        forwarded_prefix=s.x_forwarded_prefix if rewritten else "",
        body_size=size_bytes(policy.body_size),
        vhost=s.upstream_vhost,
        allow=allow,
        block=pick(s.denylist_source_range, g.denylist_source_range),
        basic=basic,
        auth=auth,
        cors=cors,
        limit_key=_limit_key(ingress) if s.limit_rps or s.limit_rpm or s.limit_connections else "",
        errors=policy.error_codes,
        error_backend=standin.key if standin and s.custom_http_errors else "",
        standin=standin.key if standin else "",
        access_log=s.enable_access_log,
    )
    return Location(
        path=path,
        path_type=path_type,
        ingress=ingress,
        field=field,
        automatic=automatic,
        route=route,
        policy=policy,
        regex=s.use_regex or rewritten,
        files=tuple(files),
        backends=tuple(refs),
        problems=tuple(problems),
    )


def _limit_key(ingress: ReadIngress) -> str:
    """Short: nginx counts no key of more than 255 bytes, and says so in its log only."""
    return hashlib.sha256(f"{ingress.ref}/{ingress.uid}".encode()).hexdigest()[:24] + " "


def _ssl_redirect(s: IngressSettings, g: GlobalSettings, path: str) -> Literal["", "tls", "force"]:
    if any(path.startswith(p) for p in g.no_tls_redirect_locations):
        return ""
    if pick(s.force_ssl_redirect, g.force_ssl_redirect):
        return "force"
    return "tls" if pick(s.ssl_redirect, g.ssl_redirect) else ""


def unclaimed_location(around: Surroundings) -> Location:
    """The catch-all's default location while no Ingress claims it: the global default backend, nothing else."""
    nobody = IngressSettings(enable_global_auth=False)
    policy = replace(location_policy(nobody, around.settings), error_codes=around.settings.custom_http_errors)
    default = around.default_backend
    route = Route(
        policy=policy_of(policy, around.settings).hash, backend=default.key if default else "", path="/", errors=policy.error_codes
    )
    return Location(
        path="/",
        path_type="Prefix",
        ingress=None,
        field="",
        automatic=True,
        route=route,
        policy=policy,
        backends=(default,) if default else (),
    )
