"""What the source holds in; what is published of it, out. Incremental, pure, and the same whatever the order of changes.

- Only namespaces that count (`namespaces`).
- Only Secrets that something refers to (`references`). This is also where they will be sealed.
- An IngressClass for the controller where the source has none, as the chart would install it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from services.shared.contracts.objects import (
    AnyObject,
    ConfigMap,
    Ingress,
    IngressClass,
    IngressClassSpec,
    Key,
    Metadata,
    key_of,
)
from services.shared.flags import Flags
from services.watcher import normalize
from services.watcher.changes import ObjectChanges
from services.watcher.namespaces import Namespaces, pair
from services.watcher.references import allows_cross_namespace, secret_named, secrets_of_config, secrets_of_ingress


class Selection:
    """See the module."""

    def __init__(self, flags: Flags) -> None:
        self._flags = flags
        self._namespaces = Namespaces(flags)
        self._config_key = Key("ConfigMap", *pair(flags.configmap))
        self._always = frozenset(key for key in [secret_named(flags.default_ssl_certificate)] if key)
        self._secrets: dict[Key, AnyObject] = {}
        self._ingresses: dict[Key, Ingress] = {}
        self._classes: dict[Key, IngressClass] = {}
        self._config: ConfigMap | None = None
        self._references: dict[Key, frozenset[Key]] = {}
        self._referenced = Counter(self._always)
        self._stand_in = implicit_class(flags)
        self._implicit: IngressClass | None = None

    def apply(self, changes: ObjectChanges) -> ObjectChanges:
        """The published counterpart of a set of changes."""
        out: ObjectChanges = {}
        touched: set[Key] = set()  # Secrets whose standing may be another now
        for key, obj in self._namespaces.visible(changes).items():
            if key.kind == "Secret":
                _put(self._secrets, key, obj)
                touched.add(key)
                continue
            out[key] = obj
            if key.kind == "Ingress":
                _put(self._ingresses, key, obj)
                touched |= self._refer(key, self._of_ingress(key))
            elif key.kind == "IngressClass":
                _put(self._classes, key, obj)
            elif key == self._config_key:
                touched |= self._configure(obj if isinstance(obj, ConfigMap) else None)
        for key in touched:
            out[key] = self._secrets.get(key) if self._referenced[key] > 0 else None
        out.update(self._class_changes(out))
        return out

    # --- Secrets

    def _of_ingress(self, key: Key) -> frozenset[Key]:
        ingress = self._ingresses.get(key)
        return secrets_of_ingress(ingress, cross_namespace=allows_cross_namespace(self._config)) if ingress else frozenset()

    def _refer(self, source: Key, new: frozenset[Key]) -> frozenset[Key]:
        """Count references from one object; returns the Secrets concerned."""
        old = self._references.pop(source, frozenset())
        self._referenced.subtract(old)
        self._referenced.update(new)
        if new:
            self._references[source] = new
        for key in old:
            if self._referenced[key] <= 0:
                del self._referenced[key]
        return old ^ new

    def _configure(self, config: ConfigMap | None) -> set[Key]:
        """Take the controller's ConfigMap into account; returns the Secrets concerned."""
        before = allows_cross_namespace(self._config)
        self._config = config
        touched = set(self._refer(self._config_key, secrets_of_config(config)))
        if allows_cross_namespace(config) != before:
            for key in self._ingresses:
                touched |= self._refer(key, self._of_ingress(key))
        return touched

    # --- the implicit IngressClass

    def _class_changes(self, out: ObjectChanges) -> ObjectChanges:
        """The implicit class comes with the last explicit class of our controller gone, and goes with the first."""
        key = key_of(self._stand_in)
        ours = any(c.spec.controller == self._flags.controller_class for c in self._classes.values())
        wanted = None if ours or key in self._classes else self._stand_in
        if wanted == self._implicit and key not in out:
            return {}
        self._implicit = wanted
        return {key: wanted or self._classes.get(key)}


def implicit_class(flags: Flags) -> IngressClass:
    """The IngressClass that the chart would install."""
    metadata = Metadata(name=flags.ingress_class, labels={"app.kubernetes.io/managed-by": "sluice"})
    return normalize.with_identity(IngressClass(metadata=metadata, spec=IngressClassSpec(controller=flags.controller_class)))


def _put(store: dict[Key, Any], key: Key, obj: AnyObject | None) -> None:
    if obj is None:
        store.pop(key, None)
    else:
        store[key] = obj
