"""Which form of an Ingress is in effect: the newest accepted one, or the one before while nginx refuses a policy of the newest
(docs/decisions/0003-last-good.md)."""

from __future__ import annotations

from msgspec.structs import replace

from services.compiler.graph import Place
from services.compiler.ingresses import ReadIngress
from services.compiler.locationpolicy import without_policy
from services.shared.contracts.problem import Problem, Reason


class Accepted:
    """The last accepted forms of all Ingresses, and those that are in quarantine."""

    def __init__(self) -> None:
        self._good: dict[Place, list[ReadIngress]] = {}
        """Newest last, at most two: a policy of the newest may yet be refused."""
        self._quarantined: dict[Place, tuple[str, Problem]] = {}
        """Ingress -> (the refused policy, the problem). Ends when the Ingress has another accepted form."""

        self._rejected: set[Place] = set()
        """Whose newest form is not accepted."""

    def take(self, place: Place, read: ReadIngress) -> ReadIngress | None:
        """An Ingress was read; what of it takes effect. None: it is refused, and there is nothing before."""
        good = self._good.setdefault(place, [])
        self._rejected.discard(place)
        if read.rejected:
            self._rejected.add(place)
        if not read.rejected and (not good or good[-1] != read):
            if self._quarantined.pop(place, None) is not None:
                good.pop()  # it is no form to go back to
            good.append(read)
            del good[:-2]
        if not good:
            return None
        if place not in self._quarantined:
            return good[-1]
        if len(good) > 1:
            return good[0]
        return replace(good[-1], denied=True, settings=without_policy(good[-1].settings))

    def forget(self, place: Place) -> None:
        self._good.pop(place, None)
        self._quarantined.pop(place, None)
        self._rejected.discard(place)

    def reconsider(self) -> None:
        """The settings are others, and every policy with them: nodes will say what they refuse of these. A snippet is what it was."""
        self._quarantined = {p: found for p, found in self._quarantined.items() if self._good[p][-1].settings.configuration_snippet}

    def rejects(self, place: Place) -> bool:
        """Whether what the Ingress says now is not accepted."""
        return place in self._rejected

    def quarantine(self, ingress: ReadIngress, policy_hash: str, words: str) -> bool:
        """nginx refuses a policy of this Ingress. False: that is known; it waits to be compiled, or cannot do without the policy."""
        place = (ingress.namespace, ingress.name)
        if self._quarantined.get(place, ("",))[0] == policy_hash:
            return False
        self._quarantined[place] = (policy_hash, _refused(ingress, words, alone=len(self._good.get(place, ())) < 2))
        return True

    def problem(self, place: Place) -> Problem | None:
        """Why it is in quarantine; None: it is not."""
        found = self._quarantined.get(place)
        return found[1] if found is not None else None


def _refused(ingress: ReadIngress, words: str, *, alone: bool) -> Problem:
    snippet = bool(ingress.settings.configuration_snippet)
    field = "metadata.annotations[nginx.ingress.kubernetes.io/configuration-snippet]" if snippet else "metadata.annotations"
    instead = "it had no other form, and its routes answer 503" if alone else "its last good form stays"
    return Problem(reason=Reason.REFUSED_BY_NGINX, field=field, message=f"nginx refuses what it makes: {words}; {instead}")
