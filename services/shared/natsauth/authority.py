"""The keys that sign: made once and kept apart, used to issue credentials and to tell servers whom to believe."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from services.shared.files import write_atomically
from services.shared.natsauth import jwt
from services.shared.natsauth.registrar import RegistrarKey
from services.shared.natsauth.roles import NEWCOMER, Permissions, Role, of_any_node, of_newcomer, of_node, of_service, user_of_node

FILE: Final = "authority.json"


class BadAuthority(Exception):
    """The directory holds no usable signing keys. The message says why."""


class _Keys(Struct, kw_only=True):
    operator: str
    """Seeds."""
    account: str
    system: str
    registrar: str = ""
    """Signs nodes' credentials, and cannot sign any other."""
    nodes: dict[str, str] = {}
    """Public keys of node credentials -> the node: needed to revoke them."""
    revoked: dict[str, int] = {}
    """Public keys of users -> unix seconds."""
    banned: set[str] = set()
    """Nodes that get no credential until they are admitted again."""


def _new() -> _Keys:
    return _Keys(operator=jwt.new_seed(jwt.OPERATOR), account=jwt.new_seed(jwt.ACCOUNT), system=jwt.new_seed(jwt.ACCOUNT))


def _decode(data: bytes, where: str) -> _Keys:
    try:
        keys = msgspec.json.decode(data, type=_Keys)
        for seed in (keys.operator, keys.account, keys.system):
            jwt.public_of(seed)
    except (msgspec.DecodeError, ValueError) as error:
        raise BadAuthority(f"{where} holds no signing keys: {error}; removing it makes new ones, and all credentials void") from error
    return keys


def _lasting_claims(token: str) -> object:
    """All but when it was signed."""
    try:
        claims = jwt.body_of(token)
    except ValueError:
        return None
    return {k: v for k, v in claims.items() if k not in ("iat", "jti")}


class Authority:
    """See the module. Whoever reads what it keeps can become anyone on this bus, and nobody outside it."""

    def __init__(self, keys: _Keys, path: Path | None = None) -> None:
        self._path = path
        self._keys = keys
        if not keys.registrar:
            keys.registrar = jwt.new_seed(jwt.ACCOUNT)
            self._save()

    @classmethod
    def at(cls, directory: Path) -> Authority:
        """The one in this directory, made if there is none; it is kept there. Raises BadAuthority, OSError."""
        path = directory / FILE
        try:
            return cls(_decode(path.read_bytes(), str(path)), path)
        except FileNotFoundError:
            return cls(_new(), path)

    @classmethod
    def of(cls, data: bytes | None, where: str) -> Authority:
        """The one that was kept as `encoded`, or (None) another; who asks keeps it. `where` is for messages. Raises BadAuthority."""
        return cls(_new() if data is None else _decode(data, where))

    @property
    def encoded(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self._keys), indent=2)

    def _save(self) -> None:
        if self._path is not None:
            write_atomically(self._path, self.encoded, mode=0o600)

    # --- for servers

    @property
    def account(self) -> str:
        """The public key of the account that everything happens in."""
        return jwt.public_of(self._keys.account)

    @property
    def account_jwt(self) -> str:
        """As of now, with what is revoked."""
        nodes = of_any_node()
        scope = jwt.Scope(key=jwt.public_of(self._keys.registrar), role="node", publish=nodes.publish, subscribe=nodes.subscribe)
        return jwt.account_jwt(self._keys.operator, self.account, "sluice", jetstream=True, revoked=self._keys.revoked, scopes=[scope])

    def server_configuration(self, resolver_directory: Path | str) -> str:
        """The lines of a nats-server's configuration that say whom to believe."""
        system = jwt.public_of(self._keys.system)
        return (
            f'operator: "{jwt.operator_jwt(self._keys.operator, system)}"\n'
            f'system_account: "{system}"\n'
            f'resolver {{ type: full, dir: "{resolver_directory}", allow_delete: false, interval: "2m" }}\n'
            "resolver_preload {\n"
            f'  {self.account}: "{self.account_jwt}"\n'
            f'  {system}: "{jwt.account_jwt(self._keys.operator, system, "system", jetstream=False)}"\n'
            "}\n"
        )

    def is_told_by(self, configuration: str) -> bool:
        """Whether these lines, made earlier, say of the account what `server_configuration` would say now."""
        told = [m for m in re.findall(r'"(ey[\w.-]+)"', configuration, re.ASCII) if _lasting_claims(m) == _lasting_claims(self.account_jwt)]
        return bool(told) and jwt.public_of(self._keys.system) in configuration

    # --- for users

    def service(self, role: Role, present: str = "") -> str:
        """A credentials file for one service: the present one while it is right."""
        return self._lasting(role, of_service(role), present)

    def newcomer(self, present: str = "") -> str:
        """A credentials file for nodes that have none yet: the present one while it is right."""
        return self._lasting(NEWCOMER, of_newcomer(), present)

    def _lasting(self, name: str, permissions: Permissions, present: str) -> str:
        return present if self._is_right(present, permissions) else self._issue(name, permissions, self._keys.account)[0]

    @property
    def registrar(self) -> RegistrarKey:
        """For who admits nodes: with it one can be any node, and nobody else."""
        return RegistrarKey(account=self.account, seed=self._keys.registrar)

    def node(self, node: str, group: str, present: str = "") -> str:
        """A credentials file for one node: the present one while it is right. It is remembered, to be revoked some day.

        Empty: the node is revoked.
        """
        if node in self._keys.banned:
            return ""
        permissions = of_node(node, group)
        if self._is_right(present, permissions) and jwt.claims_of(present).sub in self._keys.nodes:
            return present
        text, public = self._issue(user_of_node(node), permissions, self._keys.account)
        self._keys.nodes[public] = node
        self._save()
        return text

    def _is_right(self, present: str, permissions: Permissions) -> bool:
        """Whether this authority issued it, with these very permissions, and has not revoked it."""
        try:
            claims = jwt.claims_of(present)
        except ValueError:
            return False
        allowed = (tuple(sorted(permissions.publish)), tuple(sorted(permissions.subscribe)))
        same = (tuple(claims.nats.pub.allow), tuple(claims.nats.sub.allow)) == allowed
        return same and claims.iss == self.account and claims.sub not in self._keys.revoked

    def system(self) -> str:
        """A credentials file for telling servers of a changed account."""
        return self._issue("system", Permissions(publish=("$SYS.REQ.CLAIMS.UPDATE",), subscribe=("_INBOX_system.>",)), self._keys.system)[0]

    def _issue(self, name: str, permissions: Permissions, account: str) -> tuple[str, str]:
        seed = jwt.new_seed(jwt.USER)
        public = jwt.public_of(seed)
        token = jwt.user_jwt(
            account,
            public,
            name,
            publish=list(permissions.publish),
            subscribe=list(permissions.subscribe),
            answers=permissions.answers,
        )
        return jwt.credentials(token, seed), public

    def revoke(self, node: str) -> int:
        """All credentials of a node count no more, once the servers know `account_jwt`; how many there are."""
        found = [public for public, name in self._keys.nodes.items() if name == node]
        for public in found:
            self._keys.revoked[public] = int(time.time()) + 1
        self._keys.banned.add(node)
        self._save()
        return len(found)

    def admit(self, node: str) -> None:
        """The node may have a credential again: another one."""
        self._keys.banned.discard(node)
        self._save()
