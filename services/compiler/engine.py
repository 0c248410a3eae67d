"""The compiler's core: deltas in, changed rows, policies and verdicts out. Incremental, deterministic, isolating, and without any I/O.

The state after any order of the same deltas is the same. One bad object removes only itself. An Ingress that is refused (by validation,
or its policy by nginx) keeps the last form that was accepted, where one is known (docs/decisions/0003-last-good.md).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from msgspec import Struct
from msgspec.structs import replace

from services.compiler import naming
from services.compiler.accepted import Accepted
from services.compiler.backends import Users, absent, affinity_of, lower_backend
from services.compiler.canaries import Canaries
from services.compiler.configmap import parse_settings
from services.compiler.crashes import Crashes, Suspect, failpoint, suspect_of
from services.compiler.graph import Graph, Place
from services.compiler.hosts import LoweredHost, homeless, lower_host
from services.compiler.ingresses import CATCH_ALL, BackendRef, ReadIngress, read_ingress
from services.compiler.ir import LocationPolicy
from services.compiler.judgements import Judgements, ingress_key
from services.compiler.locations import FIRST_PORT, unclaimed_location
from services.compiler.policies import policy_of, render_bundle
from services.compiler.refusals import Refusals
from services.compiler.settings import GlobalSettings
from services.compiler.streams import Streams
from services.compiler.tables import Tables
from services.compiler.tlssecrets import TLSSecrets
from services.compiler.world import World
from services.shared.checks.classes import is_ours
from services.shared.contracts.delta import Delta
from services.shared.contracts.objects import ConfigMap, EndpointSlice, Ingress, Key, Secret
from services.shared.contracts.problem import Problem, Verdict
from services.shared.contracts.tables import CertificateRow, FileRow, Row, SettingsRow, TLSNameRow
from services.shared.contracts.version import PolicyBundle
from services.shared.flags import Flags

Clock = Callable[[], float]

STEP_SECONDS = 0.02
"""How long `compile_steps` works between two yields."""


class Output(Struct, frozen=True, kw_only=True):
    """What has changed since the last compile."""

    upsert: dict[str, bytes]
    delete: tuple[str, ...]
    bundle: PolicyBundle
    bundle_changed: bool
    verdicts: dict[Key, Verdict | None]
    """None: without problems now, or gone."""

    @property
    def empty(self) -> bool:
        return not (self.upsert or self.delete or self.bundle_changed)


class Engine:
    """One compiler. `any_address`: endpoints may be loopback or link-local (the manifests source). `nodes`: how many share a machine, node
    i on each port + i. `clock`: Unix seconds, for verdicts on certificates; versions do not depend on it."""

    def __init__(
        self, flags: Flags, *, any_address: bool = True, nodes: int = 1, crashes: Crashes | None = None, clock: Clock = time.time
    ) -> None:
        self.flags = flags
        self._crashes = crashes or Crashes()
        self.settings = GlobalSettings()
        self.world = World()
        self.graph = Graph()
        self.hosts: dict[str, LoweredHost] = {}
        self.default_backend = _service_ref(flags.default_backend_service)
        self._any_address = any_address
        self._tables = Tables()
        self._names = naming.Names()
        self._canaries = Canaries()
        self._streams = Streams(flags, any_address=any_address, nodes=nodes)
        self.tls = TLSSecrets(self.world, clock)
        self._policies: Counter[LocationPolicy] = Counter()
        self._bundle = PolicyBundle(policies=())
        self._forms = Accepted()
        self._judgements = Judgements(self.graph, self._forms, self._find_problems)
        self._configmap = Key("ConfigMap", *flags.configmap.partition("/")[::2])
        self._refusals = Refusals()
        self._before: dict[Place, Ingress] = {}
        """What they said at the last compile, of those that have changed since."""
        self._tried: dict[Place, Suspect] = {}
        """Those that were read since the last `take`."""
        self._dirty_ingresses: set[Place] = set()
        self._dirty_hosts: set[str] = {CATCH_ALL}
        self._dirty_backends: set[BackendRef] = set()
        self._all_dirty = True
        self._bundle_dirty = True

    # --- in

    @property
    def rows(self) -> dict[str, bytes]:
        """All rows as of the last compile."""
        return self._tables.rows

    @property
    def bundle(self) -> PolicyBundle:
        """The policies as of the last `take`."""
        return self._bundle

    def knows(self, namespace: str, name: str) -> bool:
        """Whether there is such an Ingress, and it is to be served by us."""
        found = self.world.get(Ingress, namespace, name)
        return found is not None and self._serves(found)

    def _serves(self, ingress: Ingress) -> bool:
        return not ingress.metadata.deletion_timestamp and is_ours(ingress, self.world.ingress_class, self.flags)

    def apply(self, delta: Delta) -> bool:
        """Take one delta; whether it matters to anything."""
        change = self.world.apply(delta)
        if change is None:
            return False
        place = (delta.namespace, delta.name)
        kind = delta.kind
        if kind == "Ingress":
            self._dirty_ingresses.add(place)
            if isinstance(change[0], Ingress):
                self._before.setdefault(place, change[0])
        elif kind == "IngressClass":
            self._dirty_ingresses.update((i.metadata.namespace, i.metadata.name) for i in self.world.all(Ingress))
        elif kind == "Service":
            refs = self._service_changed(place)
            self._judgements.doubt(ingress_key(i.ref) for ref in refs for i in self.graph.of_backend(ref))
        elif kind == "EndpointSlice":
            for piece in change:
                if isinstance(piece, EndpointSlice):
                    self._service_changed((piece.metadata.namespace, piece.metadata.labels.get("kubernetes.io/service-name", "")))
        elif kind == "Secret":
            self._secret_changed(place, deleted=delta.object is None)
        elif kind == "ConfigMap":
            return self._configmap_changed(delta.key)
        else:
            return False
        return True

    def _service_changed(self, place: Place) -> set[BackendRef]:
        """A Service or its endpoints; which backends are it."""
        refs = self.graph.backends_of_service(place)
        self._dirty_backends |= refs
        self._streams.service_changed(place)
        return refs

    def _configmap_changed(self, key: Key) -> bool:
        """Whether it is one that means something."""
        if key == self._configmap:
            self._settings_changed()
        if self._streams.read(key, self.world):
            self._judgements.doubt([key])
            self._bundle_dirty = True
        elif key != self._configmap:
            return False
        return True

    def _secret_changed(self, place: Place, *, deleted: bool) -> None:
        if deleted:
            self.tls.deleted(place)
        self._dirty_hosts |= self.graph.hosts_using_secret(place)
        self._judgements.doubt(Key("Ingress", *user) for user in self.graph.users_of_secret(place))
        if "/".join(place) == self.flags.default_ssl_certificate:
            self._dirty_hosts.add(CATCH_ALL)

    def _settings_changed(self) -> None:
        key = self._configmap
        found = self.world.get(ConfigMap, key.namespace, key.name)
        settings, problems = parse_settings(found.data if found else {}, self.settings if found else None, str(key))
        self._judgements.note(key, tuple(problems))
        if settings != self.settings:
            self.settings = settings
            self._forms.reconsider()
            self._all_dirty = self._bundle_dirty = True

    # --- out

    def compile(self) -> Output:
        """Bring everything up to date; what has changed."""
        for _ in self.compile_steps():
            pass
        return self.take()

    def compile_steps(self) -> Iterator[None]:
        """The same, yielding every `STEP_SECONDS`; `take` afterwards. Deltas must not be applied in between."""
        due = time.monotonic() + STEP_SECONDS
        self._crashes.batch(self._before.values())
        for work in (self._read_ingresses, self._lower_hosts, self._write_names, self._lower_backends, self._lower_streams):
            for _ in work():
                if time.monotonic() >= due:
                    yield
                    due = time.monotonic() + STEP_SECONDS
        self._tables.put("s", self._settings_row())
        self._all_dirty = False

    def take(self) -> Output:
        upsert, delete = self._tables.take()
        before = self._bundle
        if self._bundle_dirty:
            self._bundle = render_bundle(self.settings, self._policies, self._streams.listeners)
            self._bundle_dirty = False
        if self._refusals.prune(self._bundle):
            self._judgements.doubt([self._configmap])
        verdicts = dict(self._judgements.take())
        self._tried.clear()
        self._before.clear()
        self._crashes.settle()
        return Output(upsert=upsert, delete=delete, bundle=self._bundle, bundle_changed=self._bundle != before, verdicts=verdicts)

    def _settings_row(self) -> SettingsRow:
        s = self.settings
        return SettingsRow(
            use_forwarded_headers=s.use_forwarded_headers,
            http_redirect_code=s.http_redirect_code,
            relative_redirects=s.relative_redirects,
            default_backend=self.default_backend.key if self.default_backend else "",
            log_unmatched=s.enable_access_log_for_default_backend,
            errors=s.custom_http_errors,
            skip_log_urls=s.skip_access_log_urls,
            block_user_agents=s.block_user_agents,
            block_referers=s.block_referers,
            block_cidrs=s.block_cidrs,
        )

    # --- Ingresses

    def _read_ingresses(self) -> Iterator[None]:
        dirty = self._dirty_ingresses
        if self._all_dirty:
            dirty = {(i.metadata.namespace, i.metadata.name) for i in self.world.all(Ingress)} | set(self.graph.reads)
        self._dirty_ingresses = set()
        for place in sorted(dirty):
            self._read_one(place)
            yield

    def _read_one(self, place: Place) -> None:
        found = self.world.get(Ingress, *place)
        key = Key("Ingress", *place)
        if found is None or not self._serves(found):
            self._forget(place, key)
            return
        suspect = self._tried[place] = suspect_of(found)
        form = self._form(place, found, suspect)
        if form is None:
            self._judgements.note(key, ())
            self._take_effect(place, None)
            return
        self._crashes.note(suspect)
        failpoint("read", (rule.host for rule in form.spec.rules))
        read = read_ingress(form, self.settings)
        self._crashes.done()
        self._judgements.note(key, read.problems)
        self._take_effect(place, self._forms.take(place, read))

    def _form(self, place: Place, found: Ingress, suspect: Suspect) -> Ingress | None:
        """What to compile of it: itself, or what stands while it is left alone."""
        strikes = self._crashes.held(suspect)
        self._judgements.leave_alone(place, strikes.problem() if strikes else None)
        return strikes.stands if strikes else found

    def _suspects(self, ingresses: Iterable[ReadIngress]) -> Iterator[Suspect]:
        """Those that have not been compiled in this form yet."""
        return (self._tried[place] for i in ingresses if (place := (i.namespace, i.name)) in self._tried)

    def _take_effect(self, place: Place, read: ReadIngress | None) -> None:
        hosts, backends = self.graph.put(place, read)
        self._dirty_hosts |= hosts
        self._dirty_backends |= backends

    def _forget(self, place: Place, key: Key) -> None:
        self._forms.forget(place)
        self._crashes.forget(*place)
        self.tls.forget(place)
        self._judgements.forget(key)
        self._take_effect(place, None)

    # --- hosts

    def secret(self, namespace: str, name: str) -> Secret | None:
        return self.world.get(Secret, namespace, name)

    def _lower_hosts(self) -> Iterator[None]:
        dirty = self._dirty_hosts
        if self._all_dirty:
            dirty = dirty | self.graph.hosts() | set(self.hosts) | {CATCH_ALL}
        self._dirty_hosts = set()
        for host in sorted(dirty):
            self._lower_one(host)
            yield

    def _lower_one(self, host: str) -> None:
        before = self.hosts.get(host)
        ingresses = self.graph.of_host(host)
        self._crashes.note(*self._suspects(ingresses))
        failpoint("lower", (host,))
        after = lower_host(host, ingresses, self, self.tls.usable)
        if after is not None:
            self.hosts[host] = after
        else:
            self.hosts.pop(host, None)
        self._judgements.note_host(host, after.problems if after else homeless(host, ingresses))
        self._count_policies(before, after)
        self._dirty_backends |= self.graph.need(host, _needs(before), _needs(after))
        self._dirty_backends |= self._canaries.moved(host, before.edges if before else (), after.edges if after else ())
        self._tables.put(f"h/{host}", after.row if after else None)
        self._write_material(host, before, after)
        self._names.claim(host, after)
        self._crashes.done()

    def _count_policies(self, before: LoweredHost | None, after: LoweredHost | None) -> None:
        for location in before.locations if before else ():
            self._policies[location.policy] -= 1
            if not self._policies[location.policy]:
                del self._policies[location.policy]
                self._bundle_dirty = True
        for location in after.locations if after else ():
            self._bundle_dirty |= location.policy not in self._policies
            self._policies[location.policy] += 1

    def _write_material(self, host: str, before: LoweredHost | None, after: LoweredHost | None) -> None:
        """Certificates and files of a host."""
        rows: dict[str, Row] = {}
        certificate = after.certificate if after else None
        if host == CATCH_ALL and self.flags.default_ssl_certificate:
            namespace, _, name = self.flags.default_ssl_certificate.partition("/")
            certificate = self.tls.usable(namespace, name)
            self._judgements.note(Key("Secret", namespace, name), self.tls.problems_of_default(namespace, name))
        if certificate is not None:
            rows[f"c/{certificate.digest}"] = CertificateRow(chain=certificate.chain, key=certificate.key)
        self._tables.put(f"t/{host}", TLSNameRow(certificate=certificate.digest) if certificate else None)
        for digest, content in (f for lo in (after.locations if after else ()) for f in lo.files):
            rows[f"f/{digest}"] = FileRow(content=content)
        self._tables.own(host, self._names.material.get(host, ()), rows)
        self._names.material[host] = tuple(rows)

    def _write_names(self) -> Iterator[None]:
        for key, row in self._names.rows(self.hosts):
            self._tables.put(key, row)
            yield
        self._judgements.doubt(map(ingress_key, self._names.touched()))

    # --- backends

    def _lower_backends(self) -> Iterator[None]:
        dirty = self._dirty_backends
        if self._all_dirty:
            dirty = dirty | self.graph.all_needed()
        self._dirty_backends = set()
        dirty |= self._canaries.of(dirty)
        for ref in sorted(dirty):
            self._lower_backend(ref)
            yield

    def _users(self, ref: BackendRef) -> Users:
        primary = self._canaries.primary_of(ref)
        affinity = affinity_of(primary, Users(ingresses=self.graph.of_backend(primary), edges=[])) if primary is not None else None
        return Users(ingresses=self.graph.of_backend(ref), edges=self._canaries.beside(ref), primary=affinity)

    def _lower_backend(self, ref: BackendRef) -> None:
        row = None
        if self.graph.needed(ref):
            users = self._users(ref)
            self._crashes.note(*self._suspects(users.ingresses))
            row = lower_backend(ref, users, self.world, self.settings, any_address=self._any_address)
        if row is not None and ref == self.default_backend:
            row = replace(row, name="upstream-default-backend")
        self._tables.put(f"b/{ref.key}", row)
        self._crashes.done()

    def _lower_streams(self) -> Iterator[None]:
        for key, row in self._streams.lower(self.world):
            self._tables.put(key, row)
            self._judgements.doubt(self._streams.sources)
            yield

    # --- verdicts

    def _find_problems(self, key: Key, read: ReadIngress | None) -> Iterator[Problem]:
        """What can only be found in everything together."""
        if read is not None:
            yield from (*self.tls.problems(read), *absent(read, self.world), *self._names.problems(read, self.hosts))
            self.tls.note_expiry(read)
        if key == self._configmap:
            yield from self._refusals.problems()
        yield from self._streams.problems(key)

    def verdict(self, key: Key) -> Verdict | None:
        """What is wrong with one object now; None: nothing."""
        return self._judgements.of(key)

    def notice_expiry(self) -> bool:
        """Whether certificates have expired, so that the next compile has news of them."""
        lapsed = self.tls.lapsed()
        self._judgements.doubt(Key("Ingress", *place) for place in lapsed)
        return bool(lapsed)

    def row_keys(self, namespace: str, name: str) -> tuple[str, ...]:
        """The host rows that an Ingress is part of."""
        read = self.graph.reads.get((namespace, name))
        return tuple(f"h/{h}" for h in sorted(self.graph.hosts_of(read))) if read else ()

    # --- policies that nginx refuses

    def refuse(self, refused: Mapping[str, str]) -> list[str]:
        """nginx refuses policies (hash -> words): the Ingresses that need one go back to their last good form, unless the ConfigMap is to
        blame. Returns the names of new culprits."""
        mine = self._in_use(refused)
        if not mine:
            return []
        plainest = unclaimed_location(self).route.policy
        news, left = self._refusals.note(self._bundle, plainest, {h: words for h, words in refused.items() if h in mine})
        if news:
            self._judgements.doubt([self._configmap])
        culprits: dict[str, ReadIngress] = {}
        for lowered in self.hosts.values() if left else ():
            for location in lowered.locations:
                policy = location.route.policy
                ingress = location.ingress
                if policy not in left or ingress is None or ingress.ref in culprits:
                    continue
                if self._forms.quarantine(ingress, policy, left[policy]):  # nodes repeat their reports
                    culprits[ingress.ref] = ingress
        self._dirty_ingresses |= {(i.namespace, i.name) for i in culprits.values()}
        return [*([str(self._configmap)] if news else []), *sorted(culprits)]

    def _in_use(self, policies: Iterable[str]) -> set[str]:
        """Those (by hash) that the last version has, or the one being made. Thousands of nodes repeat what they refuse."""
        asked = set(policies)
        found = asked & {p.hash for p in self._bundle.policies}
        if found != asked:
            found |= asked & {policy_of(p, self.settings).hash for p in self._policies}
        return found


def _service_ref(flag: str) -> BackendRef | None:
    namespace, slash, name = flag.partition("/")
    return BackendRef(namespace, name, FIRST_PORT) if slash and namespace and name else None


def _needs(lowered: LoweredHost | None) -> set[BackendRef]:
    """What a host's routes may send to, canaries included."""
    if lowered is None:
        return set()
    return {ref for location in lowered.locations for ref in location.backends} | {edge.canary for edge in lowered.edges}
