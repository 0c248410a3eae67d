"""The keys that sign: made once, kept in a directory of their own, used to issue credentials and to tell servers whom to believe."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from services.shared.natsauth import jwt
from services.shared.natsauth.roles import Permissions, Role, of_node, of_service, user_of_node

FILE: Final = "authority.json"


class BadAuthority(Exception):
    """The directory holds no usable signing keys. The message says why."""


class _Keys(Struct, kw_only=True):
    operator: str
    """Seeds."""
    account: str
    system: str
    nodes: dict[str, str] = {}
    """Public keys of node credentials -> the node: needed to revoke them."""
    revoked: dict[str, int] = {}
    """Public keys of users -> unix seconds."""
    banned: set[str] = set()
    """Nodes that get no credential until they are admitted again."""


class Authority:
    """See the module. Whoever reads its file can become anyone on this bus, and nobody outside it."""

    def __init__(self, path: Path, keys: _Keys) -> None:
        self._path = path
        self._keys = keys

    @classmethod
    def at(cls, directory: Path) -> Authority:
        """The one in this directory, made if there is none. Raises BadAuthority, OSError."""
        path = directory / FILE
        try:
            keys = msgspec.json.decode(path.read_bytes(), type=_Keys)
            for seed in (keys.operator, keys.account, keys.system):
                jwt.public_of(seed)
            return cls(path, keys)
        except FileNotFoundError:
            made = cls(
                path, _Keys(operator=jwt.new_seed(jwt.OPERATOR), account=jwt.new_seed(jwt.ACCOUNT), system=jwt.new_seed(jwt.ACCOUNT))
            )
            made._save()
            return made
        except (msgspec.DecodeError, ValueError) as error:
            raise BadAuthority(f"{path} holds no signing keys: {error}; removing it makes new ones, and all credentials void") from error

    def _save(self) -> None:
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(self._keys), indent=2))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)

    # --- for servers

    @property
    def account(self) -> str:
        """The public key of the account that everything happens in."""
        return jwt.public_of(self._keys.account)

    @property
    def account_jwt(self) -> str:
        """As of now, with what is revoked."""
        return jwt.account_jwt(self._keys.operator, self.account, "sluice", jetstream=True, revoked=self._keys.revoked)

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

    # --- for users

    def service(self, role: Role) -> str:
        """A credentials file for one service."""
        return self._issue(role, of_service(role), self._keys.account)[0]

    def node(self, node: str, group: str, present: str = "") -> str:
        """A credentials file for one node: the present one while it is right. It is remembered, to be revoked some day.

        Empty: the node is revoked.
        """
        if node in self._keys.banned:
            return ""
        permissions = of_node(node, group)
        if self._is_right(present, permissions):
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
        return same and claims.iss == self.account and claims.sub in self._keys.nodes and claims.sub not in self._keys.revoked

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
