"""The applier of one node: it moves from version to version, and keeps nginx serving whatever happens to it.

Rows go at once; new policies go by a reload, at most one a second. A row that needs a policy which is not loaded (yet) keeps its
previous form.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from services.applier.control import Control, Generation
from services.applier.decide import Decision, decide
from services.applier.gate import check_bundle
from services.applier.guard import Malformed, look, too_large, unnamed
from services.applier.install import Installed, Installer, failpoint, made_of
from services.applier.live import Live
from services.applier.nginx import Nginx, allow_many_files, worker_user
from services.applier.nodeconf import NodeSettings, prepare_node, required_tables_bytes
from services.applier.options import ApplierOptions
from services.applier.policies import Policies
from services.applier.rows import Split
from services.applier.store import Spoiled, Store, Stored
from services.applier.watch import CRASH_SECONDS, CRASHES, Watch
from services.shared.bus.port import Bus
from services.shared.contracts.version import Manifest, VersionId
from services.shared.sealing.ring import KeyRing
from services.shared.telemetry.logs import get_logger
from services.shared.versions.read import Unreadable, bundle_of
from services.shared.versions.replica import Replica

log = get_logger(__name__)

RELOAD_SECONDS: Final = 1.0
"""Between two reloads."""
RETRY_SECONDS: Final = 5.0
"""Before an installation that failed as a whole is tried again."""
START_RETRY_SECONDS: Final = 1.0
PUSH_RETRY_SECONDS: Final = 0.5


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

    def __init__(self, options: ApplierOptions, bus: Bus, nginx: Nginx | None = None, control: Control | None = None) -> None:
        """`nginx`, `control`: others than this machine's, for a fleet of nodes without nginx (tests/bench)."""
        self._options = options
        self._bus = bus
        self.store = Store(options.directory)
        self.nginx = nginx or Nginx(options.nginx, options.directory)
        self.settings = NodeSettings(
            directory=options.directory,
            http_port=options.http_port,
            https_port=options.https_port,
            address=options.address,
            stream_port_offset=options.stream_port_offset,
            metrics=options.flags.enable_metrics,
        )
        self.control = control or Control(self.settings.control_socket)
        self.ring = KeyRing()
        """What rows with keys and passwords are opened with; filled once the compiler has sent it."""
        self.live = Live(self.store, self.control, self.ring, self.fail)
        self.watch = Watch(self.nginx, self.control)
        self._installer = Installer(self.store, self.nginx, self.control)
        self.manifest: Manifest | None = None
        """The newest version taken; its rows are `live.target`'s."""
        self.policies = Policies(options.node)
        self._made_of = ""
        self.generation = 0
        """That nginx runs; 0: none that this applier knows."""
        self.foreign = False
        """nginx runs what this applier cannot read from the disk: it is left alone until there is a version to replace it."""
        self._floor = VersionId(0, 0)
        self.reloads: Counter[str] = Counter()
        self.failed_reloads = 0
        self.last_reload_ok = True
        self.last_reload_at = 0.0
        self.last_error = ""
        self.last_error_at = 0.0
        self.head = VersionId(0, 0)
        self._next_reload = 0.0
        self._next_start = 0.0
        self._next_push = 0.0
        self._unpushed: Phases | None = None
        """Of a version whose rows did not reach nginx: tried again."""

    @property
    def live_id(self) -> VersionId:
        """The version that is live, whatever of it waits for policies; (0, 0): none."""
        epoch, _, number = self.live.version.partition(".") if self.generation else ("", "", "")
        return min(self.replica.id, VersionId(int(epoch), int(number))) if epoch else VersionId(0, 0)

    @property
    def replica(self) -> Replica:
        """The newest version's rows."""
        return self.live.target

    @property
    def deferred(self) -> dict[str, str]:
        return self.live.deferred

    def lacks(self, manifest: Manifest) -> bool:
        """Whether this version has not been taken: it is newer, or what was read from the disk lacks policies that were not loaded then."""
        if manifest.id != self.replica.id:
            return manifest.id > self.replica.id
        return manifest.digest == self.replica.digest and manifest.policy_digest != self.policies.digest

    # --- start

    async def start(self) -> None:
        """Serve from the disk, with nothing else there. The store is locked."""
        allow_many_files()
        self.settings = replace(self.settings, user=worker_user(self._options.directory))
        self.live.set_worker_user(self.settings.user)
        prepare_node(self.settings)
        readable: list[Stored] = []
        for generation in self.store.candidates():
            try:
                readable.append(self.store.read(generation))
            except Spoiled as error:
                self.fail(str(error))
                continue
            if await self._serve_stored(readable[-1]):
                return
        if self.nginx.pid or not readable:
            await self._leave_alone(await self.control.generation())
        else:  # nothing starts, whatever the generation (a port is taken): the newest is tried again by and by
            self._believe(readable[0])

    def _believe(self, stored: Stored) -> None:
        """Take a generation for what nginx runs, or will once it is started."""
        self.policies.believe(stored.bundle)
        self._made_of = stored.made.of
        self.settings = replace(self.settings, tables_bytes=stored.made.tables_bytes)
        self.live.restore(stored)
        self.live.installed(stored.generation, frozenset())
        self.generation = stored.generation
        # a version some of whose rows were waiting is not held yet: it is taken again when the bus has it
        held = stored.id if stored.digest else VersionId(stored.id.epoch, stored.id.number - 1)
        self.live.target = Replica(self.ring, held, stored.digest, dict(stored.rows))
        if stored.generation != self.store.current:
            self.store.switch(stored.generation)

    async def _serve_stored(self, stored: Stored) -> bool:
        """Have nginx serve this generation, by adopting one that does; false: it cannot be had to."""
        self._believe(stored)
        port_lost = not self.nginx.pid and self._installer.lost(self.settings, stored.bundle)
        if (self._settings_changed or port_lost) and await self._reload("settings", None):
            return True
        answer = await self.control.generation() if self.nginx.pid else None
        if answer is not None and answer.generation == stored.generation:
            await self.live.align()
            log.info("nginx runs and is adopted", generation=stored.generation, version=self.live.version)
            return True
        return await self._start_nginx("recover" if self.nginx.pid else "start")

    @property
    def _settings_changed(self) -> bool:
        return self._made_of != made_of(self.settings)

    async def _leave_alone(self, running: Generation | None) -> None:
        """The disk has nothing to serve from; what runs, if anything does, goes on."""
        self.generation = 0
        self.policies.forget()
        self.live.forget()
        self.foreign = running is not None
        if running is not None:
            epoch, _, number = running.version.partition(".")
            self._floor = VersionId(int(epoch), int(number)) if epoch.isdigit() and number.isdigit() else self._floor
            self.fail(f"nginx goes on with version {running.version}, of which nothing on disk can be used")

    async def _start_nginx(self, cause: str) -> bool:
        """Start (or reload) on what is current; rows come from the disk where memory is empty."""
        if self.nginx.pid:
            self.nginx.reload()
        else:
            words = await self.nginx.start(self.settings.sockets)
            if words:
                self.fail(f"nginx does not start: {words}")
                return False
        # with settings that are not in effect yet the probe would ask at another port
        error = await self._installer.confirm(self.settings, self.generation, probe=not self._settings_changed)
        if error:
            self.fail(error)
            return False
        self.nginx.end_orphans()
        self.reloads[cause] += 1
        self.watch.crashes.installed(time.monotonic())
        await self.live.align()
        return True

    # --- versions

    async def take(self, manifest: Manifest) -> Phases | None:
        """Move to a version: rows now, policies as soon as may be. None: it is not for us, or not newer, or cannot be had."""
        if manifest.group != self._options.group:
            self.fail(f"version {manifest.id} is for group {manifest.group}, this node is of {self._options.group}")
            return None
        self.head = max(self.head, manifest.id)
        if not self.lacks(manifest) or manifest.id < self._floor:
            if manifest.id == self.replica.id and manifest.digest != self.replica.digest and self.replica.digest:
                self.fail(f"version {manifest.id} arrived with other content than this node applied under that number")
            self.manifest = self.manifest or (manifest if manifest.id == self.replica.id else None)
            return None
        phases, again = Phases(received_at=time.time()), manifest.id == self.replica.id
        error = self._no_room(manifest) or await self._fetch(manifest)
        if error:
            self.fail(error)
            return None
        failpoint("verified")
        phases.verified_at = time.time()
        self.manifest = manifest
        if again:
            return None  # its rows are live; `tick` installs what it lacks
        await self._apply(phases)
        return phases

    def _no_room(self, manifest: Manifest) -> str:
        """Before anything is touched."""
        if self.store.free_bytes() < self._options.min_free_bytes:
            return f"no space: version {manifest.id} waits until the disk has {self._options.min_free_bytes >> 20} MiB free"
        return too_large(manifest, required_tables_bytes(manifest.rows, manifest.row_bytes), self._options.max_tables_bytes)

    async def _fetch(self, manifest: Manifest) -> str:
        """Bring bundle and rows of a version here, verified; empty, or why not (nothing has changed then)."""
        try:
            known = self.policies.newest
            bundle = await bundle_of(self._bus, manifest) if manifest.policy_digest != self.policies.digest else known
            failpoint("fetched")
            refused: dict[str, str] = {}
            if bundle is not known:
                errors = check_bundle(bundle)
                if any(e.scope != "location" for e in errors):
                    return f"version {manifest.id} is refused: {errors[0].scope} policy: {errors[0].words}"
                refused = {e.policy: f"refused by this node: {e.words}" for e in errors}
            words = await self._move(manifest)
        except (Unreadable, msgspec.DecodeError) as error:
            return f"version {manifest.id} cannot be read: {error}"
        if not words:
            self.policies.take(bundle, manifest.policy_digest, refused)
        return words and f"version {manifest.id} is refused: {words}"

    async def _move(self, manifest: Manifest) -> str:
        """Move the rows; empty, or what is wrong with them (they stay as they were then)."""
        words = unnamed(manifest.delta.delete if manifest.delta else ())
        if words:
            return words
        held = self.replica
        if (manifest.id, manifest.digest) == (held.id, held.digest):
            return ""
        try:
            move = held.inline(manifest, look) or await held.fetch(self._bus, manifest, look)
        except Malformed as error:
            return str(error)
        self.live.behind.update(move.upsert, move.delete)
        return ""

    def _decide(self) -> Decision:
        return decide(
            bundle=self.policies.newest,
            loaded=self.policies.loaded,
            refused=self.policies.refused.keys() | self.policies.held(self.manifest),
            tables_wanted=self._wanted_tables(),
            tables_bytes=self.settings.tables_bytes,
            settings_changed=bool(self.generation)
            and (self._settings_changed or self._installer.freed(self.settings, self.policies.loaded)),
            rows_behind=bool(self.live.behind),
        )

    def _wanted_tables(self) -> int:
        return min(self._options.max_tables_bytes, required_tables_bytes(len(self.replica.rows), self.replica.row_bytes))

    async def _apply(self, phases: Phases) -> None:
        decision = self._decide()
        if decision.grow_first:
            await self._reload(decision.reload, phases)
        await self._push_ready(phases)
        if decision.reload and not decision.grow_first and time.monotonic() >= self._next_reload:
            await self._reload(decision.reload, phases)
            await self._push_ready(phases, keep_previous=True)

    # --- reloads

    async def _reload(self, cause: str, phases: Phases | None) -> bool:
        """Install the newest version's policies, as far as they are let in; whether nginx took them."""
        policies = self.policies
        bundle = policies.installable(policies.held(self.manifest), self.live.named_policies)
        self.settings = replace(self.settings, tables_bytes=max(self.settings.tables_bytes, self._wanted_tables()))
        rows, header = self.live.after(self._plan(policies.nameable(bundle)))
        first = not self.nginx.pid
        self._next_reload = time.monotonic() + RELOAD_SECONDS
        installed = await self._installer.install(self.settings, bundle, policies.stand_in, header, rows, policies.refused)
        policies.judged(installed.refused)
        self.last_reload_ok = installed.ok
        if phases is not None:
            phases.tested_at = installed.tested_at or phases.tested_at
        if not installed.ok:
            self.failed_reloads += 1
            self._next_reload = time.monotonic() + RETRY_SECONDS
            self.reloads["revert"] += 1
            self.fail(installed.error)
            return False
        self.reloads["start" if first else cause] += 1
        if phases is not None:
            phases.loaded_at, phases.reload = installed.loaded_at, cause
        await self._installed(installed)
        return True

    async def _installed(self, installed: Installed) -> None:
        self.last_reload_at = time.time()
        self.policies.installed(installed.bundle)
        self._made_of, self.generation, self.foreign = installed.made_of, installed.generation, False
        self.live.installed(installed.generation, self.policies.fresh)
        self.watch.crashes.installed(time.monotonic())
        for policy, words in self.policies.refused.items():
            self.fail(f"policy {policy}: {words}")
        for words in installed.taken:
            self.fail(f"a TCP or UDP service is not served here: {words}")
        await self.live.align()

    async def _undo_installation(self) -> None:
        """Workers crash since the last installation: go back to the policies before it, and refuse those that it brought."""
        words = f"nginx workers crashed more than {CRASHES} times in {CRASH_SECONDS:g} s after it was loaded"
        fresh = self.policies.fresh
        self.watch.crashes.installed(time.monotonic())
        if not fresh:
            self.fail("nginx workers crash; the last installation brought no new policy to go back from")
            return
        log.error("nginx workers crash; going back", policies=sorted(fresh))
        self.policies.refused |= dict.fromkeys(fresh, words)
        self.live.undo()
        await self._reload("revert", None)
        await self._push_ready(None)

    # --- rows

    def _plan(self, loaded: frozenset[str]) -> Split:
        pinned = bool(self.manifest and self.manifest.pinned)
        return self.live.plan(loaded, self.policies.refused, time.monotonic(), pinned=pinned)

    async def _push_ready(self, phases: Phases | None, *, keep_previous: bool = False) -> None:
        """Push every row that differs from what is live and whose policies are loaded."""
        parts = self._plan(self.policies.locations)
        self.live.deferred = parts.deferred
        if not self.generation:
            return
        if self.live.version != str(self.replica.id) or parts.upsert or parts.delete:
            result = await self.live.push(parts, keep_previous=keep_previous)
            if result.outcome == "no memory" and await self._grow(result.detail):
                result = await self.live.push(parts, keep_previous=keep_previous)
            if result.outcome != "live":
                self.fail(f"version {self.replica.id}: the push failed: {result.outcome} {result.detail}")
                self._unpushed = phases or Phases(received_at=time.time())
                self._next_push = time.monotonic() + PUSH_RETRY_SECONDS
                return
        self._unpushed = None
        if phases is not None:
            phases.live_at = phases.live_at or time.time()
        failpoint("committed")

    async def _grow(self, detail: str) -> bool:
        """Make nginx's table memory larger by a reload; false: it must not grow, or nginx did not take it."""
        wanted = self.settings.tables_bytes * 2
        if wanted > self._options.max_tables_bytes:
            self.fail(f"nginx's table memory is full ({detail}), and {self._options.max_tables_bytes >> 20} MiB are allowed")
            return False
        log.warning("nginx's table memory is full; it is made larger", bytes=wanted, detail=detail)
        self.settings = replace(self.settings, tables_bytes=wanted)
        return await self._reload("table-memory", None)

    # --- watch over nginx

    async def tick(self) -> Phases | None:
        """Look after nginx and what waits; phases of a version that a delayed reload brought live."""
        now = time.monotonic()
        if self.generation and not self.nginx.pid and now >= self._next_start:
            await self._replace_master()
        self.watch.orphans(now)
        self.watch.workers(now)
        if self.watch.crashes.loop(now):
            await self._undo_installation()
        decision = self._decide()
        if decision.reload and self.policies.newest.policies and now >= self._next_reload:
            phases = Phases(received_at=self.manifest.committed_at if self.manifest else time.time())
            await self._reload(decision.reload, phases)
            await self._push_ready(phases, keep_previous=True)
            return phases
        phases_late = self._unpushed
        if (phases_late is not None and now >= self._next_push) or self.live.due(now):
            await self._push_ready(phases_late)
            return phases_late
        return None

    async def _replace_master(self) -> None:
        log.error("nginx's master is gone; starting another")
        self.fail("nginx's master was gone and was started again")
        if await self._start_nginx("recover") or await self._reload("recover", None):  # the disk may be what is wrong: from memory, then
            return
        self._next_start = time.monotonic() + START_RETRY_SECONDS
        self._made_of = ""  # nothing is proven of what runs, if anything does: it is installed anew as soon as may be

    async def look_for_hangs(self) -> None:
        """May run beside `tick`: it only ends processes."""
        words = await self.watch.hung()
        if words:
            self.fail(words)

    @property
    def healthy(self) -> bool:
        """nginx's master lives and has rows."""
        return bool((self.generation or self.foreign) and self.nginx.pid)

    def fail(self, words: str) -> None:
        """Note an error for reports; the node goes on with what it has."""
        log.error("not applied", error=words)
        self.last_error, self.last_error_at = words, time.time()

    async def stop(self) -> None:
        if not self._options.stop_nginx:
            return
        if self.nginx.quit() and await self.nginx.wait_gone(self._options.drain_seconds) and not self.nginx.orphans():
            return
        self.nginx.kill()
