"""Credentials for nodes that made their key themselves: only its public part comes here."""

from __future__ import annotations

import re
from typing import Final

import msgspec
from msgspec import Struct

from services.shared.contracts.subjects import token
from services.shared.natsauth import jwt

_PUBLIC: Final = re.compile(r"U[A-Z2-7]{55}", re.ASCII)
LONGEST_TOKEN: Final = 128
"""Of a node's or group's name in its encoded form: a JWT must fit into one protocol line."""


class BadRequest(Exception):
    """What was asked for cannot be signed. The message says why."""


class RegistrarKey(Struct, frozen=True, kw_only=True):
    """What signs nodes' credentials, and what the servers let no other be signed with (a scoped signing key of the account)."""

    account: str
    """Public key."""
    seed: str


def encode_key(key: RegistrarKey) -> bytes:
    return msgspec.json.encode(key)


def decode_key(data: bytes) -> RegistrarKey:
    """Raises ValueError."""
    try:
        key = msgspec.json.decode(data, type=RegistrarKey)
        jwt.public_of(key.seed)
    except (msgspec.DecodeError, ValueError) as error:
        raise ValueError(f"no registrar's key: {error}") from error
    return key


def sign(key: RegistrarKey, *, node: str, group: str, public: str, seconds: float) -> str:
    """The JWT of a node's user key. It counts for `seconds` from now. Raises BadRequest."""
    if not _PUBLIC.fullmatch(public):
        raise BadRequest("public is no public user key of NATS")
    own, tag = token(node), token(group)
    if not node or max(len(own), len(tag)) > LONGEST_TOKEN:
        raise BadRequest("the node has no name, or its name or group is too long")
    return jwt.scoped_user_jwt(key.seed, key.account, public, own, tags=[f"group:{tag}"], seconds=seconds)
