"""Which backends stand beside which as canaries, host by host."""

from __future__ import annotations

from collections.abc import Iterable

from services.compiler.hosts import CanaryEdge
from services.compiler.ingresses import BackendRef, in_order


class Canaries:
    """Kept up to date by `moved`, one host at a time."""

    def __init__(self) -> None:
        self._edges: dict[BackendRef, dict[str, list[CanaryEdge]]] = {}
        """Primary -> host -> edges."""
        self._primaries: dict[BackendRef, set[BackendRef]] = {}
        """Canary -> primaries that it has, or had, an edge with."""

    def moved(self, host: str, old: tuple[CanaryEdge, ...], new: tuple[CanaryEdge, ...]) -> set[BackendRef]:
        """A host has other edges; the backends whose rows change."""
        if old == new:
            return set()
        for edge in old:
            self._edges.get(edge.primary, {}).pop(host, None)
        for edge in new:
            self._edges.setdefault(edge.primary, {}).setdefault(host, []).append(edge)
            self._primaries.setdefault(edge.canary, set()).add(edge.primary)
        return {ref for edge in (*old, *new) for ref in (edge.primary, edge.canary)}

    def beside(self, primary: BackendRef) -> list[CanaryEdge]:
        """A backend's canaries, those of the oldest Ingress first."""
        edges = [e for mine in self._edges.get(primary, {}).values() for e in mine]
        order = {i.ref: n for n, i in enumerate(in_order(list({e.ingress.ref: e.ingress for e in edges}.values())))}
        return sorted(edges, key=lambda e: (order[e.ingress.ref], e.canary.key))

    def of(self, primaries: Iterable[BackendRef]) -> set[BackendRef]:
        """All canaries of these."""
        return {edge.canary for ref in primaries for edges in self._edges.get(ref, {}).values() for edge in edges}

    def primary_of(self, canary: BackendRef) -> BackendRef | None:
        """The first backend that this one stands beside; None: none."""
        return next((p for p in sorted(self._primaries.get(canary, ())) if any(e.canary == canary for e in self.beside(p))), None)
