"""Aliases of all hosts: who gets a name that several claim, and the rows that say so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from services.compiler.hosts import LoweredHost
from services.compiler.ingresses import ReadIngress, in_order
from services.shared.contracts.tables import REGEX_ALIASES_KEY, AliasRow, RegexAliasRow, Row, TLSNameRow
from services.shared.nginxtext.regex import bounded


class Names:
    """Claims on aliases. A real host beats an alias; of several claims the oldest Ingress's wins."""

    def __init__(self) -> None:
        self._claims: dict[str, dict[str, ReadIngress]] = {}
        """Alias -> host -> the Ingress that decides its age."""
        self._of_host: dict[str, tuple[str, ...]] = {}
        self._dirty: set[str] = set()
        self.material: dict[str, tuple[str, ...]] = {}
        """Host -> keys of the certificate and file rows that it owns."""

    def claim(self, host: str, aliases: tuple[str, ...], owner: ReadIngress | None, *, exists: bool) -> None:
        """What a host claims now. `exists`: there is such a host, so that an alias of this name gives way."""
        for alias in self._of_host.pop(host, ()):
            claims = self._claims.get(alias, {})
            claims.pop(host, None)
            if not claims:
                self._claims.pop(alias, None)
            self._dirty.add(alias)
        if owner is not None and aliases:
            self._of_host[host] = aliases
            for alias in aliases:
                self._claims.setdefault(alias, {})[host] = owner
                self._dirty.add(alias)
        if host in self._claims or not exists:
            self._dirty.add(host)

    def rows(self, hosts: Mapping[str, LoweredHost]) -> Iterator[tuple[str, Row | None]]:
        """The alias rows that may have changed, and their TLS names; None: no such row.

        An alias has its host's certificate where that is valid for it; otherwise the default one is shown (behaviours: server-alias).
        """
        regexes_changed = False
        for alias in sorted(self._dirty):
            if alias.startswith("~"):
                regexes_changed = True
            else:
                target = self._owner(alias) if alias not in hosts else None
                for key in _keys(alias):
                    yield key, AliasRow(host=target) if target else None
                if alias not in hosts:
                    certificate = hosts[target].certificate if target and target in hosts else None
                    fits = certificate is not None and certificate.valid_for(alias)
                    yield f"t/{alias}", TLSNameRow(certificate=certificate.digest) if certificate is not None and fits else None
        self._dirty.clear()
        if regexes_changed:
            pairs = [
                (bounded(a.lstrip("~").removeprefix("*")), h) for a in sorted(self._claims) if a.startswith("~") and (h := self._owner(a))
            ]
            yield REGEX_ALIASES_KEY, RegexAliasRow(aliases=tuple(pairs)) if pairs else None

    def _owner(self, alias: str) -> str | None:
        claims = self._claims.get(alias)
        if not claims:
            return None
        order = [i.ref for i in in_order(list({i.ref: i for i in claims.values()}.values()))]
        return min(claims, key=lambda host: (order.index(claims[host].ref), host))


def _keys(alias: str) -> list[str]:
    """nginx's `.name` stands for the name itself and everything below it."""
    if alias.startswith("."):
        return [f"a/{alias[1:].lower()}", f"a/*{alias.lower()}"]
    return [f"a/{alias.lower()}"]
