"""Who may open what is sealed for a group of nodes: identities (nodes -> compiler), keys (compiler -> each node), revocations (command)."""

from __future__ import annotations

import msgspec
from msgspec import Struct


class Identity(Struct, frozen=True, kw_only=True):
    """A node's public key (bucket `identities`, key `<node>`: only that node may write it)."""

    node: str
    group: str
    public: bytes
    """X25519, 32 bytes. The private half never leaves the node."""


class NodeKeys(Struct, frozen=True, kw_only=True):
    """The group's sealing keys, closed for one node (bucket `keys`, key `<group>.<node>`: only that node may read it)."""

    public: bytes
    """The identity it is closed for."""
    ids: tuple[str, ...]
    """Of the keys inside."""
    box: bytes


class Revocation(Struct, frozen=True, kw_only=True):
    """A node that gets no keys any more (bucket `revoked`, key `<node>`)."""

    node: str
    at: float


decode_identity = msgspec.json.Decoder(Identity).decode
decode_node_keys = msgspec.json.Decoder(NodeKeys).decode
