"""Policies that nginx refuses for what the ConfigMap says: the global ones, and all others once it refuses even the plainest.

No Ingress is blamed then. Nodes keep the global policy before, and rows as they were where theirs is refused; the verdict of the ConfigMap
says so.
"""

from __future__ import annotations

from collections.abc import Mapping

from services.shared.contracts.problem import Problem, Reason
from services.shared.contracts.version import PolicyBundle


class Refusals:
    def __init__(self) -> None:
        self._words: dict[str, str] = {}
        """Policy -> what is said of it."""

    def note(self, bundle: PolicyBundle, plainest: str, refused: Mapping[str, str]) -> tuple[bool, dict[str, str]]:
        """Policies of this bundle are refused. `plainest`: of the default backend, which no Ingress has a say in.

        Returns whether there is news of the ConfigMap, and those that an Ingress may be to blame for.
        """
        scopes = {p.hash: p.scope for p in bundle.policies}
        mine = {h: w for h, w in refused.items() if scopes.get(h, "location") != "location" or plainest in refused}
        news = mine.keys() - self._words.keys()
        for policy, words in mine.items():
            scope = scopes.get(policy, "location")
            what = "locations, of every Ingress" if scope == "location" else scope
            self._words[policy] = f"nginx refuses what it makes of it ({what}): {words}; nodes keep what they had of that"
        return bool(news), {h: w for h, w in refused.items() if h not in mine}

    def prune(self, bundle: PolicyBundle) -> bool:
        """What is not in the bundle any more is forgotten; whether anything was."""
        gone = self._words.keys() - {p.hash for p in bundle.policies}
        for policy in gone:
            del self._words[policy]
        return bool(gone)

    def problems(self) -> list[Problem]:
        return [Problem(reason=Reason.REFUSED_BY_NGINX, field="data", message=words) for words in sorted(set(self._words.values()))]
