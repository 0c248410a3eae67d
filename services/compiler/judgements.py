"""What is wrong with each object, and which verdicts may be others than those told last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from services.compiler.accepted import Accepted
from services.compiler.graph import Graph, Place
from services.compiler.hosts import HostProblems
from services.compiler.ingresses import ReadIngress
from services.shared.contracts.objects import Key
from services.shared.contracts.problem import Problem, Verdict

Finder = Callable[[Key, ReadIngress | None], Iterable[Problem]]
"""What else is wrong with an object now; its form in effect comes along where it is an Ingress that has one."""


def ingress_key(ref: str) -> Key:
    """Of `namespace/name`."""
    return Key("Ingress", *ref.split("/", 1))


class Judgements:
    """Of one engine. What is found once is put in; `finder` is asked each time a verdict is made."""

    def __init__(self, graph: Graph, forms: Accepted, finder: Finder) -> None:
        self._graph = graph
        self._forms = forms
        self._finder = finder
        self._own: dict[Key, tuple[Problem, ...]] = {}
        """Of objects by themselves."""
        self._at_hosts: dict[str, HostProblems] = {}
        self._left_alone: dict[Place, Problem] = {}
        """Ingresses that compilers died of."""
        self._doubtful: set[Key] = set()

    # --- what is found

    def note(self, key: Key, problems: tuple[Problem, ...]) -> None:
        """All that is wrong with an object by itself now."""
        self._own[key] = problems
        self._doubtful.add(key)

    def note_host(self, host: str, problems: HostProblems) -> None:
        """All that is wrong with Ingresses at this host now."""
        self.doubt(ingress_key(ref) for ref, _ in (*self._at_hosts.pop(host, ()), *problems))
        if problems:
            self._at_hosts[host] = problems

    def leave_alone(self, place: Place, problem: Problem | None) -> None:
        """An Ingress that compilers died of; None: it is compiled as others are."""
        if problem is None:
            self._left_alone.pop(place, None)
        else:
            self._left_alone[place] = problem

    def forget(self, key: Key) -> None:
        """It is gone, or not ours."""
        self._own.pop(key, None)
        self._left_alone.pop((key.namespace, key.name), None)
        self._doubtful.add(key)

    def doubt(self, keys: Iterable[Key]) -> None:
        """Their verdicts may be others: `finder` has news."""
        self._doubtful.update(keys)

    # --- what is told

    def of(self, key: Key) -> Verdict | None:
        """What is wrong with one object now; None: nothing."""
        place = (key.namespace, key.name)
        of_ingress = key.kind == "Ingress"
        read = self._graph.reads.get(place) if of_ingress else None
        problems = list(self._own.get(key, ()))
        if read is not None:
            for host in sorted(self._graph.hosts_of(read)):
                problems += [p for ref, p in self._at_hosts.get(host, ()) if ref == read.ref]
        problems += self._finder(key, read)
        withheld = [p for p in (self._forms.problem(place), self._left_alone.get(place)) if p] if of_ingress else []
        problems += withheld
        if not problems:
            return None
        accepted = not withheld and not (of_ingress and self._forms.rejects(place))
        unique = tuple(dict.fromkeys(problems))
        return Verdict(kind=key.kind, namespace=key.namespace, name=key.name, accepted=accepted, problems=unique)

    def take(self) -> Mapping[Key, Verdict | None]:
        """The verdicts that may be others than those told last; None: nothing is wrong, or it is gone."""
        doubtful, self._doubtful = self._doubtful, set()
        return {key: self.of(key) for key in sorted(doubtful)}
