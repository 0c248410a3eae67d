"""Global policies that nginx refuses. Nodes keep the one before in its scope, and all else goes on; the ConfigMap's verdict says so."""

from __future__ import annotations

from services.shared.contracts.problem import Problem, Reason
from services.shared.contracts.version import PolicyBundle


class Refusals:
    def __init__(self) -> None:
        self._words: dict[str, str] = {}
        """Policy -> what is said of it."""

    def note(self, bundle: PolicyBundle, policy: str, words: str) -> bool | None:
        """nginx refuses a policy of this bundle. None: it is not a global one; False: that is known."""
        scope = next((p.scope for p in bundle.policies if p.hash == policy), "location")
        if scope == "location":
            return None
        known = policy in self._words
        self._words[policy] = f"nginx refuses what it makes of it ({scope}): {words}; nodes keep what they had of that"
        return not known

    def prune(self, bundle: PolicyBundle) -> bool:
        """What is not in the bundle any more is forgotten; whether anything was."""
        gone = self._words.keys() - {p.hash for p in bundle.policies}
        for policy in gone:
            del self._words[policy]
        return bool(gone)

    def problems(self) -> list[Problem]:
        return [Problem(reason=Reason.REFUSED_BY_NGINX, field="data", message=words) for _, words in sorted(self._words.items())]
