"""The applier of one node: it moves from version to version, and keeps nginx serving whatever happens to it.

Rows go at once; new policies go by a reload, at most one a second. A row that needs a policy which is not loaded (yet) keeps its
previous form.
"""

from __future__ import annotations

import grp
import time
from collections import Counter
from collections.abc import Iterable
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from services.applier.control import Control, lines_of, push_body
from services.applier.gate import check_bundle
from services.applier.install import Installer, failpoint
from services.applier.nginx import Nginx, worker_user
from services.applier.nodeconf import NodeSettings, prepare_node, required_tables_bytes
from services.applier.options import ApplierOptions
from services.applier.resolve import Names
from services.applier.rows import Split, files_of, split
from services.applier.store import JOURNAL_LIMIT, Header, Store
from services.shared.bus.port import Bus
from services.shared.contracts.tables import PushHeader
from services.shared.contracts.version import Manifest, PolicyBundle, TableDigest, VersionId, bundle_digest
from services.shared.telemetry.logs import get_logger
from services.shared.versions.read import Unreadable, bundle_of, digest_of
from services.shared.versions.replica import Replica

log = get_logger(__name__)

RELOAD_SECONDS: Final = 1.0
"""Between two reloads."""
HOLD_SECONDS: Final = 10.0
"""How long rows that go wait for rows that are deferred."""
ORPHAN_SECONDS: Final = 2.0
"""Between two looks for workers that outlived their master."""
RETRY_SECONDS: Final = 5.0
"""Before an installation that failed as a whole is tried again."""


class Phases(Struct, kw_only=True):
    """When one version reached which stage; unix seconds, 0: not."""

    received_at: float
    verified_at: float = 0.0
    tested_at: float = 0.0
    loaded_at: float = 0.0
    live_at: float = 0.0
    reload: str = ""


class Agent:
    """All state of one node's applier. One task calls `take` and `tick`."""

    def __init__(self, options: ApplierOptions, bus: Bus) -> None:
        self._options = options
        self._bus = bus
        self.store = Store(options.directory)
        self.nginx = Nginx(options.nginx, options.directory)
        self.settings = NodeSettings(
            directory=options.directory,
            http_port=options.http_port,
            https_port=options.https_port,
            address=options.address,
            metrics=options.flags.enable_metrics,
        )
        self.control = Control(self.settings.control_socket)
        self._installer = Installer(self.store, self.nginx, self.control)
        self.replica = Replica()
        self.manifest: Manifest | None = None
        """The newest version taken; its rows are `replica`'s."""
        self.bundle = PolicyBundle(policies=())
        self._bundle_digest = ""
        self._loaded = PolicyBundle(policies=())
        """What nginx runs."""
        self.live: dict[str, bytes] = {}
        """The rows in nginx's memory: the replica's, with the previous form of those that wait."""
        self._live_digest = TableDigest()
        """Of `live`, kept up to date row by row."""
        self._live_version = ""
        self._live_content = ""
        """The version's digest, where `live` is all of it; empty while rows wait. nginx keeps both, to be asked for after a restart."""
        self._behind: set[str] = set()
        """Keys whose rows in `live` differ from the replica's."""
        self.deferred: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self.generation = 0
        self.reloads: Counter[str] = Counter()
        self.failed_reloads = 0
        self.last_reload_ok = True
        self.last_reload_at = 0.0
        self.last_error = ""
        self.last_error_at = 0.0
        self.head = VersionId(0, 0)
        self._next_reload = 0.0
        self._next_orphans = 0.0
        self._hold_until = 0.0
        """Until then no row goes while another waits for its policy."""
        self._names = Names({})
        self._crashes: list[float] = []
        self._workers: set[int] = set()
        self._installed_at = 0.0

    # --- start

    async def start(self) -> None:
        """Serve from the disk, with nothing else there. The store is locked."""
        user = worker_user(self._options.directory)
        self.settings = replace(self.settings, user=user)
        prepare_node(self.settings)
        self._names = Names(self.store.read_local())
        stored, complaints = self.store.load()
        for complaint in complaints:
            self.fail(complaint)
        if stored is None:
            return
        self.bundle, self._bundle_digest, self._loaded = stored.bundle, bundle_digest(stored.bundle), stored.bundle
        self.live = dict(stored.rows)
        self._live_digest = digest_of(self.live)
        self._live_version = str(stored.id)
        self._live_content = stored.digest
        self.generation = stored.generation
        # a version some of whose rows were waiting is not held yet: it is taken again when the bus has it
        held = stored.id if stored.digest else VersionId(stored.id.epoch, stored.id.number - 1)
        self.replica = Replica(held, stored.digest, dict(stored.rows))
        self._fit_tables()
        self._names.note(self.live, ())
        await self._serve_stored()

    async def _serve_stored(self) -> None:
        answer = await self.control.generation() if self.nginx.pid else None
        if answer is not None and answer.generation == self.generation:
            await self._align()
            log.info("nginx runs and is adopted", generation=self.generation, version=self._live_version)
            return
        await self._start_nginx("recover" if self.nginx.pid else "start")

    async def _start_nginx(self, cause: str) -> None:
        """Start (or reload) on what is current; rows come from the disk where memory is empty."""
        if self.nginx.pid:
            self.nginx.reload()
        else:
            words = await self.nginx.start(self.settings.control_socket)
            if words:
                self.fail(f"nginx does not start: {words}")
                return
        error = await self._installer.confirm(self.settings, self.generation)
        if not error:
            self.nginx.end_orphans()
        self.reloads[cause] += 1
        if error:
            self.fail(error)
            return
        await self._align()

    # --- versions

    async def take(self, manifest: Manifest) -> Phases | None:
        """Move to a version: rows now, policies as soon as may be. None: it is not for us, or not newer."""
        if manifest.group != self._options.group:
            self.fail(f"version {manifest.id} is for group {manifest.group}, this node is of {self._options.group}")
            return None
        self.head = max(self.head, manifest.id)
        if manifest.id <= self.replica.id:
            if manifest.id == self.replica.id and manifest.digest != self.replica.digest and self.replica.digest:
                self.fail(f"version {manifest.id} arrived with other content than this node applied under that number")
            self.manifest = self.manifest or (manifest if manifest.id == self.replica.id else None)
            return None
        phases = Phases(received_at=time.time())
        if self.store.free_bytes() < self._options.min_free_bytes:
            self.fail(f"no space: version {manifest.id} waits until the disk has {self._options.min_free_bytes >> 20} MiB free")
            return None
        error = await self._fetch(manifest)
        if error:
            self.fail(error)
            return None
        failpoint("verified")
        phases.verified_at = time.time()
        self.manifest = manifest
        self._hold_until = time.monotonic() + HOLD_SECONDS
        await self._apply(phases)
        return phases

    async def _fetch(self, manifest: Manifest) -> str:
        """Bring bundle and rows of a version here, verified; empty, or why not (nothing has changed then)."""
        try:
            bundle = await bundle_of(self._bus, manifest) if manifest.policy_digest != self._bundle_digest else self.bundle
        except Unreadable as error:
            return str(error)
        failpoint("fetched")
        if bundle is not self.bundle:
            errors = check_bundle(bundle)
            if any(e.scope != "location" for e in errors):
                return f"version {manifest.id} is refused: {errors[0].scope} policy: {errors[0].words}"
            self.refused.update({e.policy: f"refused by this node: {e.words}" for e in errors})
        try:
            move = self.replica.inline(manifest) or await self.replica.fetch(self._bus, manifest)
        except Unreadable as error:
            return str(error)
        self._behind.update(move.upsert, move.delete)
        self.bundle, self._bundle_digest = bundle, manifest.policy_digest
        return ""

    @property
    def _loaded_locations(self) -> frozenset[str]:
        return frozenset(p.hash for p in self._loaded.policies if p.scope == "location")

    def _reload_cause(self) -> str:
        """Why nginx must be reloaded; empty: it need not."""
        loaded = {p.hash for p in self._loaded.policies}
        if any(p.hash not in loaded and p.hash not in self.refused for p in self.bundle.policies):
            return "policy"
        return "table-memory" if self._wanted_tables() > self.settings.tables_bytes else ""

    def _wanted_tables(self) -> int:
        return required_tables_bytes(len(self.replica.rows), self.replica.row_bytes)

    def _fit_tables(self) -> None:
        self.settings = replace(self.settings, tables_bytes=max(self.settings.tables_bytes, self._wanted_tables()))

    async def _apply(self, phases: Phases) -> None:
        cause = self._reload_cause()
        if cause == "table-memory":
            await self._reload(cause, phases)
        await self._push_ready(phases)
        if cause == "policy" and time.monotonic() >= self._next_reload:
            await self._reload(cause, phases)
            await self._push_ready(phases, keep_previous=True)

    async def _reload(self, cause: str, phases: Phases | None) -> None:
        self._fit_tables()
        wanted = frozenset(p.hash for p in self.bundle.policies if p.scope == "location") - self.refused.keys()
        rows, digest, behind = self._after(self._ready(wanted))
        header = self._header(digest, complete=not behind)
        first = not self.nginx.pid
        self._next_reload = time.monotonic() + RELOAD_SECONDS
        installed = await self._installer.install(self.settings, self.bundle, header, rows, self.refused)
        self.refused = {h: w for h, w in installed.refused.items() if any(p.hash == h for p in self.bundle.policies)}
        self.last_reload_ok = installed.ok
        if phases is not None:
            phases.tested_at = installed.tested_at or phases.tested_at
        if not installed.ok:
            self.failed_reloads += 1
            self._next_reload = time.monotonic() + RETRY_SECONDS
            self.reloads["revert"] += 1
            self.fail(installed.error)
            return
        self.reloads["start" if first else cause] += 1
        self.last_reload_at = self._installed_at = time.time()
        self._crashes.clear()
        self.generation = installed.generation
        self._loaded = PolicyBundle(policies=tuple(p for p in self.bundle.policies if p.hash not in self.refused))
        for policy, words in self.refused.items():
            self.fail(f"policy {policy}: {words}")
        if phases is not None:
            phases.loaded_at = installed.loaded_at
            phases.reload = cause
        await self._align()

    async def _align(self) -> None:
        """Memory was kept over a reload, or filled from disk, or is another applier's: bring it to what this node believes is live."""
        answer = await self.control.generation()
        same = answer is not None and (answer.version, answer.digest) == (self._live_version, self._live_content)
        if not same or not self._live_content:
            await self._push_all()

    # --- rows

    def _header(self, digest: TableDigest, *, complete: bool) -> Header:
        return Header(
            version=str(self.replica.id),
            digest=self.replica.digest if complete else "",
            rows_digest=digest.hex,
        )

    def _ready(self, loaded: frozenset[str]) -> Split:
        """What of the rows that are behind can go, with these policies loaded."""
        rows = self.replica.rows
        upsert = {k: rows[k] for k in self._behind if k in rows and self.live.get(k) != rows[k]}
        gone = [k for k in self._behind if k not in rows and k in self.live]
        parts = split(upsert, gone, loaded)
        # what waits may replace, or still refer to, what goes: nothing goes before it, unless that takes too long
        return replace(parts, delete=()) if parts.deferred and time.monotonic() < self._hold_until else parts

    def _still_behind(self) -> set[str]:
        rows = self.replica.rows
        return {k for k in self._behind if self.live.get(k) != rows.get(k)}

    def _after(self, parts: Split) -> tuple[dict[str, bytes], TableDigest, set[str]]:
        """(rows, their digest, keys still behind) once `parts` are live."""
        rows = dict(self.live)
        digest = self._live_digest.copy()
        _change(rows, digest, parts.upsert, parts.delete)
        return rows, digest, set(parts.deferred)

    async def _push_ready(self, phases: Phases, *, keep_previous: bool = False) -> None:
        """Push every row that differs from what is live and whose policies are loaded."""
        parts = self._ready(self._loaded_locations)
        self.deferred = parts.deferred
        if not self.generation:
            return
        if self._live_version == str(self.replica.id) and not parts.upsert and not parts.delete:
            phases.live_at = phases.live_at or time.time()
            return
        if await self._push(parts.upsert, parts.delete, keep_previous):
            phases.live_at = time.time()
        failpoint("committed")

    def _files_group(self) -> int | None:
        return grp.getgrnam(self.settings.user).gr_gid if self.settings.user not in ("", "root") else None

    async def _push(self, upsert: dict[str, bytes], delete: Iterable[str], keep_previous: bool) -> bool:
        """Files, memory, journal, in this order; whether the rows are live."""
        delete = tuple(delete)
        for digest, content in files_of(upsert).items():
            self.store.write_file(digest, content, self._files_group())
        version = str(self.replica.id)
        content = self.replica.digest if self._still_behind() <= {*upsert, *delete} else ""
        header = PushHeader(base=self._live_version, version=version, digest=content, keep_previous=keep_previous)
        result = await self.control.push(push_body(header, lines_of(upsert, delete)))
        if result.outcome == "other base":
            result = await self.control.push(self._whole(upsert, delete, version, content))
        if result.outcome == "no memory":
            self.fail(f"version {version}: nginx's table memory is full ({result.detail}); it is made larger")
            self.settings = replace(self.settings, tables_bytes=self.settings.tables_bytes * 2)
            await self._reload("table-memory", None)
            result = await self.control.push(self._whole(upsert, delete, version, content))
        if result.outcome != "live":
            self.fail(f"version {version}: the push failed: {result.outcome} {result.detail}")
            return False
        _change(self.live, self._live_digest, upsert, delete)
        self._live_version, self._live_content = version, content
        self._behind = self._still_behind()
        self._persist(upsert, delete)
        if any(k.startswith("f/") for k in delete):
            self.store.forget_files({k[2:] for k in self.live if k.startswith("f/")})
        if self._names.note(upsert, delete):
            await self.resolve()
        return True

    def _whole(self, upsert: dict[str, bytes], delete: tuple[str, ...], version: str, content: str) -> bytes:
        """A push of everything: what is live, with a change."""
        gone = set(delete)
        rows = {k: v for k, v in self.live.items() if k not in gone} | upsert
        return push_body(PushHeader(base="", version=version, digest=content), lines_of(rows, ()))

    async def _push_all(self) -> None:
        """Bring memory to `live`, whatever is in it."""
        version = self._live_version or str(self.replica.id)
        for digest, content in files_of(self.live).items():
            self.store.write_file(digest, content, self._files_group())
        result = await self.control.push(self._whole({}, (), version, self._live_content))
        if result.outcome != "live":
            self.fail(f"the rows could not be pushed: {result.outcome} {result.detail}")
        elif self._names.rows:
            await self._push_local(self._names.rows, ())

    def _persist(self, upsert: dict[str, bytes], delete: tuple[str, ...]) -> None:
        header = self._header(self._live_digest, complete=not self._behind)
        try:
            size = self.store.append(self.generation, header, upsert, delete)
            if size > JOURNAL_LIMIT:
                self.store.write_rows(self.generation, header, self.live, self._loaded)
        except OSError as error:
            self.fail(f"the last known good could not be written: {error}")

    # --- names

    async def resolve(self) -> None:
        """Ask for all names again, and push what changed."""
        changed, gone = await self._names.refresh()
        if changed or gone:
            self.store.write_local(self._names.rows)
            await self._push_local(changed, gone)

    async def _push_local(self, upsert: dict[str, bytes], delete: Iterable[str]) -> None:
        header = PushHeader(base=self._live_version, version=self._live_version, digest=self._live_content)
        result = await self.control.push(push_body(header, lines_of(upsert, delete)))
        if result.outcome != "live":
            log.warning("name answers could not be pushed", outcome=result.outcome)

    # --- watch over nginx

    async def tick(self) -> Phases | None:
        """Look after nginx and what waits; phases of a version that a delayed reload brought live."""
        if self.generation and not self.nginx.pid:
            log.error("nginx's master is gone; starting another")
            self.fail("nginx's master was gone and was started again")
            await self._start_nginx("recover")
        if time.monotonic() >= self._next_orphans:
            self._next_orphans = time.monotonic() + ORPHAN_SECONDS
            if self.nginx.end_orphans():
                log.warning("workers without a master were told to end")
        self._count_crashes()
        cause = self._reload_cause() if self.manifest is not None else ""
        if cause and time.monotonic() >= self._next_reload:
            phases = Phases(received_at=self.manifest.committed_at if self.manifest else time.time())
            await self._reload(cause, phases)
            await self._push_ready(phases, keep_previous=True)
            return phases
        if self._behind and time.monotonic() >= self._hold_until > 0:
            self._hold_until = 0.0
            await self._push_ready(Phases(received_at=time.time()))
        return None

    def _count_crashes(self) -> None:
        serving, draining = self.nginx.workers()
        now = time.monotonic()
        lost = self._workers - serving - set(draining)
        if time.time() - self._installed_at > 2:
            self._crashes += [now] * len(lost)
        self._crashes = [t for t in self._crashes if now - t < 10]
        self._workers = serving
        if lost and self._crashes:
            log.warning("nginx workers ended and were replaced by the master", count=len(lost))

    @property
    def healthy(self) -> bool:
        """nginx's master lives and has rows."""
        return bool(self.generation and self.nginx.pid)

    def fail(self, words: str) -> None:
        """Note an error for reports; the node goes on with what it has."""
        log.error("not applied", error=words)
        self.last_error, self.last_error_at = words, time.time()

    async def stop(self) -> None:
        if not self._options.stop_nginx:
            return
        if self.nginx.quit() and await self.nginx.wait_gone(5.0) and not self.nginx.orphans():
            return
        self.nginx.kill()


def _change(rows: dict[str, bytes], digest: TableDigest, upsert: dict[str, bytes], delete: Iterable[str]) -> None:
    """Apply a change to rows and to their digest."""
    for key in (*upsert, *delete):
        if key in rows:
            digest.remove(key, rows.pop(key))
    for key, row in upsert.items():
        digest.add(key, row)
        rows[key] = row
