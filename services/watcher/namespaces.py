"""Which namespaces count: one named by flag, or those whose labels match, and what other flags name besides. Pure."""

from __future__ import annotations

from typing import Final

from services.shared.contracts.objects import AnyObject, EndpointSlice, Key, Namespace
from services.shared.flags import Flags
from services.shared.labels import Selector, parse_selector
from services.watcher.changes import ObjectChanges
from services.watcher.references import secret_named

_SERVICE_NAME: Final = "kubernetes.io/service-name"


def pair(reference: str) -> tuple[str, str]:
    """`namespace/name` as the two."""
    namespace, _, name = reference.strip().partition("/")
    return namespace, name


class Namespaces:
    """Everything that the source holds in; what is in a namespace that counts out, also when a Namespace changes its labels."""

    def __init__(self, flags: Flags, *further: Flags) -> None:
        """`further`: of other groups of nodes, which may name other objects."""
        self._only = flags.watch_namespace
        self._selector = parse_selector(flags.watch_namespace_selector) if flags.watch_namespace_selector else None
        each = (flags, *further)
        configs = {Key("ConfigMap", *pair(r)) for f in each for r in (f.configmap, f.tcp_services_configmap, f.udp_services_configmap)}
        self._always = frozenset(configs | {secret_named(f.default_ssl_certificate) for f in each})
        self._default_services = frozenset(pair(f.default_backend_service) for f in (flags, *further) if f.default_backend_service)
        self._matching: set[str] = set()
        self._held: dict[str, dict[Key, AnyObject]] = {}
        """By namespace, only with a selector: what comes when its labels come to match."""

    def visible(self, changes: ObjectChanges) -> ObjectChanges:
        """The changes as they look to one who sees these namespaces only."""
        if self._selector is None:
            return changes if not self._only else {k: o for k, o in changes.items() if self._counts(k, o)}
        changed = self._relabel(changes, self._selector)
        for key, obj in changes.items():
            self._hold(key, obj)
        out = {key: obj if self._counts(key, obj) else None for key, obj in changes.items()}
        for namespace in changed:
            out |= {key: obj if self._counts(key, obj) else None for key, obj in self._held.get(namespace, {}).items()}
        return out

    def _relabel(self, changes: ObjectChanges, selector: Selector) -> set[str]:
        """Take Namespaces over; returns those that count now and did not, or the other way round."""
        before = set(self._matching)
        for key, obj in changes.items():
            if key.kind == "Namespace":
                self._matching.discard(key.name)
                if isinstance(obj, Namespace) and selector.matches(obj.metadata.labels):
                    self._matching.add(key.name)
        return before ^ self._matching

    def _hold(self, key: Key, obj: AnyObject | None) -> None:
        if not key.namespace:
            return
        if obj is not None:
            self._held.setdefault(key.namespace, {})[key] = obj
        elif key.namespace in self._held:
            self._held[key.namespace].pop(key, None)
            if not self._held[key.namespace]:
                del self._held[key.namespace]

    def _counts(self, key: Key, obj: AnyObject | None) -> bool:
        if not key.namespace or key in self._always or self._watched(key.namespace):
            return True
        return any(_belongs_to(service, key, obj) for namespace, service in self._default_services if namespace == key.namespace)

    def _watched(self, namespace: str) -> bool:
        return namespace == self._only if self._selector is None else namespace in self._matching


def _belongs_to(service: str, key: Key, obj: AnyObject | None) -> bool:
    """Whether it is this Service of its namespace, or a slice of it."""
    slice_of_it = obj is None or (isinstance(obj, EndpointSlice) and obj.metadata.labels.get(_SERVICE_NAME) == service)
    return (key.kind, key.name) == ("Service", service) or (key.kind == "EndpointSlice" and slice_of_it)
