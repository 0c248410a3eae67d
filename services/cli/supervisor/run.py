"""The supervisor: everything is started, watched, restarted, and in the end stopped; nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Coroutine
from typing import IO

import msgspec

from services.cli.barrier import Barrier, Lack, TimeUp
from services.cli.errors import Stop
from services.cli.state import StateDirectory
from services.cli.supervisor import leftovers, logfiles, nats, plan, ports, preflight
from services.cli.supervisor.child import Child, Exit, Spec
from services.cli.supervisor.events import Teller
from services.cli.supervisor.plan import UpOptions
from services.shared.bus.jetstream import JetStreamBus
from services.shared.contracts.question import CoverAnswer
from services.shared.natsauth.authority import BadAuthority
from services.webhook.certificate import make_certificate

GRACE_SECONDS = 8.0
LOOP_EXITS = 3


def check(options: UpOptions) -> None:
    """Raises Stop with the first thing that is not as it must be."""
    flags = options.flags
    for sentence in (
        ports.clash(plan.wanted_ports(options)),
        preflight.missing_software(options.demo, streams=bool(flags.tcp_services_configmap or flags.udp_services_configmap)),
        preflight.bad_state(options.state),
        "" if options.demo or options.manifests is None else preflight.bad_manifests(options.manifests),
    ):
        if sentence:
            raise Stop(sentence)


def lock(state: StateDirectory) -> IO[str]:
    """One `up` for one state directory."""
    try:
        file = state.lock_file.open("a+")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Stop(f"another `sluice up` runs with the state directory {state.root}; stop it, or choose another --state") from None
    except OSError as error:
        raise Stop(preflight.disk_sentence(error, state.root)) from None
    return file


class Supervisor:
    """One `sluice up`."""

    def __init__(self, options: UpOptions, say: Teller) -> None:
        self._options = options
        self._state = options.state
        self._say = say
        self._children: dict[str, Child] = {}
        self._records: dict[str, leftovers.Record] = {}
        self._url = ""
        self._began = time.monotonic()
        self._rows = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Until SIGINT or SIGTERM; the exit status."""
        stop = asyncio.Event()
        why: list[str] = []
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, _stop, why, stop, number)
        held = lock(self._state)
        try:
            self._replace_leftovers()
            self._prepare()
            self._write_up(ready=False)
            await self._serve(stop)
        except OSError as error:
            raise Stop(preflight.disk_sentence(error, self._state.root)) from None
        finally:
            self._say("stopping", why=why[0] if why else "an error")
            await self._end()
            held.close()
        return 0

    def _replace_leftovers(self) -> None:
        """What a killed supervisor left: services end; nginx of nodes that go on keeps serving and is adopted."""
        left = leftovers.children(self._state)
        names = set(plan.node_names(self._options))
        strangers = [p for d in leftovers.nodes_on_disk(self._state) if d.name not in names for p in leftovers.nginx_processes(d)]
        if left or strangers:
            self._say("warning", text=f"ending {len(left) + len(strangers)} processes that an earlier `up` left behind")
            leftovers.end([*left, *strangers], GRACE_SECONDS)
        ours = {p.pid for n in names for p in leftovers.nginx_processes(self._state.node(n))}
        sentence = ports.taken(plan.wanted_ports(self._options), ours)
        if sentence:
            raise Stop(sentence)

    def _prepare(self) -> None:
        try:
            self._url = nats.prepare(self._state, plan.node_names(self._options), plan.GROUP)
            make_certificate(self._state.webhook)
        except BadAuthority as error:
            raise Stop(str(error)) from None

    def _write_up(self, *, ready: bool) -> None:
        self._state.write_up(plan.up_file(self._options, ready=ready, nats_url=self._url, pid=os.getpid()))

    async def _serve(self, stop: asyncio.Event) -> None:
        binary = preflight.nats_binary() or "nats-server"
        work: list[Coroutine[None, None, None]] = [
            self._live(spec) for spec in plan.specs(self._options, binary, self._url, nats.health_url(self._state))
        ]
        work += [self._until_ready(), logfiles.keep_bounded(self._state)]
        tasks: set[asyncio.Task[None]] = {asyncio.create_task(c) for c in work}
        stopping = asyncio.create_task(_set(stop))
        try:
            while not stopping.done():
                done, _ = await asyncio.wait({*tasks, stopping}, return_when=asyncio.FIRST_COMPLETED)
                tasks -= done
                for task in done:
                    task.result()
        finally:
            stopping.cancel()
            self._tasks = tasks

    async def _live(self, spec: Spec) -> None:
        child = Child(spec, self._started, self._ended)
        self._children[spec.name] = child
        await child.run()

    def _started(self, name: str, pid: int) -> None:
        self._say("started", process=name, pid=pid, lives=self._children[name].lives)
        record = leftovers.record(name, pid)
        if record is not None:
            self._records[name] = record
            leftovers.write_records(self._state, self._records.values())

    def _ended(self, end: Exit) -> None:
        fields = msgspec.structs.asdict(end)
        if end.short_lives >= LOOP_EXITS:
            log = str(self._children[end.name].spec.log)
            self._say("crash-loop", process=end.name, exits=end.short_lives, how=end.how, log=log, tail=end.tail,
                      restart_in_seconds=end.restart_in_seconds)  # fmt: skip
        else:
            self._say("exited", process=end.name, **{k: v for k, v in fields.items() if k != "name"})

    # --- ready

    async def _until_ready(self) -> None:
        """Everything that the source held at the start is live on every node: then up.json says so."""
        self._say("waiting", **{"for": "nats-server"})
        async with JetStreamBus(self._state.bus(self._url, "command"), name="up") as bus:
            await bus.ensure()
            while True:
                goal = await self._attempt(bus)
                if goal is not None:
                    break
        self._write_up(ready=True)
        up = plan.up_file(self._options, ready=True, nats_url=self._url, pid=os.getpid())
        self._say(
            "ready",
            seconds=round(time.monotonic() - self._began, 2),
            version=f"{goal.epoch}.{goal.number}",
            rows=self._rows,
            nodes=[msgspec.structs.asdict(n) for n in up.nodes],
        )
        if self._options.demo:
            from services.cli.demo.hints import hints

            self._say("hints", text=hints(up))

    async def _attempt(self, bus: JetStreamBus) -> CoverAnswer | None:
        """One try of a minute; None: not yet."""
        barrier = Barrier(
            bus,
            group=plan.GROUP,
            expected=plan.node_names(self._options),
            deadline=time.monotonic() + 60,
            watching=lambda step, lacking: self._say("waiting", **{"for": _waiting_for(str(step), lacking)}),
        )
        try:
            source = await barrier.source()
            cover = await barrier.cover(source.sequence)
        except TimeUp:
            return None
        if cover.error:
            self._say("waiting", **{"for": cover.error})
            return None
        lacking = [lack for lack in await barrier.nodes(cover) if not lack.final]
        if lacking or not all(r.ready for r in barrier.reports.values()):
            await asyncio.sleep(0.05)
            return None
        from services.shared.versions.read import head

        newest = await head(bus, plan.GROUP)
        self._rows = newest[0].rows if newest else 0
        return cover

    # --- end

    async def _end(self) -> None:
        """Appliers first, with their nginx, then services, the bus last."""
        with contextlib.suppress(OSError):
            self._write_up(ready=False)
        nodes = set(plan.node_names(self._options))
        order = [
            [c for n, c in self._children.items() if n in nodes],
            [c for n, c in self._children.items() if n not in nodes and n != "nats"],
            [c for n, c in self._children.items() if n == "nats"],
        ]
        for group in order:
            await asyncio.gather(*(child.end(GRACE_SECONDS) for child in group))
        left = [p for name in nodes for p in leftovers.nginx_processes(self._state.node(name))]
        if left:
            await asyncio.to_thread(leftovers.end, left, 2.0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._state.children_file.unlink(missing_ok=True)
        self._say("stopped")


async def _set(event: asyncio.Event) -> None:
    await event.wait()


def _stop(why: list[str], stop: asyncio.Event, number: signal.Signals) -> None:
    why.append(number.name)
    stop.set()


def _waiting_for(step: str, lacking: object) -> str:
    if isinstance(lacking, list) and lacking and isinstance(lacking[0], Lack):
        return "; ".join(f"{lack.node}: {lack.reason}" for lack in lacking)
    return f"the {step}"
