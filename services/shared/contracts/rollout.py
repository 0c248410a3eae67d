"""How far new policies are let in (compiler -> appliers): the gate of one group of nodes. Latest state; one key a group, one writer."""

from __future__ import annotations

import hashlib

import msgspec
from msgspec import Struct

from services.shared.contracts.version import VersionId


class Waiting(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A policy that is not open to all nodes yet."""

    percent: int = 0
    """Nodes whose position is below may install it, and the canaries."""
    halted: str = ""
    """The node that refuses it: it goes no further. Empty: none does."""


class Gate(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the nodes of one group may install of one bundle (bucket `rollouts`, key `<group>`)."""

    group: str
    epoch: int
    number: int
    """Of the version it was made for: the gate of an older one never replaces that of a newer one."""
    policy_digest: str
    """The bundle. Of any other, nothing that a node does not run already is let in."""
    canaries: tuple[str, ...] = ()
    """Nodes that come first."""
    waiting: dict[str, Waiting] = {}
    """By policy hash. The bundle's other policies are open to all nodes."""

    @property
    def id(self) -> VersionId:
        return VersionId(self.epoch, self.number)


def position(node: str) -> int:
    """Where a node stands among all, 0..99; it depends on nothing but the name."""
    return int.from_bytes(hashlib.sha256(node.encode()).digest()[:8], "big") % 100


def lets_in(gate: Gate, node: str, waiting: Waiting) -> bool:
    """Whether a policy that is so far may be installed there."""
    return node in gate.canaries or position(node) < waiting.percent


def admits(gate: Gate | None, node: str, policy_digest: str, policy: str) -> bool:
    """Whether a node may install a policy of this bundle. No gate yet: none of it. Who halts it may try again: mended, it ends the halt."""
    if gate is None or gate.policy_digest != policy_digest:
        return False
    waiting = gate.waiting.get(policy)
    return waiting is None or node == waiting.halted or lets_in(gate, node, waiting)


encode_gate = msgspec.json.Encoder().encode
decode_gate = msgspec.json.Decoder(Gate).decode
