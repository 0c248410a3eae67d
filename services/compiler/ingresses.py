"""One Ingress, read: its annotations as values, its rules as paths, and what it refers to.

A pure function of the object and the settings.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from msgspec import Struct

from services.compiler.annotations import registry
from services.compiler.annotations.families import ANNOTATIONS
from services.compiler.annotations.settings import IngressSettings
from services.compiler.locationpolicy import location_policy
from services.compiler.policies import policy_of
from services.compiler.settings import GlobalSettings
from services.shared.checks.ingress import check_ingress
from services.shared.contracts.objects import Ingress, IngressBackend
from services.shared.contracts.problem import Problem, Reason, printable
from services.shared.nginxtext.arguments import TextError
from services.shared.nginxtext.regex import check_regex

CATCH_ALL = "_"
MOST_REPEATED_BYTES = 4 * 1024 * 1024
"""Of annotations in all routes of an Ingress together: each route carries them."""
PathType = Literal["Exact", "Prefix"]


class BackendRef(Struct, frozen=True, order=True):
    """A Service and a port of it, as written."""

    namespace: str
    service: str
    port: str
    """Name or number; `` where neither is given."""

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.service}:{self.port}"

    @property
    def name(self) -> str:
        return f"{self.namespace}-{self.service}-{self.port or 'INVALID'}"


class PathRule(Struct, frozen=True, kw_only=True):
    """One path of one rule."""

    host: str
    """`_` for a rule without a host."""
    path: str
    path_type: PathType
    backend: BackendRef | None
    """None: a resource backend, which is skipped."""
    field: str
    """`spec.rules[0].http.paths[1]`."""


class ReadIngress(Struct, frozen=True, kw_only=True):
    """What the compiler makes of one Ingress by itself."""

    namespace: str
    name: str
    uid: str
    created: str
    hosts: tuple[str, ...]
    """Of its rules, once each, in order; a rule without http counts."""
    paths: tuple[PathRule, ...]
    default_backend: BackendRef | None
    has_rules: bool
    tls: tuple[tuple[tuple[str, ...], str], ...]
    """(hosts, secretName) of each tls entry."""
    settings: IngressSettings
    problems: tuple[Problem, ...]
    rejected: bool
    denied: bool

    @property
    def ref(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def canary(self) -> bool:
        return self.settings.canary

    @property
    def uses_regex(self) -> bool:
        return self.settings.use_regex or any(self.rewrites(p.path) for p in self.paths)

    def rewrites(self, path: str) -> bool:
        """Whether the location of this path has a rewrite that changes anything."""
        return bool(self.settings.rewrite_target) and self.settings.rewrite_target != path

    def secrets(self) -> Iterator[tuple[str, str]]:
        """(namespace, name) of the Secrets it refers to."""
        for _, name in self.tls:
            if name:
                yield self.namespace, name
        if self.settings.auth_type and self.settings.auth_secret:
            namespace, _, name = self.settings.auth_secret.rpartition("/")
            yield namespace or self.namespace, name

    def backends(self) -> Iterator[BackendRef]:
        """Every Service and port it refers to in rules and as default backend."""
        for p in self.paths:
            if p.backend is not None:
                yield p.backend
        if self.default_backend is not None:
            yield self.default_backend


def backend_ref(backend: IngressBackend | None, namespace: str) -> BackendRef | None:
    if backend is None or backend.service is None:
        return None
    port = backend.service.port
    return BackendRef(namespace, backend.service.name, port.name or (str(port.number) if port.number else ""))


def _paths(ingress: Ingress) -> Iterator[PathRule]:
    for r, rule in enumerate(ingress.spec.rules):
        for p, path in enumerate(rule.http.paths if rule.http else ()):
            yield PathRule(
                host=rule.host or CATCH_ALL,
                path=path.path or "/",
                path_type="Exact" if path.path_type == "Exact" else "Prefix",
                backend=backend_ref(path.backend, ingress.metadata.namespace),
                field=f"spec.rules[{r}].http.paths[{p}]",
            )


def _regex_problems(read: registry.ReadAnnotations, paths: tuple[PathRule, ...]) -> Iterator[Problem]:
    """Paths that become regular expressions must be ones that PCRE takes and that can be bounded."""
    for p in paths:
        if read.settings.use_regex or (read.settings.rewrite_target and read.settings.rewrite_target != p.path):
            try:
                check_regex(p.path)
            except TextError as error:
                yield Problem(
                    reason=Reason.INVALID_REGEX,
                    field=f"{p.field}.path",
                    message=f"is used as a regular expression (use-regex or rewrite-target), and is not {error}",
                    example="/api(/|$)(.*)",
                )


def _unrenderable(own: IngressSettings, settings: GlobalSettings) -> Iterator[Problem]:
    """What the parsers let through and no policy can be made of: a mistake here, and none to die of."""
    try:
        policy_of(location_policy(own, settings), settings)
    except TextError as error:
        yield Problem(reason=Reason.INVALID_ANNOTATION, field="metadata.annotations", message=f"one of them is not {error}")


def _repeated(annotations: dict[str, str], paths: tuple[PathRule, ...]) -> Iterator[Problem]:
    """A small object with many paths and long lists would become rows that no node has room for."""
    each = sum(len(value) for name, value in annotations.items() if name.startswith(registry.PREFIX) and not name.endswith("-snippet"))
    if each * len(paths) > MOST_REPEATED_BYTES:
        yield Problem(
            reason=Reason.TOO_LARGE,
            field="metadata.annotations",
            message=f"{len(paths)} paths repeat {each} bytes each, more than {MOST_REPEATED_BYTES} together; split the Ingress",
        )


def _combinations(settings: IngressSettings, namespace: str, cross_namespace: bool) -> Iterator[tuple[Problem, bool]]:
    """What only together is wrong: (problem, whether the routes must be closed)."""
    prefix = registry.PREFIX
    if settings.temporal_redirect and not settings.temporal_redirect.startswith("http"):
        yield (
            Problem(
                reason=Reason.INVALID_ANNOTATION,
                field=f"metadata.annotations[{prefix}temporal-redirect]",
                message="does not begin with http:// or https://: it and the other redirect annotations have no effect",
                example="https://maintenance.example.com",
                severity="warning",
            ),
            False,
        )
    if settings.auth_type and not settings.auth_secret:
        yield (
            Problem(
                reason=Reason.REFERENCE_NOT_FOUND,
                field=f"metadata.annotations[{prefix}auth-secret]",
                message="is missing, and auth-type needs it; its routes answer 503",
                example="users",
            ),
            True,
        )
    owner, _, _ = settings.auth_secret.rpartition("/")
    if settings.auth_type and owner and owner != namespace and not cross_namespace:
        yield (
            Problem(
                reason=Reason.REFERENCE_FORBIDDEN,
                field=f"metadata.annotations[{prefix}auth-secret]",
                message=f"names a Secret of namespace {owner}; references stay in the Ingress's namespace; its routes answer 503",
                example="users",
            ),
            True,
        )


def _idle_canary(annotations: dict[str, str], settings: IngressSettings) -> Iterator[Problem]:
    idle = [] if settings.canary else sorted(a for a in annotations if a.startswith(f"{registry.PREFIX}canary-") and annotations[a].strip())
    if idle:
        yield Problem(
            reason=Reason.NOT_HONOURED,
            field=f"metadata.annotations[{printable(idle[0])}]",
            message="has no effect: this Ingress is no canary, and its paths are its own",
            example=f'{registry.PREFIX}canary: "true"',
            severity="warning",
        )


def read_ingress(ingress: Ingress, settings: GlobalSettings) -> ReadIngress:
    """Read one Ingress; what is wrong with it is in `problems`."""
    meta = ingress.metadata
    said = registry.read(meta.annotations, settings, ANNOTATIONS, snippets=settings.allow_snippet_annotations)
    paths = tuple(_paths(ingress))
    fatal = [*check_ingress(ingress, strict_paths=False), *_regex_problems(said, paths), *_repeated(meta.annotations, paths)]
    if not said.rejected and not fatal:
        fatal += _unrenderable(said.settings, settings)
    combined = list(_combinations(said.settings, meta.namespace, settings.allow_cross_namespace_resources))
    return ReadIngress(
        namespace=meta.namespace,
        name=meta.name,
        uid=meta.uid,
        created=meta.creation_timestamp,
        hosts=tuple(dict.fromkeys(rule.host or CATCH_ALL for rule in ingress.spec.rules)),
        paths=paths,
        default_backend=backend_ref(ingress.spec.default_backend, meta.namespace),
        has_rules=bool(ingress.spec.rules),
        tls=tuple((t.hosts, t.secret_name) for t in ingress.spec.tls),
        settings=said.settings,
        problems=(*fatal, *said.problems, *(p for p, _ in combined), *_idle_canary(meta.annotations, said.settings)),
        rejected=said.rejected or bool(fatal),
        denied=said.denied or any(close for _, close in combined),
    )


def in_order(ingresses: list[ReadIngress]) -> list[ReadIngress]:
    """Oldest first; of the same age, the greater namespace/name first (behaviours §1.2)."""
    ingresses.sort(key=lambda i: i.ref, reverse=True)
    ingresses.sort(key=lambda i: i.created)
    return ingresses
