"""Who refers to whom, so that a change costs what it touches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from services.compiler.ingresses import CATCH_ALL, BackendRef, ReadIngress, in_order

Place = tuple[str, str]
"""(namespace, name)."""


class Graph:
    """Reverse indexes over the Ingresses in effect, and over what the hosts made of them."""

    def __init__(self) -> None:
        self.reads: dict[Place, ReadIngress] = {}
        """The Ingresses in effect."""
        self._by_host: dict[str, set[Place]] = defaultdict(set)
        self._by_secret: dict[Place, set[Place]] = defaultdict(set)
        self._by_backend: dict[BackendRef, set[Place]] = defaultdict(set)
        self._by_service: dict[Place, set[BackendRef]] = defaultdict(set)
        self._needed: dict[BackendRef, set[str]] = defaultdict(set)
        """Backend -> the hosts whose routes may send to it."""

    @staticmethod
    def hosts_of(read: ReadIngress) -> set[str]:
        """Hosts that an Ingress has a say in."""
        hosts = set(read.hosts)
        if read.default_backend is not None and (not read.has_rules or read.canary):
            hosts.add(CATCH_ALL)
        return hosts

    def put(self, place: Place, read: ReadIngress | None) -> tuple[set[str], set[BackendRef]]:
        """Replace an Ingress; returns the hosts and backends that it touches, before and after."""
        hosts: set[str] = set()
        backends: set[BackendRef] = set()
        before = self.reads.pop(place, None)
        for r, add in ((before, False), (read, True)):
            if r is None:
                continue
            its_hosts, its_backends = self.hosts_of(r), set(r.backends())
            hosts |= its_hosts
            backends |= its_backends
            self._index(self._by_host, its_hosts, place, add=add)
            self._index(self._by_secret, r.secrets(), place, add=add)
            self._index(self._by_backend, its_backends, place, add=add)
        if read is not None:
            self.reads[place] = read
        return hosts, backends

    @staticmethod
    def _index(index: dict, keys: Iterable, place: Place, *, add: bool) -> None:  # type: ignore[type-arg]  # any of the three
        for key in keys:
            if add:
                index[key].add(place)
            else:
                index[key].discard(place)
                if not index[key]:
                    del index[key]

    def of_host(self, host: str) -> list[ReadIngress]:
        return in_order([self.reads[p] for p in self._by_host.get(host, ())])

    def of_backend(self, ref: BackendRef) -> list[ReadIngress]:
        return in_order([self.reads[p] for p in self._by_backend.get(ref, ())])

    def hosts(self) -> set[str]:
        return set(self._by_host)

    def users_of_secret(self, secret: Place) -> set[Place]:
        """The Ingresses that name it."""
        return set(self._by_secret.get(secret, ()))

    def hosts_using_secret(self, secret: Place) -> set[str]:
        return {h for p in self.users_of_secret(secret) for h in self.hosts_of(self.reads[p])}

    def need(self, host: str, before: Iterable[BackendRef], after: Iterable[BackendRef]) -> set[BackendRef]:
        """What a host's routes send to has changed; returns the backends to look at again."""
        old, new = set(before), set(after)
        for ref in old - new:
            self._needed[ref].discard(host)
            if not self._needed[ref]:
                del self._needed[ref]
                self._by_service[(ref.namespace, ref.service)].discard(ref)
        for ref in new - old:
            self._needed[ref].add(host)
            self._by_service[(ref.namespace, ref.service)].add(ref)
        return old ^ new

    def needed(self, ref: BackendRef) -> bool:
        return ref in self._needed

    def backends_of_service(self, service: Place) -> set[BackendRef]:
        return set(self._by_service.get(service, ()))

    def all_needed(self) -> set[BackendRef]:
        return set(self._needed)
