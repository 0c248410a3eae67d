"""Staged rollout, as a pure state machine: the head's policies, what nodes report and the time in; the group's gate out.

Each new policy goes its own way: canaries, a share of the nodes, all. So a refused one halts alone, and a stream of new ones holds up
nobody. Two compilers that see the same come to the same gate; `merge` settles what one saw earlier.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from msgspec.structs import replace

from services.shared.contracts.report import NodeReport
from services.shared.contracts.rollout import Gate, Waiting, lets_in, position
from services.shared.contracts.version import Manifest

SHARE_PERCENT: Final = 25
"""Of the nodes, between the canaries and all."""
SOAK_SECONDS: Final = 2.0
"""How long all nodes that are let in must have run a policy before the next ones are."""


class Rollout:
    """One group's. `canaries`: names of the nodes that come first; none, or none of them ready: one is chosen by its name's hash."""

    def __init__(self, *, soak_seconds: float = SOAK_SECONDS, canaries: Collection[str] = ()) -> None:
        self._soak_seconds = soak_seconds
        self._named = frozenset(canaries)
        self.gate: Gate | None = None
        """None: before the first `take` or `resume`."""
        self._policies: Mapping[str, str] = {}
        """Of the gate's bundle: hash -> scope."""
        self._bundles: dict[str, set[str]] = {}
        """Waiting policy -> digests of the bundles it is known to be in: a report of one of them speaks of it."""
        self._since: dict[str, float] = {}
        """Waiting policy -> when all nodes that are let in first ran it."""
        self._known: set[str] = set()
        """Every node ever heard of: one that is silent now may come back with what was stored meanwhile."""

    # --- what it hears

    def resume(self, gate: Gate, policies: Mapping[str, str]) -> None:
        """Go on from a stored gate. `policies`: of its bundle; empty where it cannot be had: all of the next bundle's are new then."""
        self._become(gate, policies)

    def know(self, nodes: Collection[str]) -> None:
        """There are these nodes, whether or not they report now."""
        self._known.update(nodes)

    def follows(self, head: Manifest) -> bool:
        """Whether the gate is this version's, so that it need not be taken."""
        gate = self.gate
        return gate is not None and gate.policy_digest == head.policy_digest and not (head.pinned and gate.waiting)

    def take(self, head: Manifest, policies: Mapping[str, str]) -> None:
        """Another bundle is the head's (hash -> scope). The first one ever is open to all, and so is a rollback: it is an emergency."""
        before = self.gate
        gate = Gate(group=head.group, epoch=head.epoch, number=head.number, policy_digest=head.policy_digest)
        if before is not None and not head.pinned:
            fresh = {p: self._in_place_of(p, policies) for p in sorted(policies.keys() - self._policies.keys())}
            under_way = {p: w for p, w in before.waiting.items() if p in policies}
            gate = replace(gate, canaries=before.canaries if before.waiting else (), waiting=fresh | under_way)
        self._become(gate, policies)

    def _in_place_of(self, policy: str, policies: Mapping[str, str]) -> Waiting:
        """Where a new policy begins. A global one that replaces another on its way goes on from there, its soak included: there is always
        exactly one of a scope, location policies wait for it, and edits that never end would begin the rollout of all anew each time."""
        before = self.gate.waiting if self.gate is not None else {}
        scope = policies[policy]
        for gone, waiting in before.items():
            if scope != "location" and self._policies.get(gone) == scope and gone not in policies and not waiting.halted:
                if gone in self._since:
                    self._since[policy] = self._since[gone]
                return waiting
        return Waiting()

    def merge(self, stored: Gate) -> None:
        """Another compiler's gate for the same bundle: what either has let in stays let in."""
        gate = self.gate
        if gate is None or stored.policy_digest != gate.policy_digest:
            return
        waiting = {
            p: Waiting(percent=max(w.percent, stored.waiting[p].percent), halted=w.halted or stored.waiting[p].halted)
            for p, w in gate.waiting.items()
            if p in stored.waiting
        }
        for policy in [p for p, w in gate.waiting.items() if waiting.get(p) != w]:
            self._since.pop(policy, None)
        self.gate = replace(gate, canaries=tuple(sorted({*gate.canaries, *stored.canaries})), waiting=waiting)

    def _become(self, gate: Gate, policies: Mapping[str, str]) -> None:
        self.gate, self._policies = gate, policies
        self._bundles = {p: self._bundles.get(p, set()) | {gate.policy_digest} for p in gate.waiting}
        self._since = {p: since for p, since in self._since.items() if p in gate.waiting}

    # --- how it moves

    def step(self, nodes: Mapping[str, NodeReport], now: float) -> float | None:
        """Open what may be opened. `nodes`: the live ones' reports, by name; `now`: monotonic seconds, as is the answer: when to look again
        though nothing is reported; None: not by time."""
        self._known.update(nodes)
        if self.gate is None or not self.gate.waiting:
            return None
        self.gate = replace(self.gate, canaries=self._canaries(self.gate, nodes))
        moved = {p: self._moved(self.gate, p, w, nodes, now) for p, w in self.gate.waiting.items()}
        self._become(replace(self.gate, waiting={p: w for p, w in moved.items() if w is not None}), self._policies)
        return min((since + self._soak_seconds for since in self._since.values()), default=None)

    def _canaries(self, gate: Gate, nodes: Mapping[str, NodeReport]) -> tuple[str, ...]:
        """Those there are, while one of them can try a policy; else others besides."""
        present = [nodes[n] for n in gate.canaries if n in nodes]
        if any(n.ready or any(self._runs(n, p) for p in gate.waiting) for n in present):
            return gate.canaries
        ready = {n.node for n in nodes.values() if n.ready}
        chosen = self._named if self._named & ready else sorted(ready, key=lambda n: (position(n), n))[:1]
        return tuple(sorted({*gate.canaries, *chosen}))

    def _moved(self, gate: Gate, policy: str, waiting: Waiting, nodes: Mapping[str, NodeReport], now: float) -> Waiting | None:
        """How far the policy is now; None: open to all."""
        halted = self._halted(policy, waiting.halted, nodes)
        if halted:
            self._since.pop(policy, None)
            return replace(waiting, halted=halted)
        if len(self._known) == 1:
            return None
        inside = [n for n in nodes.values() if lets_in(gate, n.node, waiting)]
        # a node that was out of order before it had the policy says nothing of it
        tried = [n for n in inside if n.ready or self._runs(n, policy)]
        if not tried or not all(n.ready and self._runs(n, policy) for n in tried):
            self._since.pop(policy, None)
            return replace(waiting, halted="")
        if now - self._since.setdefault(policy, now) < self._soak_seconds:
            return replace(waiting, halted="")
        del self._since[policy]
        share = Waiting(percent=SHARE_PERCENT)
        more = any(lets_in(gate, n, share) for n in nodes.keys() - {n.node for n in inside})
        return share if waiting.percent < SHARE_PERCENT and more else None

    def _halted(self, policy: str, before: str, nodes: Mapping[str, NodeReport]) -> str:
        """The node that refuses it. One that has fallen silent since still does, until it runs the policy."""
        refusing = sorted(n.node for n in nodes.values() if policy in n.refused)
        if refusing:
            return refusing[0]
        return "" if before in nodes and self._runs(nodes[before], policy) else before

    def _runs(self, report: NodeReport, policy: str) -> bool:
        return report.policy_digest in self._bundles.get(policy, ()) and policy not in report.unloaded
