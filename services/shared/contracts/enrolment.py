"""A node asks for its credential (applier -> watcher): it made a key, and a token says where it runs."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

AUDIENCE: Final = "sluice"
"""Of the token: no API server takes it for a credential."""


class Enrol(Struct, frozen=True, kw_only=True):
    node: str
    """Its name: the pod's, or its Node's."""
    group: str
    public: str
    """The public part of its NATS user key."""
    token: str
    """Of the pod's service account, for `AUDIENCE` (a projected volume)."""


class Enrolled(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One of the two is empty."""

    jwt: str = ""
    """The NATS user JWT."""
    refused: str = ""
    """Why not."""


decode_enrol = msgspec.json.Decoder(Enrol).decode
decode_enrolled = msgspec.json.Decoder(Enrolled).decode
