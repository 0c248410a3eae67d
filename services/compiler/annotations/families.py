"""All entries, family by family."""

from __future__ import annotations

from typing import Final

from services.compiler.annotations import values as v
from services.compiler.annotations.registry import Annotation, Invalid, Risk
from services.compiler.configvalues import boolean, buffer_size, failures, switch

REWRITE: Final = (
    Annotation(name="ssl-redirect", parse=boolean, invalid=Invalid.DEFAULT, effect="http to https where the host has a certificate entry."),
    Annotation(name="force-ssl-redirect", parse=boolean, risk=Risk.MEDIUM, invalid=Invalid.DEFAULT, effect="http to https even without a certificate."),
    Annotation(name="preserve-trailing-slash", parse=boolean, risk=Risk.MEDIUM, invalid=Invalid.DEFAULT, effect="Keeps a trailing / in https redirects."),
    Annotation(name="use-port-in-redirects", parse=boolean, invalid=Invalid.DEFAULT, effect="https redirects name the https port."),
    Annotation(name="rewrite-target", parse=v.path, risk=Risk.MEDIUM, scope="Ingress", invalid=Invalid.DEFAULT, example="/$2",
               effect="Replaces the URI; the path is a regular expression, for all locations of the host."),
    Annotation(name="use-regex", parse=boolean, invalid=Invalid.DEFAULT, effect="Paths are regular expressions, for all locations of the host."),
    Annotation(name="app-root", parse=v.redirect_path, risk=Risk.MEDIUM, invalid=Invalid.DEFAULT, example="/app", effect="302 from / to this path."),
    Annotation(name="x-forwarded-prefix", parse=v.prefix_path, risk=Risk.MEDIUM, example="/api",
               effect="X-Forwarded-Prefix to the upstream, in rewritten locations."),
)  # fmt: skip

REDIRECT: Final = (
    Annotation(name="permanent-redirect", parse=v.redirect_url, risk=Risk.MEDIUM, example="https://new.example.com", effect="Redirects everything (301)."),
    Annotation(name="permanent-redirect-code", parse=v.code_between(300, 308, 301), effect="Status of permanent-redirect."),
    Annotation(name="temporal-redirect", parse=v.redirect_url, risk=Risk.MEDIUM, example="https://maintenance.example.com",
               effect="Redirects everything (302); before permanent-redirect."),
    Annotation(name="temporal-redirect-code", parse=v.code_between(300, 307, 302), effect="Status of temporal-redirect."),
)  # fmt: skip

PROXY: Final = (
    Annotation(name="proxy-body-size", parse=v.size, risk=Risk.MEDIUM, kind="policy", invalid=Invalid.DEFAULT, example="8m",
               effect="Largest request body; 0: unlimited."),
    Annotation(name="proxy-connect-timeout", parse=v.seconds, kind="policy", invalid=Invalid.DEFAULT, example="5", effect="Seconds to connect to an endpoint."),
    Annotation(name="proxy-send-timeout", parse=v.seconds, kind="policy", invalid=Invalid.DEFAULT, example="60", effect="Seconds between two writes to an endpoint."),
    Annotation(name="proxy-read-timeout", parse=v.seconds, kind="policy", invalid=Invalid.DEFAULT, example="60", effect="Seconds between two reads from an endpoint."),
    Annotation(name="proxy-buffering", parse=switch, kind="policy", invalid=Invalid.DEFAULT, example="on", effect="Buffers responses."),
    Annotation(name="proxy-buffer-size", parse=buffer_size, kind="policy", invalid=Invalid.DEFAULT, example="8k", effect="Size of the response header buffer, and of each buffer."),
    Annotation(name="proxy-buffers-number", parse=v.number(2, 1024), kind="policy", invalid=Invalid.DEFAULT, example="4", effect="Number of response buffers."),
    Annotation(name="proxy-busy-buffers-size", parse=buffer_size, kind="policy", invalid=Invalid.DEFAULT, example="16k", effect="How much may be sending; kept within what nginx accepts."),
    Annotation(name="proxy-request-buffering", parse=switch, kind="policy", invalid=Invalid.DEFAULT, example="off", effect="Buffers request bodies."),
    Annotation(name="proxy-http-version", example="1.1", parse=v.one_of("1.0", "1.1"), kind="policy", invalid=Invalid.DEFAULT, effect="HTTP version to the endpoint."),
    Annotation(name="proxy-max-temp-file-size", parse=v.size, kind="policy", invalid=Invalid.DEFAULT, example="1024m", effect="Largest temporary file of a buffered response."),
    Annotation(name="proxy-next-upstream", parse=failures, risk=Risk.MEDIUM, kind="policy", invalid=Invalid.DEFAULT, example="error timeout http_502", effect="When to try another endpoint."),
    Annotation(name="proxy-next-upstream-tries", parse=v.number(0, 100), kind="policy", invalid=Invalid.DEFAULT, example="3", effect="How many endpoints to try."),
    Annotation(name="proxy-next-upstream-timeout", parse=v.number(0, 1_000_000), kind="policy", invalid=Invalid.DEFAULT, example="10", effect="Seconds for all tries."),
)  # fmt: skip

BACKEND: Final = (
    Annotation(name="backend-protocol", parse=v.protocol, kind="policy", invalid=Invalid.DEFAULT, example="GRPC", effect="HTTP, HTTPS, GRPC or GRPCS to the endpoints."),
    Annotation(name="upstream-vhost", parse=v.server_name, example="backend.internal", effect="Host header to the upstream."),
    Annotation(name="load-balance", parse=v.one_of("round_robin", "ewma", "chash", "chashsubset", "sticky_balanced", "sticky_persistent"), example="ewma",
               effect="How endpoints are chosen: round_robin or ewma; the other words of ingress-nginx mean nothing alone and are round_robin."),
    Annotation(name="upstream-hash-by", parse=v.template, risk=Risk.HIGH, example="$request_uri", effect="Consistent hashing of this value to one endpoint."),
    Annotation(name="upstream-hash-by-subset", parse=boolean, effect="Hash to a group of endpoints, random within it."),
    Annotation(name="upstream-hash-by-subset-size", parse=v.number(0, 1024), effect="Size of such a group."),
    Annotation(name="service-upstream", parse=boolean, scope="Ingress", invalid=Invalid.DEFAULT, effect="The Service's cluster IP instead of its endpoints."),
)  # fmt: skip

AFFINITY: Final = (
    Annotation(name="affinity", parse=v.one_of("cookie"), scope="Ingress", invalid=Invalid.DEFAULT, example="cookie", effect="Sticky sessions by cookie."),
    Annotation(name="affinity-mode", parse=v.one_of("balanced", "persistent"), risk=Risk.MEDIUM, scope="Ingress", invalid=Invalid.DEFAULT, example="persistent",
               effect="balanced: a consistent hash; persistent: one endpoint until it goes."),
    Annotation(name="affinity-canary-behavior", parse=v.one_of("sticky", "legacy"), scope="Ingress", invalid=Invalid.DEFAULT, example="legacy",
               effect="Whether users stay on the canary (read from the canary Ingress)."),
    Annotation(name="session-cookie-name", parse=v.cookie_label, risk=Risk.MEDIUM, scope="Ingress", invalid=Invalid.DEFAULT, example="route", effect="The cookie's name."),
    Annotation(name="session-cookie-expires", parse=v.number(-(10**9), 10**9), risk=Risk.MEDIUM, scope="Ingress", invalid=Invalid.DEFAULT, example="3600", effect="Expires: now plus so many seconds."),
    Annotation(name="session-cookie-max-age", parse=v.number(-(10**9), 10**9), risk=Risk.MEDIUM, scope="Ingress", invalid=Invalid.DEFAULT, example="3600", effect="Max-Age, seconds."),
    Annotation(name="session-cookie-path", parse=v.basic, risk=Risk.MEDIUM, scope="Ingress", invalid=Invalid.DEFAULT, example="/", effect="Path; default the Ingress's path."),
    Annotation(name="session-cookie-domain", parse=v.basic, risk=Risk.MEDIUM, scope="Ingress", invalid=Invalid.DEFAULT, example="example.com", effect="Domain."),
    Annotation(name="session-cookie-samesite", parse=v.one_of("None", "Lax", "Strict"), scope="Ingress", invalid=Invalid.DEFAULT, example="Lax", effect="SameSite."),
    Annotation(name="session-cookie-conditional-samesite-none", parse=boolean, scope="Ingress", invalid=Invalid.DEFAULT, effect="No SameSite=None for clients that mishandle it."),
    Annotation(name="session-cookie-secure", parse=boolean, scope="Ingress", invalid=Invalid.DEFAULT, effect="Secure also over http."),
    Annotation(name="session-cookie-change-on-failure", parse=boolean, scope="Ingress", invalid=Invalid.DEFAULT, effect="A failing endpoint is replaced, and the cookie with it."),
)  # fmt: skip

CANARY: Final = (
    Annotation(name="canary", parse=boolean, scope="Ingress", invalid=Invalid.DEFAULT, effect="An alternative for the same host, path and type of another Ingress."),
    Annotation(name="canary-by-header", parse=v.matching(r"[A-Za-z0-9_-]{1,128}", "a header name such as X-Canary"), risk=Risk.MEDIUM, scope="Ingress", invalid=Invalid.DEFAULT, example="X-Canary",
               effect="always: the canary; never: not; else the next rule."),
    Annotation(name="canary-by-header-value", parse=v.basic, risk=Risk.MEDIUM, scope="Ingress", invalid=Invalid.DEFAULT, example="beta", effect="The value that selects the canary."),
    Annotation(name="canary-by-header-pattern", parse=v.pattern, risk=Risk.MEDIUM, scope="Ingress", invalid=Invalid.DEFAULT, example="^(de|fr)$", effect="A regular expression that selects the canary."),
    Annotation(name="canary-by-cookie", parse=v.cookie_label, risk=Risk.MEDIUM, scope="Ingress", invalid=Invalid.DEFAULT, example="canary", effect="Cookie with always or never."),
    Annotation(name="canary-weight", parse=v.number(0, 10**9), scope="Ingress", invalid=Invalid.DEFAULT, example="10", effect="Share of requests, of canary-weight-total."),
    Annotation(name="canary-weight-total", parse=v.number(0, 10**9), scope="Ingress", invalid=Invalid.DEFAULT, example="100", effect="What canary-weight is a share of."),
)  # fmt: skip

AUTH: Final = (
    Annotation(name="auth-type", parse=v.one_of("basic"), kind="policy", invalid=Invalid.DENY, example="basic", effect="HTTP basic authentication."),
    Annotation(name="auth-secret", needs="auth-type", parse=v.basic, risk=Risk.MEDIUM, invalid=Invalid.DENY, example="users", effect="The Secret with the users."),
    Annotation(name="auth-secret-type", needs="auth-type", parse=v.one_of("auth-file", "auth-map"), invalid=Invalid.DENY, example="auth-map", effect="How users stand in it."),
    Annotation(name="auth-realm", needs="auth-type", parse=v.auth_realm, risk=Risk.MEDIUM, invalid=Invalid.DENY, example="members", effect="The realm of the challenge."),
    Annotation(name="auth-url", parse=v.auth_url, risk=Risk.HIGH, kind="policy", invalid=Invalid.DENY, example="http://auth.default.svc/check", effect="Asks this URL about every request."),
    Annotation(name="auth-method", needs="auth-url", parse=v.http_method, invalid=Invalid.DENY, example="POST", effect="Method of that question."),
    Annotation(name="auth-signin", needs="auth-url", parse=v.signin_url, risk=Risk.HIGH, kind="policy", invalid=Invalid.DEFAULT, example="https://login.example.com/start", effect="A 401 of the auth service becomes a redirect to this URL."),
    Annotation(name="auth-signin-redirect-param", needs="auth-url", parse=v.parameter_name, risk=Risk.MEDIUM, invalid=Invalid.DEFAULT, example="rd", effect="The parameter with the original URL."),
    Annotation(name="auth-response-headers", needs="auth-url", parse=v.header_names, risk=Risk.MEDIUM, invalid=Invalid.DENY, example="X-User,X-Groups", effect="Headers of the auth answer that go to the upstream."),
    Annotation(name="auth-request-redirect", needs="auth-url", parse=v.dns_or_path, risk=Risk.MEDIUM, invalid=Invalid.DENY, example="/original", effect="X-Auth-Request-Redirect to the auth service."),
    Annotation(name="auth-always-set-cookie", needs="auth-url", parse=boolean, invalid=Invalid.DENY, effect="The auth service's cookies on every status."),
    Annotation(name="enable-global-auth", parse=boolean, kind="policy", invalid=Invalid.DEFAULT, effect="false: not asked for by the ConfigMap's global-auth-url."),
)  # fmt: skip

CORS: Final = (
    Annotation(name="enable-cors", parse=boolean, scope="Ingress", kind="policy", invalid=Invalid.DEFAULT, effect="CORS headers, and an answer to preflight requests."),
    Annotation(name="cors-allow-origin", parse=v.origins, risk=Risk.MEDIUM, scope="Ingress", invalid=Invalid.REJECT, example="https://*.example.com", effect="Which origins."),
    Annotation(name="cors-allow-methods", parse=v.methods, risk=Risk.MEDIUM, scope="Ingress", invalid=Invalid.DEFAULT, example="GET, POST", effect="Access-Control-Allow-Methods."),
    Annotation(name="cors-allow-headers", parse=v.header_list, risk=Risk.MEDIUM, scope="Ingress", invalid=Invalid.DEFAULT, example="X-Token", effect="Access-Control-Allow-Headers."),
    Annotation(name="cors-expose-headers", parse=v.expose_list, risk=Risk.MEDIUM, scope="Ingress", invalid=Invalid.DEFAULT, example="X-Total", effect="Access-Control-Expose-Headers."),
    Annotation(name="cors-allow-credentials", parse=boolean, scope="Ingress", invalid=Invalid.DEFAULT, effect="Access-Control-Allow-Credentials."),
    Annotation(name="cors-max-age", parse=v.number(-(10**9), 10**9), scope="Ingress", invalid=Invalid.DEFAULT, example="600", effect="Access-Control-Max-Age, seconds."),
)  # fmt: skip

ACCESS: Final = (
    Annotation(name="limit-rps", parse=v.number(0, 1_000_000), kind="policy", example="10", effect="Requests a second and client."),
    Annotation(name="limit-rpm", parse=v.number(0, 1_000_000), kind="policy", example="300", effect="Requests a minute and client."),
    Annotation(name="limit-burst-multiplier", parse=v.number(1, 1000), kind="policy", invalid=Invalid.DEFAULT, example="5", effect="Burst: so many times the rate."),
    Annotation(name="limit-connections", parse=v.number(0, 65535), kind="policy", example="5", effect="Connections at a time and client."),
    Annotation(name="allowlist-source-range", parse=v.cidrs, risk=Risk.MEDIUM, invalid=Invalid.DENY, example="10.0.0.0/8", effect="Only these clients; 403 for others."),
    Annotation(name="whitelist-source-range", parse=v.cidrs, risk=Risk.MEDIUM, invalid=Invalid.DENY, example="10.0.0.0/8", effect="Alias of allowlist-source-range."),
    Annotation(name="denylist-source-range", parse=v.cidrs, risk=Risk.MEDIUM, invalid=Invalid.DENY, example="192.0.2.0/24", effect="403 for these clients."),
)  # fmt: skip

OTHER: Final = (
    Annotation(name="default-backend", parse=v.service_name, example="errors", effect="Answers when the upstream has no endpoint, and for custom-http-errors."),
    Annotation(name="custom-http-errors", parse=v.status_codes, kind="policy", example="404,503", effect="These statuses are answered by the default backend."),
    Annotation(name="disable-proxy-intercept-errors", parse=boolean, kind="policy", invalid=Invalid.DEFAULT, effect="custom-http-errors only for nginx's own."),
    Annotation(name="server-alias", parse=v.aliases, risk=Risk.HIGH, scope="Ingress", example="www.example.com", effect="Further names of the Ingress's hosts."),
    Annotation(name="enable-access-log", parse=boolean, invalid=Invalid.DEFAULT, effect="false: requests are not logged."),
    Annotation(name="configuration-snippet", parse=v.snippet, risk=Risk.CRITICAL, kind="policy", example="more_set_headers \"X: 1\";", effect="Raw directives, where the administrator allows them."),
)  # fmt: skip

ANNOTATIONS: Final[dict[str, Annotation]] = {
    a.name: a for family in (REWRITE, REDIRECT, PROXY, BACKEND, AFFINITY, CANARY, AUTH, CORS, ACCESS, OTHER) for a in family
}
