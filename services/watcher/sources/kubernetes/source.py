"""All collections of one API server as one source."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from collections.abc import Collection as Places
from typing import Final

from services.shared.contracts.objects import AnyObject, Key
from services.shared.contracts.problem import Problem, Reason
from services.shared.flags import Flags
from services.shared.kube.client import Api, KubeError
from services.shared.telemetry.lifecycle import until
from services.shared.telemetry.logs import get_logger
from services.watcher.changes import Changes
from services.watcher.sources.kubernetes.kinds import WATCHED, Collection
from services.watcher.sources.kubernetes.reflector import Reflector
from services.watcher.sources.port import Hint

log = get_logger(__name__)

ASK_AGAIN_SECONDS: Final = (0.03, 1.0)
"""First and longest pause between two reads of a barrier."""
PATIENCE: Final = 0.4
"""After this share of a barrier's time a watch that still lacks something is given up for a list."""


class KubernetesSource:
    """See the module."""

    def __init__(self, api: Api, flags: Flags, *further: Flags) -> None:
        self._api = api
        self._changes: dict[Key, AnyObject | None] = {}
        self._news = asyncio.Event()
        self._reflectors = [Reflector(api, c, self._take) for c in collections(flags, *further)]

    @property
    def name(self) -> str:
        return f"kubernetes {self._api.server}"

    @property
    def complete(self) -> bool:
        return all(r.listed for r in self._reflectors)

    @property
    def problems(self) -> tuple[Problem, ...]:
        found = [
            Problem(reason=Reason.SOURCE_UNREACHABLE, field=r.name, message=r.trouble, object=self.name)
            for r in self._reflectors
            if r.trouble
        ]
        for reflector in self._reflectors:
            found += [
                Problem(reason=Reason.INVALID_OBJECT, field=bad.field, message=bad.message, example=bad.example, object=str(key))
                for key, bad in sorted(reflector.invalid.items())
            ]
        return tuple(found)

    def adopt(self, former: Mapping[Key, AnyObject]) -> None:
        """Nothing to do: the lists say what is there, and the publisher what the stream has besides."""

    def _take(self, changes: Mapping[Key, AnyObject | None]) -> None:
        self._changes.update(changes)
        self._news.set()

    async def hints(self, stop: asyncio.Event) -> AsyncIterator[Hint]:
        running = asyncio.create_task(until(stop, *(r.run() for r in self._reflectors)))
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                news = asyncio.create_task(self._news.wait())
                done, _ = await asyncio.wait({news, stopping, running}, return_when=asyncio.FIRST_COMPLETED)
                news.cancel()
                if running in done:
                    running.result()
                self._news.clear()
                if not stop.is_set():
                    yield Hint(everything=True)
        finally:
            stopping.cancel()
            running.cancel()
            await asyncio.gather(running, stopping, return_exceptions=True)

    async def look(self, places: Places[str] | None = None) -> Changes:
        changes, self._changes = self._changes, {}
        return Changes(objects=changes)

    async def catch_up(self, seconds: float) -> str:
        try:
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(_until_caught_up(r, seconds * PATIENCE) for r in self._reflectors))
        except TimeoutError:
            behind = [r.name for r in self._reflectors if r.trouble or not r.listed]
            return f"the watch has not caught up with the API server within {seconds:g} s{': ' + ', '.join(behind) if behind else ''}"
        except KubeError as error:
            return f"the API server cannot be asked: {error}"
        return ""


async def _until_caught_up(reflector: Reflector, patience: float) -> None:
    """A watch may have lost an event, or be dead without a word: nothing but this comparison would ever notice."""
    pause, longest = ASK_AGAIN_SECONDS
    given_up_at = asyncio.get_running_loop().time() + patience
    while not (reflector.listed and await reflector.caught_up()):
        if asyncio.get_running_loop().time() > given_up_at:
            reflector.give_up()
            given_up_at = float("inf")
        await asyncio.sleep(pause)
        pause = min(pause * 2, longest)


def collections(flags: Flags, *further: Flags) -> list[Collection]:
    """What must be watched: all that these flags let in, and nothing else. `further`: of other groups of nodes."""
    found = [Collection(kind=kind, namespace=flags.watch_namespace) for kind in WATCHED]
    if flags.watch_namespace_selector:
        found.append(Collection(kind="Namespace"))
    found += [named for f in (flags, *further) for named in _named(f, flags.watch_namespace)]
    return list(dict.fromkeys(found))


def _named(flags: Flags, watched: str) -> Iterator[Collection]:
    """What flags name, where it is not `watched` with everything else (empty: all namespaces are)."""
    for reference in (flags.configmap, flags.tcp_services_configmap, flags.udp_services_configmap):
        namespace, _, name = reference.partition("/")
        if name or reference == flags.configmap:
            yield Collection(kind="ConfigMap", namespace=namespace, name=name)
    if not watched:
        return
    for kind, reference in (("Secret", flags.default_ssl_certificate), ("Service", flags.default_backend_service)):
        namespace, _, name = reference.partition("/")
        if name and namespace != watched:
            yield Collection(kind=kind, namespace=namespace, name=name)
            if kind == "Service":
                yield Collection(kind="EndpointSlice", namespace=namespace)
