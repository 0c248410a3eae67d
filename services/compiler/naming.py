"""Aliases of all hosts: who gets a name that several claim, and the rows that say so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from services.compiler.annotations.registry import PREFIX
from services.compiler.hosts import LoweredHost
from services.compiler.ingresses import ReadIngress, in_order
from services.shared.contracts.problem import Problem, Reason, printable
from services.shared.contracts.tables import REGEX_ALIASES_KEY, AliasRow, RegexAliasRow, Row, TLSNameRow
from services.shared.nginxtext.regex import bounded


class Names:
    """Claims on aliases. A real host beats an alias; of several claims the oldest Ingress's wins."""

    def __init__(self) -> None:
        self._claims: dict[str, dict[str, ReadIngress]] = {}
        """Alias -> host -> the Ingress that decides its age."""
        self._of_host: dict[str, tuple[str, ...]] = {}
        self._holders: dict[str, str] = {}
        """Host -> the Ingress (namespace/name) with the annotation."""
        self._dirty: set[str] = set()
        self._touched: set[str] = set()
        """Ingresses (namespace/name) whose aliases may be somebody else's now, or their own again."""
        self.material: dict[str, tuple[str, ...]] = {}
        """Host -> keys of the certificate and file rows that it owns."""

    def claim(self, host: str, lowered: LoweredHost | None) -> None:
        """What a host claims now. None: there is no such host any more; as long as there is, an alias of this name gives way."""
        for alias in self._of_host.pop(host, ()):
            claims = self._claims.get(alias, {})
            self._touch(alias)
            claims.pop(host, None)
            if not claims:
                self._claims.pop(alias, None)
            self._dirty.add(alias)
        if lowered is not None and lowered.owner is not None and lowered.aliases:
            self._of_host[host] = lowered.aliases
            self._holders[host] = lowered.alias_holder
            for alias in lowered.aliases:
                self._claims.setdefault(alias, {})[host] = lowered.owner
                self._dirty.add(alias)
                self._touch(alias)
        if host in self._claims:
            self._touch(host)
        if host in self._claims or lowered is None:
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

    def _touch(self, alias: str) -> None:
        self._touched.update(self._holders[host] for host in self._claims.get(alias, {}))

    def touched(self) -> set[str]:
        """Those whose problems have to be told anew; asked once for each compile."""
        touched, self._touched = self._touched, set()
        return touched

    def problems(self, ingress: ReadIngress, hosts: Mapping[str, LoweredHost]) -> Iterator[Problem]:
        """Aliases of an Ingress that another host has, or is."""
        for alias in ingress.settings.server_alias:
            mine = {host for host in self._claims.get(alias, {}) if self._holders[host] == ingress.ref}
            winner = self._owner(alias)
            if alias in hosts and mine:
                yield _taken(alias, "is a host of its own")
            elif mine and winner not in mine and winner is not None:
                yield _taken(alias, f"belongs to host {winner} of Ingress {self._claims[alias][winner].ref}, which is older")

    def _owner(self, alias: str) -> str | None:
        claims = self._claims.get(alias)
        if not claims:
            return None
        order = [i.ref for i in in_order(list({i.ref: i for i in claims.values()}.values()))]
        return min(claims, key=lambda host: (order.index(claims[host].ref), host))


def _taken(alias: str, why: str) -> Problem:
    return Problem(
        reason=Reason.PATH_CONFLICT,
        field=f"metadata.annotations[{PREFIX}server-alias]",
        message=f"{printable(alias)} {why}; this alias has no effect",
        severity="warning",
    )


def _keys(alias: str) -> list[str]:
    """nginx's `.name` stands for the name itself and everything below it."""
    if alias.startswith("."):
        return [f"a/{alias[1:].lower()}", f"a/*{alias.lower()}"]
    return [f"a/{alias.lower()}"]
