"""The rollout as one node sees it: the group's gate, as it comes, and the policies that it holds back here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import msgspec

from services.applier.decide import introduced
from services.shared.bus.port import Bus, Message
from services.shared.contracts.rollout import Gate, admits, decode_gate
from services.shared.contracts.subjects import ROLLOUTS_BUCKET, bucket_subject, token
from services.shared.contracts.version import PolicyBundle
from services.shared.telemetry.logs import get_logger

log = get_logger(__name__)


def held_back(bundle: PolicyBundle, digest: str, loaded: PolicyBundle, gate: Gate | None, node: str) -> frozenset[str]:
    """Policies of a staged bundle (by hash) that this node must not install yet: what nginx runs already is never among them.

    A location policy may need what a global one that came with it has (zones, error locations): it waits for that, unless that is halted.
    """
    fresh = introduced(bundle, loaded)
    held = {h for h in fresh if not admits(gate, node, digest, h)}
    globals_held = {p.hash for p in bundle.policies if p.scope != "location"} & held
    halted = {h for h, waiting in gate.waiting.items() if waiting.halted} if gate is not None else set[str]()
    return fresh if globals_held - halted else frozenset(held)


async def follow_gate(bus: Bus, group: str, note: Callable[[Gate], None]) -> None:
    """Call `note` with the group's gate, now and whenever it changes. Bytes that are no gate change nothing."""
    subject = bucket_subject(ROLLOUTS_BUCKET, token(group))
    async with contextlib.aclosing(bus.follow(f"KV_{ROLLOUTS_BUCKET}", subject, last_only=True)) as items:
        async for item in items:
            if not isinstance(item, Message):
                continue
            try:
                gate = decode_gate(item.payload)
            except (msgspec.DecodeError, RecursionError) as error:
                log.error("the gate of the rollout could not be read", error=error)
                continue
            if gate.group == group:
                note(gate)
