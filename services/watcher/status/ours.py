"""The Ingresses that are ours, as the source shows them: whose status is written, and which objects Events are about."""

from __future__ import annotations

from collections.abc import Iterator

from services.shared.checks.classes import is_ours
from services.shared.contracts.objects import AnyObject, Ingress, IngressClass, Key
from services.shared.flags import Flags


class OurIngresses:
    """Kept up to date by `note`, whether this watcher leads or not."""

    def __init__(self, *flags: Flags) -> None:
        """`flags`: of each group of nodes that is meant."""
        self._flags = flags
        self._ingresses: dict[Key, Ingress] = {}
        self._classes: dict[str, IngressClass] = {}

    def note(self, key: Key, obj: AnyObject | None) -> set[Key]:
        """An object changed, or (None) is gone. The Ingresses to look at again."""
        if key.kind == "IngressClass":
            self._classes.pop(key.name, None)
            if isinstance(obj, IngressClass):
                self._classes[key.name] = obj
            return set(self._ingresses)  # any of them may name it
        if key.kind != "Ingress":
            return set()
        self._ingresses.pop(key, None)
        if isinstance(obj, Ingress):
            self._ingresses[key] = obj
        return {key}

    def get(self, namespace: str, name: str) -> Ingress | None:
        """None: there is none, or it is not ours."""
        found = self._ingresses.get(Key("Ingress", namespace, name))
        return found if found is not None and self._is_ours(found) else None

    def __iter__(self) -> Iterator[Key]:
        return (key for key, obj in self._ingresses.items() if self._is_ours(obj))

    def _is_ours(self, ingress: Ingress) -> bool:
        return any(is_ours(ingress, self._classes.get, flags) for flags in self._flags)

    def with_host(self, host: str) -> list[Ingress]:
        """Those with a rule for this host, or for `_`, the catch-all."""
        return [i for i in (self._ingresses[key] for key in self) if host in hosts_of(i)]


def hosts_of(ingress: Ingress) -> set[str]:
    """As rows name them: `_` is the catch-all. Without aliases."""
    catch_all = {"_"} if ingress.spec.default_backend is not None else set()
    return {rule.host or "_" for rule in ingress.spec.rules} | catch_all
