"""Which ports of TCP and UDP services this node can have: what its nginx listens on now, and what others have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from services.applier.nodeconf import NodeSettings
from services.applier.streams import Listener, listeners, unavailable
from services.shared.contracts.version import PolicyBundle

_LISTEN: Final = re.compile(r"^  listen (?:\S+:)?(\d+)( udp)? reuseport", re.ASCII | re.MULTILINE)
"""As `streams.node_text` writes them."""


def wanted(bundle: PolicyBundle) -> Iterator[Listener]:
    for policy in bundle.policies:
        if policy.scope == "stream":
            yield from listeners(policy.text)


def held(generation: Path, offset: int) -> frozenset[Listener]:
    """What a generation on disk has nginx listen on; nothing where there is none."""
    try:
        text = (generation / "stream.conf").read_text()
    except OSError:
        return frozenset()
    return frozenset(Listener("udp" if found[2] else "tcp", int(found[1]) - offset) for found in _LISTEN.finditer(text))


def taken(settings: NodeSettings, bundle: PolicyBundle, before: Path, *, running: bool) -> dict[Listener, str]:
    """Ports that this node cannot have, and why. `before`: the generation that nginx runs, or did last; `running`: it does."""
    found: dict[Listener, str] = {}
    ours = held(before, settings.stream_port_offset)
    for listener in wanted(bundle):
        if not (running and listener in ours):
            words = unavailable(listener, settings.stream_port_offset, settings.address, ours=listener in ours)
            if words:
                found[listener] = words
    return found


def missing(settings: NodeSettings, loaded: PolicyBundle, current: Path) -> bool:
    """Whether a port that `loaded` wants, and the current generation left out, could be had now."""
    ports = list(wanted(loaded))
    if not ports:
        return False
    out = set(ports) - held(current, settings.stream_port_offset)
    return any(not unavailable(p, settings.stream_port_offset, settings.address, ours=False) for p in out)
