"""The node's DNS: names that rows mention, resolved off the request path with the system's resolver (docs/decisions/0005)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable

from services.applier.rows import names_of
from services.shared.contracts.tables import ResolvedRow, encode_row

REFRESH_SECONDS = 5.0


class Names:
    """Which rows mention which names, and the answers."""

    def __init__(self, answers: dict[str, bytes]) -> None:
        self.rows = answers
        """`n/<name>` -> row; the last answer stays while a name does not resolve."""
        self._of_key: dict[str, set[str]] = {}

    def note(self, upsert: dict[str, bytes], delete: Iterable[str]) -> bool:
        """Take a change of rows; whether there are names without an answer."""
        for key in delete:
            self._of_key.pop(key, None)
        for key, row in upsert.items():
            names = names_of(key, row)
            if names:
                self._of_key[key] = names
            else:
                self._of_key.pop(key, None)
        return any(f"n/{n}" not in self.rows for n in self.wanted())

    def wanted(self) -> set[str]:
        return {n for names in self._of_key.values() for n in names}

    async def refresh(self) -> tuple[dict[str, bytes], tuple[str, ...]]:
        """Resolve everything again; (rows that changed, keys that are no longer wanted)."""
        names = sorted(self.wanted())
        found = await asyncio.gather(*(_addresses(n) for n in names))
        changed: dict[str, bytes] = {}
        for name, addresses in zip(names, found, strict=True):
            if addresses:
                row = encode_row(ResolvedRow(addresses=addresses))
                if self.rows.get(f"n/{name}") != row:
                    changed[f"n/{name}"] = row
        gone = tuple(k for k in self.rows if k[2:] not in set(names))
        for key in gone:
            del self.rows[key]
        self.rows.update(changed)
        return changed, gone


async def _addresses(name: str) -> tuple[str, ...]:
    """IPv4 first; empty where the name does not resolve now."""
    try:
        async with asyncio.timeout(10):
            answers = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError, UnicodeError):
        return ()
    unique = {(family != socket.AF_INET, str(address[0])) for family, _, _, _, address in answers}
    return tuple(a for _, a in sorted(unique))
