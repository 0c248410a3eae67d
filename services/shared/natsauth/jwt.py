"""NATS JWTs, version 2 (github.com/nats-io/jwt): claims as JSON, signed with ed25519 by an nkey."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import nkeys
from msgspec import Struct

OPERATOR: Final = nkeys.PREFIX_BYTE_OPERATOR
ACCOUNT: Final = nkeys.PREFIX_BYTE_ACCOUNT
USER: Final = nkeys.PREFIX_BYTE_USER

_HEADER: Final = b'{"typ":"JWT","alg":"ed25519-nkey"}'
_NO_LIMIT: Final = -1


def new_seed(prefix: int) -> str:
    return bytes(nkeys.encode_seed(os.urandom(32), prefix)).decode()


def public_of(seed: str) -> str:
    """Raises ValueError for what is no seed."""
    return bytes(_pair(seed).public_key).decode()


def _pair(seed: str) -> Any:
    try:
        return nkeys.from_seed(seed.strip().encode())
    except (nkeys.NkeysError, ValueError) as error:
        raise ValueError(f"not an nkey seed: {type(error).__name__}") from error


def _signed(issuer: str, subject: str, name: str, body: dict[str, Any], expires: int = 0) -> str:
    pair = _pair(issuer)
    claims = {"iat": int(time.time()), "iss": pair.public_key.decode(), "name": name, "sub": subject, "nats": {**body, "version": 2}}
    if expires:
        claims["exp"] = expires
    digest = hashlib.sha512(msgspec.json.encode(claims)).digest()[:32]
    claims["jti"] = base64.b32encode(digest).rstrip(b"=").decode()
    text = b".".join(_base64(part) for part in (_HEADER, msgspec.json.encode(claims)))
    return b".".join((text, _base64(pair.sign(text)))).decode()


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


class Scope(Struct, frozen=True, kw_only=True):
    """A key that signs users of one kind: they get these permissions alone. `{{name()}}` and `{{tag(group)}}` in them are the user's."""

    key: str
    """Public."""
    role: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def operator_jwt(operator: str, system_account: str) -> str:
    """`operator`: its seed; `system_account`: a public key."""
    return _signed(operator, public_of(operator), "sluice", {"type": "operator", "system_account": system_account})


def account_jwt(
    operator: str, account: str, name: str, *, jetstream: bool, revoked: dict[str, int] | None = None, scopes: Sequence[Scope] = ()
) -> str:
    """`account`: its public key. `revoked`: users' public keys -> unix seconds up to which their JWTs count no more."""
    limits: dict[str, Any] = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), _NO_LIMIT)
    limits["wildcards"] = True
    if jetstream:
        limits |= dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), _NO_LIMIT)
    body: dict[str, Any] = {"type": "account", "limits": limits, "default_permissions": {"pub": {}, "sub": {}}}
    if revoked:
        body["revocations"] = revoked
    if scopes:
        body["signing_keys"] = [
            {
                "kind": "user_scope",
                "key": scope.key,
                "role": scope.role,
                "template": {"pub": {"allow": sorted(scope.publish)}, "sub": {"allow": sorted(scope.subscribe)}, **_unlimited()},
            }
            for scope in scopes
        ]
    return _signed(operator, account, name, body)


def user_jwt(account: str, user: str, name: str, *, publish: list[str], subscribe: list[str], answers: bool) -> str:
    """`account`: its seed; `user`: a public key. `answers`: may answer requests that reached it, once each."""
    permissions: dict[str, Any] = {"pub": {"allow": sorted(publish)}, "sub": {"allow": sorted(subscribe)}}
    if answers:
        permissions["resp"] = {"max": 1, "ttl": 60_000_000_000}
    return _signed(account, user, name, {"type": "user", **permissions, **_unlimited()})


def _unlimited() -> dict[str, int]:
    return dict.fromkeys(("subs", "data", "payload"), _NO_LIMIT)


def scoped_user_jwt(signing: str, account: str, user: str, name: str, *, tags: Sequence[str], seconds: float) -> str:
    """Of a user who has a scope's permissions, for `seconds`. `signing`: the scope's seed; `account`, `user`: public keys."""
    body = {"type": "user", "issuer_account": account, "tags": list(tags)}
    return _signed(signing, user, name, body, expires=int(time.time() + seconds))


class Subjects(Struct, frozen=True):
    allow: tuple[str, ...] = ()


class UserClaims(Struct, frozen=True):
    pub: Subjects = Subjects()
    sub: Subjects = Subjects()


class Claims(Struct, frozen=True):
    iss: str
    sub: str
    name: str = ""
    iat: int = 0
    exp: int = 0
    """Unix seconds; 0: it counts for ever."""
    nats: UserClaims = UserClaims()


_JWT: Final = re.compile(r"-----BEGIN NATS USER JWT-----\s*([\w.-]+)\s*-+END NATS USER JWT-+", re.ASCII)


def claims_of(text: str) -> Claims:
    """What a credentials file says of its user; the signature is the servers' to verify. Raises ValueError."""
    found = _JWT.search(text)
    if found is None:
        raise ValueError("no NATS user JWT in the credentials file")
    try:
        return msgspec.convert(body_of(found[1]), type=Claims)
    except msgspec.ValidationError as error:
        raise ValueError(f"the NATS user JWT cannot be read: {error}") from error


def body_of(token: str) -> Any:
    """All claims of a JWT as they are. Raises ValueError."""
    parts = token.split(".")
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(parts[1] + "=="))
    except (IndexError, ValueError, msgspec.DecodeError) as error:
        raise ValueError(f"the JWT cannot be read: {error}") from error


_SEED: Final = re.compile(r"-----BEGIN USER NKEY SEED-----\s*(SU[A-Z2-7]+)\s*-+END USER NKEY SEED-+", re.ASCII)


def seed_of(text: str) -> str:
    """The seed in a credentials file. Raises ValueError."""
    found = _SEED.search(text)
    if found is None:
        raise ValueError("no seed in the credentials file")
    public_of(found[1])
    return found[1]


def credentials(jwt: str, seed: str) -> str:
    """A credentials file."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
